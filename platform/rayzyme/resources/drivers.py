"""Asking NVIDIA's driver: through NVML, else through the program `nvidia-smi`.

The driver is opened and closed in each call. That costs milliseconds, and buys that nothing is stale, that no file
descriptor stays open, and that a fork inherits nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rayzyme.errors import DeviceUnavailable
from rayzyme.resources.devices import Device, FakeGPUs, GpuProvider

logger = logging.getLogger(__name__)

_MB: Final = 1 << 20
# Devices are listed while others wait for the ledger, so this stays well below the time after which a lease lapses.
_ANSWER_TIMEOUT_S: Final = 10


def configured_provider() -> GpuProvider:
    """The system's driver, or what `resources.gpu.simulated_mb` pretends."""
    from rayzyme.settings import get_settings

    simulated = get_settings().resources.gpu.simulated_mb
    return FakeGPUs(simulated, simulated) if simulated else SystemGPUs()


class SystemGPUs:
    """The GPUs of this machine: the first source that lists any is believed."""

    def __init__(self, sources: Sequence[GpuProvider] | None = None) -> None:
        """Ask `sources` in turn; None: NVML, then `nvidia-smi`."""
        self._sources = (Nvml(), NvidiaSmi()) if sources is None else tuple(sources)

    def devices(self) -> Sequence[Device]:
        """Every device now; none where no source knows of one.

        Raises:
            DeviceUnavailable: A source failed, and none after it lists a device.
        """
        failure: DeviceUnavailable | None = None
        for source in self._sources:
            try:
                found = source.devices()
            except DeviceUnavailable as error:
                failure = failure or error
                continue
            if found:
                return found
        if failure is not None:
            raise failure
        return []


class Nvml:
    """The driver's own library, NVML."""

    def __init__(self, library: Any = None) -> None:
        """Use `library`, a module like `pynvml`; None imports that one when it is needed."""
        self._library = library
        self._lock = threading.Lock()

    def devices(self) -> Sequence[Device]:
        """Every device now; none without a driver.

        Raises:
            DeviceUnavailable: The driver does not answer.
        """
        nvml = self._library if self._library is not None else _pynvml()
        if nvml is None:
            return []
        with self._lock:
            try:
                nvml.nvmlInit()
            except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
                return []
            except nvml.NVMLError as error:
                raise _driver_failed("NVML", error) from error
            try:
                return [device for gpu in range(nvml.nvmlDeviceGetCount()) for device in _devices_of(nvml, gpu)]
            except nvml.NVMLError as error:
                raise _driver_failed("NVML", error) from error
            finally:
                nvml.nvmlShutdown()


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _driver_failed(source: str, reason: object) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"the GPU driver does not answer ({source}: {reason}); see `nvidia-smi` and the system's log"
    )


def _devices_of(nvml: Any, gpu: int) -> list[Device]:
    """One GPU, or its instances where it is in MIG mode; a faulty GPU as such, so that the others stay."""
    uuid = f"unknown-{gpu}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(gpu)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
        if not _is_in_mig_mode(nvml, handle):
            return [_device(nvml, handle, gpu=gpu, uuid=uuid, compute_capability=capability)]
        places = range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
        known = {"gpu": gpu, "compute_capability": capability, "parent": uuid}
        return [part for place in places if (part := _instance(nvml, handle, place, known)) is not None]
    except nvml.NVMLError as error:
        return [Device(gpu=gpu, uuid=uuid, fault=str(error))]


def _instance(nvml: Any, whole: Any, number: int, known: Mapping[str, Any]) -> Device | None:
    """An instance of a GPU, a faulty one as such; None where there is none of that number."""
    uuid = f"unknown-{known['gpu']}-{number}"
    try:
        handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, number)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        place = (nvml.nvmlDeviceGetGpuInstanceId(handle), nvml.nvmlDeviceGetComputeInstanceId(handle))
        return _device(nvml, handle, uuid=uuid, instance=place, **known)
    except nvml.NVMLError_NotFound:
        return None
    except nvml.NVMLError as error:
        return Device(uuid=uuid, fault=str(error), **known)


def _device(nvml: Any, handle: Any, **known: Any) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        name=nvml.nvmlDeviceGetName(handle),
        memory_total=memory.total // _MB,
        memory_free=memory.free // _MB,
        used_by=_used_by(nvml, handle),
        **known,
    )


def _is_in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False


def _used_by(nvml: Any, handle: Any) -> dict[int, int]:
    """Use by process. What the driver does not tell counts as no use: a lease then weighs its full amount."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission, nvml.NVMLError_FunctionNotFound):
        return {}
    used: dict[int, int] = {}
    for process in processes:
        used[process.pid] = used.get(process.pid, 0) + (process.usedGpuMemory or 0)
    return {pid: amount // _MB for pid, amount in used.items()}


class NvidiaSmi:
    """The program `nvidia-smi`, where NVML cannot be loaded."""

    def devices(self) -> Sequence[Device]:
        """Every device now; none without the program.

        Raises:
            DeviceUnavailable: The program fails.
        """
        program = shutil.which("nvidia-smi")
        if program is None:
            return []
        fields = "index,uuid,name,memory.total,memory.free,compute_cap,mig.mode.current"
        listed = _answer(program, f"--query-gpu={fields}")
        running = _answer(program, "--query-compute-apps=gpu_uuid,pid,used_memory") if listed else []
        return [_parsed(row, running) for row in listed]


def _answer(program: str, query: str) -> list[list[str]]:
    command = [program, query, "--format=csv,noheader,nounits"]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _driver_failed("nvidia-smi", error) from error
    if done.returncode:
        raise _driver_failed("nvidia-smi", (done.stdout + done.stderr).strip() or f"exit code {done.returncode}")
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _parsed(row: list[str], running: Sequence[Sequence[str]]) -> Device:
    try:
        gpu, uuid, name, total, free, capability, mig_mode = row
        number = int(gpu)
    except ValueError:
        raise _driver_failed("nvidia-smi", f"cannot make sense of {', '.join(row)!r}") from None
    if mig_mode == "Enabled":
        return Device(
            gpu=number, uuid=uuid, fault="is in MIG mode, and only NVML lists its instances: install nvidia-ml-py"
        )
    used: dict[int, int] = {}
    for user, pid, amount in running:
        # A figure that the driver keeps to itself stands in brackets.
        if user == uuid and amount.isdigit():
            used[int(pid)] = used.get(int(pid), 0) + int(amount)
    try:
        major, _, minor = capability.partition(".")
        return Device(number, uuid, name, int(total), int(free), (int(major), int(minor)), used)
    except ValueError:
        return Device(gpu=number, uuid=uuid, fault=f"nvidia-smi says {', '.join(row)!r}")
