"""A stand-in for the module `pynvml`: the calls that Rayzyme makes, answered from a description of GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

MB = 1 << 20


@dataclass
class FakeGpu:
    """One GPU, or an instance of one; an error in `broken` is raised by the call of that name."""

    uuid: str
    total: int = 40000
    free: int = 38000
    processes: dict[int, int | None] = field(default_factory=dict)
    mig: bool | None = False
    instances: list[FakeGpu | None] = field(default_factory=list)
    place: tuple[int, int] = (0, 0)
    broken: dict[str, Exception] = field(default_factory=dict)


class FakeNvml:
    """Counts how often it was opened and closed, so that a test sees what stays open."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - pynvml's name
        pass

    class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801
        pass

    class NVMLError_NoPermission(NVMLError):  # noqa: N801
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801
        pass

    class NVMLError_GpuIsLost(NVMLError):  # noqa: N801
        pass

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = gpus
        self.opened = 0
        self.broken: dict[str, Exception] = {}

    def nvmlInit(self) -> None:  # noqa: N802
        self._check(self, "nvmlInit")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check(self, "nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> FakeGpu:  # noqa: N802
        return self._check(self.gpus[number], "nvmlDeviceGetHandleByIndex")

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:  # noqa: N802
        return self._check(gpu, "nvmlDeviceGetUUID").uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:  # noqa: N802
        return self._check(gpu, "nvmlDeviceGetName") and "NVIDIA A100"

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:  # noqa: N802
        return self._check(gpu, "nvmlDeviceGetCudaComputeCapability") and (8, 0)

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:  # noqa: N802
        self._check(gpu, "nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=gpu.total * MB + 5, free=gpu.free * MB + 5)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[Any]:  # noqa: N802
        self._check(gpu, "nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=mb and mb * MB) for pid, mb in gpu.processes.items()]

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:  # noqa: N802
        if gpu.mig is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return [int(gpu.mig), int(gpu.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:  # noqa: N802
        return len(gpu.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, number: int) -> FakeGpu:  # noqa: N802
        instance = gpu.instances[number]
        if instance is None:
            raise self.NVMLError_NotFound("Not Found")
        return self._check(instance, "nvmlDeviceGetMigDeviceHandleByIndex")

    def nvmlDeviceGetGpuInstanceId(self, gpu: FakeGpu) -> int:  # noqa: N802
        return self._check(gpu, "nvmlDeviceGetGpuInstanceId").place[0]

    def nvmlDeviceGetComputeInstanceId(self, gpu: FakeGpu) -> int:  # noqa: N802
        return self._check(gpu, "nvmlDeviceGetComputeInstanceId").place[1]

    @staticmethod
    def _check(thing: Any, call: str) -> Any:
        if call in thing.broken:
            raise thing.broken[call]
        return thing
