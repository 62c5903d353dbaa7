"""GPUs as the driver tells of them: one value per device, and what may list them.

A provider lists a whole machine, whatever this process may see of it (see `visibility`), and never from memory: each
call asks anew. All memory is in MB of 2^20 bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rayzyme.checks import whole_number
from rayzyme.errors import DeviceUnavailable


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one instance of a GPU in MIG mode, at one moment.

    Attributes:
        gpu: Number of the GPU in the driver's order; the instances of one GPU share it.
        uuid: `GPU-..` or `MIG-..`; no other device in the world has it.
        name: Model.
        memory_total: MB.
        memory_free: MB free of anybody's use, as the driver counts.
        compute_capability: CUDA's major and minor.
        used_by: MB that each process (its id) uses on it, as far as the driver tells.
        parent: UUID of the GPU that this is an instance of; empty for a whole GPU.
        instance: Numbers of the GPU instance and the compute instance; None for a whole GPU.
        fault: Why it cannot be used; empty for a healthy one. The figures of a faulty one mean nothing.
    """

    gpu: int
    uuid: str
    name: str = ""
    memory_total: int = 0
    memory_free: int = 0
    compute_capability: tuple[int, int] = (0, 0)
    used_by: Mapping[int, int] = field(default_factory=dict)
    parent: str = ""
    instance: tuple[int, int] | None = None
    fault: str = ""


class GpuProvider(Protocol):
    """Whoever lists the GPUs of this machine."""

    def devices(self) -> Sequence[Device]:
        """Every device now, in the driver's order, faulty ones in their places; none where there is no GPU.

        Raises:
            DeviceUnavailable: There is a driver, and it does not answer.
        """


class FakeGPUs:
    """GPUs that exist only on paper: for demonstrations and tests on machines without any."""

    def __init__(self, free: Sequence[int], total: int | Sequence[int] = 40000, name: str = "Fake GPU") -> None:
        """Make one device per figure in `free`.

        Args:
            free: MB free on each.
            total: MB of each; one figure is that of all.
            name: Model of all.
        """
        self._lock = threading.Lock()
        self._failure = ""
        totals = [total] * len(free) if isinstance(total, int) else list(total)
        self._devices = [
            Device(
                gpu=number,
                uuid=f"GPU-{number:08x}-0000-0000-0000-000000000000",
                name=name,
                memory_total=whole_number("total", size, at_least=1),
                memory_free=whole_number(f"free[{number}]", figure, at_least=0),
                compute_capability=(8, 0),
            )
            for number, (figure, size) in enumerate(zip(free, totals, strict=True))
        ]

    def devices(self) -> Sequence[Device]:
        """The devices as they are now.

        Raises:
            DeviceUnavailable: After `fail`.
        """
        with self._lock:
            if self._failure:
                raise DeviceUnavailable(self._failure)
            return list(self._devices)

    def use(self, gpu: int, pid: int, memory_mb: int) -> None:
        """Let a process use `memory_mb` MB of a device, instead of what it used there before."""
        with self._lock:
            device = self._devices[gpu]
            free = device.memory_free + device.used_by.get(pid, 0) - memory_mb
            self._devices[gpu] = replace(device, memory_free=free, used_by={**device.used_by, pid: memory_mb})

    def spoil(self, gpu: int, fault: str) -> None:
        """Make a device faulty; an empty `fault` heals it."""
        with self._lock:
            self._devices[gpu] = replace(self._devices[gpu], fault=fault)

    def fail(self, reason: str) -> None:
        """Let the driver fail from now on; an empty reason repairs it."""
        with self._lock:
            self._failure = reason
