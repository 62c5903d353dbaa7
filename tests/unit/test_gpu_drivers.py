"""Listing GPUs through a library like NVML, through a program like `nvidia-smi`, and through the real driver."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.fake_nvml import FakeGpu, FakeNvml

from rayzyme.errors import DeviceUnavailable
from rayzyme.resources.devices import Device, FakeGPUs
from rayzyme.resources.drivers import NvidiaSmi, Nvml, SystemGPUs
from rayzyme.resources.gpu import GPUManager

LOST = FakeNvml.NVMLError_GpuIsLost("GPU is lost")


def test_nvml_tells_what_the_driver_counts() -> None:
    """C7 C8"""
    nvml = FakeNvml(FakeGpu("GPU-a", 40000, 38000, {7: 1500, 8: 500}), FakeGpu("GPU-b", mig=None))
    assert Nvml(nvml).devices() == [
        Device(0, "GPU-a", "NVIDIA A100", 40000, 38000, (8, 0), {7: 1500, 8: 500}),
        Device(1, "GPU-b", "NVIDIA A100", 40000, 38000, (8, 0), {}),
    ]
    assert nvml.opened == 0


def test_the_fake_library_has_only_what_the_real_one_has() -> None:
    """C7"""
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) > 15
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_use_that_the_driver_does_not_tell_counts_as_none() -> None:
    """C14"""
    secret = {"nvmlDeviceGetComputeRunningProcesses": FakeNvml.NVMLError_NoPermission("Insufficient Permissions")}
    listed = Nvml(FakeNvml(FakeGpu("GPU-a", processes={7: None}), FakeGpu("GPU-b", broken=secret))).devices()
    assert [device.used_by for device in listed] == [{7: 0}, {}]


def test_a_gpu_in_mig_mode_is_listed_by_instance() -> None:
    """C9"""
    parts = [FakeGpu("MIG-x", 9856, 9000, {7: 800}, place=(1, 0)), None, FakeGpu("MIG-y", 19968, 19000, place=(2, 1))]
    listed = Nvml(FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", mig=True, instances=parts))).devices()
    assert [(device.gpu, device.uuid, device.parent, device.instance) for device in listed] == [
        (0, "GPU-a", "", None),
        (1, "MIG-x", "GPU-b", (1, 0)),
        (1, "MIG-y", "GPU-b", (2, 1)),
    ]
    assert [device.memory_total for device in listed] == [40000, 9856, 19968]
    assert listed[1].used_by == {7: 800}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("nvmlDeviceGetMigDeviceHandleByIndex", "unknown-1-1"),
        ("nvmlDeviceGetUUID", "unknown-1-1"),
        ("nvmlDeviceGetGpuInstanceId", "MIG-y"),
        ("nvmlDeviceGetMemoryInfo", "MIG-y"),
    ],
)
def test_a_faulty_instance_keeps_its_place_and_its_siblings_stay(call: str, name: str) -> None:
    """C9"""
    parts = [FakeGpu("MIG-x", place=(1, 0)), FakeGpu("MIG-y", broken={call: LOST}), FakeGpu("MIG-z", place=(3, 0))]
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", mig=True, instances=parts))
    assert [(device.uuid, device.parent, device.fault) for device in Nvml(nvml).devices()] == [
        ("GPU-a", "", ""),
        ("MIG-x", "GPU-b", ""),
        (name, "GPU-b", "GPU is lost"),
        ("MIG-z", "GPU-b", ""),
    ]


@pytest.mark.parametrize("call", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"])
def test_a_faulty_gpu_keeps_its_place_and_says_why(call: str) -> None:
    """C9"""
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", broken={call: LOST}), FakeGpu("GPU-c"))
    assert [(device.gpu, device.fault) for device in Nvml(nvml).devices()] == [(0, ""), (1, "GPU is lost"), (2, "")]
    assert nvml.opened == 0


def test_without_a_driver_there_is_no_gpu() -> None:
    """C8"""
    for absence in (FakeNvml.NVMLError_LibraryNotFound("no library"), FakeNvml.NVMLError_DriverNotLoaded("no driver")):
        nvml = FakeNvml(FakeGpu("GPU-a"))
        nvml.broken["nvmlInit"] = absence
        assert Nvml(nvml).devices() == []


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_fails_is_no_absence(call: str) -> None:
    """C8"""
    nvml = FakeNvml(FakeGpu("GPU-a"))
    nvml.broken[call] = LOST
    with pytest.raises(DeviceUnavailable, match="NVML: GPU is lost"):
        Nvml(nvml).devices()
    assert nvml.opened == 0


@pytest.fixture
def install_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program `nvidia-smi` on the PATH that answers as told."""

    def install(gpus: str, processes: str = "", code: int = 0) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        answers = {"--query-gpu": gpus, "--query-compute-apps": processes}
        program.write_text(
            f"#!{sys.executable}\nimport sys\nassert sys.argv[2] == '--format=csv,noheader,nounits'\n"
            f"print({answers!r}[sys.argv[1].partition('=')[0]])\nsys.exit({code})\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return install


GPUS = """\
0, GPU-a, NVIDIA A100-SXM4-40GB, 40960, 38000, 8.0, Disabled
1, GPU-b, NVIDIA H100 PCIe, 81559, 81000, 9.0, [N/A]
"""


def test_nvidia_smi_is_understood(install_nvidia_smi: Callable[..., None]) -> None:
    """C7 C8"""
    install_nvidia_smi(GPUS, "GPU-a, 7, 1500\nGPU-a, 8, [N/A]\nGPU-b, 7, 300\n")
    assert NvidiaSmi().devices() == [
        Device(0, "GPU-a", "NVIDIA A100-SXM4-40GB", 40960, 38000, (8, 0), {7: 1500}),
        Device(1, "GPU-b", "NVIDIA H100 PCIe", 81559, 81000, (9, 0), {7: 300}),
    ]


def test_a_gpu_that_nvidia_smi_cannot_read_keeps_its_place(install_nvidia_smi: Callable[..., None]) -> None:
    """C9"""
    install_nvidia_smi(
        "0, GPU-a, A100, 40960, 38000, 8.0, Disabled\n"
        "1, GPU-b, A100, [Unknown Error], [Unknown Error], 8.0, Disabled\n"
        "2, GPU-c, A100, 40960, 38000, 8.0, Enabled\n"
    )
    healthy, unreadable, split = NvidiaSmi().devices()
    assert healthy.fault == ""
    assert "[Unknown Error]" in unreadable.fault
    assert "install nvidia-ml-py" in split.fault


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", 9, "couldn't communicate"),
        (GPUS, 15, "A100"),
        ("", 4, "exit code 4"),
        ("??", 0, r"\?\?"),
    ],
)
def test_a_failing_nvidia_smi_is_no_absence(
    install_nvidia_smi: Callable[..., None], answer: str, code: int, said: str
) -> None:
    """C8"""
    install_nvidia_smi(answer, code=code)
    with pytest.raises(DeviceUnavailable, match=said):
        NvidiaSmi().devices()


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C8"""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert NvidiaSmi().devices() == []


def test_the_first_source_that_lists_a_gpu_is_believed() -> None:
    """C7"""
    none, one, two, failing = FakeGPUs([]), FakeGPUs([1000]), FakeGPUs([1000, 2000]), FakeGPUs([1000])
    failing.fail("it hangs")
    assert len(SystemGPUs([none, one, two]).devices()) == 1
    assert len(SystemGPUs([failing, two, one]).devices()) == 2
    assert SystemGPUs([none, none]).devices() == []
    with pytest.raises(DeviceUnavailable, match="it hangs"):
        SystemGPUs([failing, none]).devices()


needs_gpu = pytest.mark.skipif(not shutil.which("nvidia-smi") or not Nvml().devices(), reason="no CUDA device")


@needs_gpu
def test_the_real_driver_agrees_with_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    """C65"""
    told, asked = Nvml().devices(), NvidiaSmi().devices()
    assert [(gpu.uuid, gpu.name, gpu.memory_total, gpu.compute_capability) for gpu in told if not gpu.parent] == [
        (gpu.uuid, gpu.name, gpu.memory_total, gpu.compute_capability) for gpu in asked if not gpu.fault
    ]
    assert len(GPUManager().get_available_gpus()) == len(told)


@needs_gpu
def test_memory_that_another_process_takes_is_not_free_and_its_lease_is_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C14 C65"""
    torch = pytest.importorskip("torch")
    if not torch.version.cuda:
        pytest.skip("torch was built without CUDA")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    before = GPUManager().get_available_gpus()[0]["memory_free"]
    code = (
        "import sys, torch; from rayzyme.resources.gpu import GPUManager\n"
        "manager = GPUManager({'t': 4000}); assert manager.allocate_gpus('t') == [0]\n"
        "block = torch.empty(2000 << 20, dtype=torch.uint8, device='cuda:0'); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    try:
        with GPUManager({"too much": before - 3000, "the rest": before - 4500}) as manager:
            assert manager.get_available_gpus()[0]["memory_free"] <= before - 2000
            assert manager.allocate_gpus("too much") == []
            # In a container the driver may number processes otherwise; then use and lease both weigh.
            if child.pid in Nvml().devices()[0].used_by:
                assert manager.allocate_gpus("the rest") == [0]
    finally:
        child.communicate()
