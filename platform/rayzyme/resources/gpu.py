"""`GPUManager`: which GPUs there are, who may use how much of them, and what fits.

An allocation is a set of leases in the ledger: it binds every Rayzyme process on this machine, and a process that dies
frees its share. All memory is in MB of 2^20 bytes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rayzyme.checks import short_text, truth_value, whole_number
from rayzyme.errors import ResourceError, ValidationError
from rayzyme.resources.account import Account
from rayzyme.resources.allocation import Offer, batch_size, best_offer, choose, explain, gpu_resource, offers
from rayzyme.resources.devices import Device, FakeGPUs, GpuProvider
from rayzyme.resources.drivers import SystemGPUs
from rayzyme.resources.frameworks import LoadedFramework
from rayzyme.resources.ledger import LONGEST_PURPOSE, LeaseLedger, Share
from rayzyme.resources.visibility import order_is_certain, visible_devices

if TYPE_CHECKING:
    from rayzyme.database import Database

logger = logging.getLogger(__name__)

DEFAULT_REQUIRED_MEMORY: Final[Mapping[str, int]] = {"prediction": 16000, "dynamics": 8000}
"""MB that a task needs on each GPU."""

OnLost = Callable[[str], None]
"""Called with the task, in the renewing thread, when its leases are lost: its work has to stop."""


class GPUManager:
    """Lists and allocates GPUs. Safe under threads and processes; a child made by `fork` holds nothing.

    `index` is always the number that a framework in this process would use, after `CUDA_VISIBLE_DEVICES`. Of GPUs in MIG
    mode every instance is listed, though CUDA itself lets one process use one instance.
    """

    def __init__(
        self,
        required_memory: Mapping[str, int] | None = None,
        prefer_single_gpu: bool = False,
        provider: GpuProvider | None = None,
        store: Database | LeaseLedger | None = None,
        reserve_mb: int = 0,
    ) -> None:
        """Manage the GPUs that `provider` lists. Nothing is opened before there is a GPU to lease.

        Args:
            required_memory: MB per GPU that each task needs; None: `DEFAULT_REQUIRED_MEMORY`.
            prefer_single_gpu: Allocate only the freest GPU instead of all that fit.
            provider: Lists devices; None: the system's driver.
            store: Database, or ledger, of the leases; None: the settings' database.
            reserve_mb: MB that allocation leaves free on every device.

        Raises:
            ValidationError: Names the argument.
        """
        self._required = _checked_requirements(DEFAULT_REQUIRED_MEMORY if required_memory is None else required_memory)
        self._prefer_single_gpu = truth_value("prefer_single_gpu", prefer_single_gpu)
        if provider is not None and not callable(getattr(provider, "devices", None)):
            raise ValidationError(f"provider must have a method devices(), or be None, not {provider!r}")
        self._provider = SystemGPUs() if provider is None else provider
        self._account = Account(store)
        self._reserve = whole_number("reserve_mb", reserve_mb, at_least=0)

    @classmethod
    def from_settings(cls, required_memory: Mapping[str, int] | None = None, **others: Any) -> Self:
        """A manager that leaves `resources.gpu.min_free_memory_mb` free, on the simulated GPUs of the settings if there are any.

        `others` as in the constructor.
        """
        from rayzyme.settings import get_settings

        configured: dict[str, Any] = {
            "provider": configured_provider(),
            "reserve_mb": get_settings().resources.gpu.min_free_memory_mb,
        }
        return cls(required_memory, **configured | others)

    def get_available_gpus(self) -> list[dict[str, Any]]:
        """The GPUs of this process: index, name, memory_total, memory_free (MB, as the driver counts), compute_capability.

        Where there is no GPU, or the driver fails, none; a warning says so.
        """
        return [
            {
                "index": index,
                "name": device.name,
                "memory_total": device.memory_total,
                "memory_free": device.memory_free,
                "compute_capability": device.compute_capability,
            }
            for index, device in self._devices().items()
        ]

    def allocate_gpus(
        self, task: str, count: int | None = None, min_memory_mb: int | None = None, on_lost: OnLost | None = None
    ) -> list[int]:
        """Reserve a task's memory on GPUs until `release_gpus`; the same again for a task that this process holds.

        Args:
            task: Known from `required_memory`.
            count: How many GPUs exactly; None: all that fit, or the freest with `prefer_single_gpu`.
            min_memory_mb: MB per GPU; None: what the task requires.
            on_lost: Told when the leases are lost.

        Returns:
            Indices, the freest device first. Without `count`, none where nothing fits; a warning says what was missing.

        Raises:
            KeyError: The task is not known.
            ResourceError: Fewer than `count` fit, or the task is held with fewer or smaller shares; nothing new is held.
            DatabaseError: The leases cannot be written now.
        """
        return self._allocate(task, ("gpu", task), count, min_memory_mb, on_lost)[1]

    def release_gpus(self, task: str) -> bool:
        """Give back what this process holds for a task by `allocate_gpus`; False where it holds nothing."""
        return self._account.release(("gpu", task))

    @contextmanager
    def lease(
        self, task: str, count: int | None = None, min_memory_mb: int | None = None, on_lost: OnLost | None = None
    ) -> Iterator[list[int]]:
        """Hold leases of one's own for the length of a `with` block, whatever else holds the same task.

        Arguments, value and errors are those of `allocate_gpus`.
        """
        key, gpus = self._allocate(task, None, count, min_memory_mb, on_lost)
        try:
            yield gpus
        finally:
            self._account.release(key)

    def explain(self, task: str) -> dict[int, str]:
        """Say for each GPU of this process why an allocation for the task would take it, or why not.

        Raises:
            KeyError: The task is not known.
        """
        need = self._need(task, None)
        visible = self._visible()
        healthy = _healthy(visible)
        held = self._held(task, healthy)
        told = explain(self._offers(healthy), need, single=self._prefer_single_gpu, held=held)
        told.update({index: f"unhealthy: {device.fault}" for index, device in visible.items() if device.fault})
        return dict(sorted(told.items()))

    def get_optimal_batch_size(self, task: str, gpu_indices: Sequence[int]) -> int:
        """How many items of a task fit on the smallest of some GPUs at once; 1 where that is less, or without GPUs.

        What others lease is taken off what is free, what this process leases is not.

        Raises:
            KeyError: The task is not known.
            IndexError: There is no such GPU.
        """
        need = self._need(task, None)
        if not gpu_indices:
            return 1
        offered = self._offers(self._picked(gpu_indices), without_own=True)
        return batch_size(task, min(offer.available for offer in offered), need)

    def optimize_memory_usage(self, task: str, gpu_indices: Sequence[int]) -> dict[int, int]:
        """Give back what this process' framework does not use, and limit it to the task's memory on each GPU.

        Returns:
            MB freed, by index.

        Raises:
            KeyError: The task is not known.
            IndexError: There is no such GPU.
        """
        need = self._need(task, None)
        if not gpu_indices:
            return {}
        devices, framework = self._picked(gpu_indices), LoadedFramework()
        freed = framework.empty_caches(list(devices))
        for index, device in devices.items():
            framework.limit(index, min(1.0, need / device.memory_total))
        return freed

    def monitor_memory_usage(self, gpu_indices: Sequence[int]) -> dict[int, dict[str, int]]:
        """MB by index: `total` and `free` of the device; `reserved` by this process and `allocated` to its live tensors.

        Without a framework both of the latter are what the driver says that this process uses.

        Raises:
            IndexError: There is no such GPU.
        """
        if not gpu_indices:
            return {}
        framework, told = LoadedFramework(), {}
        for index, device in self._picked(gpu_indices).items():
            reserved, allocated = framework.reserved(index), framework.allocated(index)
            used = device.used_by.get(os.getpid(), 0)
            told[index] = {
                "total": device.memory_total,
                "reserved": used if reserved is None else reserved,
                "allocated": used if allocated is None else allocated,
                "free": device.memory_free,
            }
        return told

    def cleanup(self, gpu_indices: Sequence[int] | None = None) -> dict[int, int]:
        """Give back what this process' framework does not use, and lift the limits of `optimize_memory_usage`.

        Leases stay as they are: `release_gpus` and `close` end those.

        Args:
            gpu_indices: Which GPUs; None: all of this process.

        Returns:
            MB freed, by index.

        Raises:
            IndexError: There is no such GPU.
        """
        if gpu_indices is not None and not gpu_indices:
            return {}
        indices = list(self._devices() if gpu_indices is None else self._picked(gpu_indices))
        framework = LoadedFramework()
        for index in indices:
            framework.lift_limit(index)
        return framework.empty_caches(indices)

    def get_device_mapping(self, task: str) -> dict[str, str]:
        """Where each framework should compute a task: on the GPU that is held for it, else on the freest that fits, else "cpu".

        Nothing is allocated.

        Raises:
            KeyError: The task is not known.
        """
        need = self._need(task, None)
        devices = self._devices()
        best = self._held(task, devices) or [offer.index for offer in choose(self._offers(devices), need)]
        if not best:
            return {"pytorch": "cpu", "jax": "cpu", "tensorflow": "cpu"}
        return {"pytorch": f"cuda:{best[0]}", "jax": f"cuda:{best[0]}", "tensorflow": f"GPU:{best[0]}"}

    def close(self) -> None:
        """Give back what no other manager of this process holds too."""
        self._account.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(
        self, task: str, key: Hashable, count: int | None, min_memory_mb: int | None, on_lost: OnLost | None
    ) -> tuple[Hashable, list[int]]:
        need = self._need(task, min_memory_mb)
        if count is not None:
            whole_number("count", count, at_least=1)
        devices = self._devices()
        if not devices and count is None:
            return key, []
        if not devices:
            _count("rayzyme_gpu_refusals_total")
            raise ResourceError(f"{count} GPU(s) are needed for {task!r}, and this process has none")
        host = socket.gethostname()
        index_of = {gpu_resource(host, device): index for index, device in devices.items()}
        offered: list[Offer] = []

        def decide(leases: Sequence[Share]) -> list[tuple[str, float]]:
            offered[:] = offers(devices, leases, host, reserved=self._reserve)
            chosen = choose(offered, need, count)
            if count is None and self._prefer_single_gpu:
                chosen = chosen[:1]
            return [(gpu_resource(host, offer.device), need) for offer in chosen]

        told = None if on_lost is None else lambda: on_lost(task)
        try:
            key, holding = self._account.acquire(list(index_of), decide, purpose=task, key=key, on_lost=told)
            _require_as_asked(task, holding.shares, count, need)
        except ResourceError:
            _count("rayzyme_gpu_refusals_total")
            raise
        if not holding.shares:
            _count("rayzyme_gpu_refusals_total")
            logger.warning("no GPU for %r, which needs %s MB: %s", task, f"{need:,}", best_offer(offered))
            return key, []
        _count("rayzyme_gpu_allocations_total")
        return key, [index_of[share.resource] for share in holding.shares if share.resource in index_of]

    def _need(self, task: str, min_memory_mb: int | None) -> int:
        if task not in self._required:
            raise KeyError(f"task {task!r} has no known need of memory; known: {', '.join(sorted(self._required))}")
        return (
            self._required[task] if min_memory_mb is None else whole_number("min_memory_mb", min_memory_mb, at_least=1)
        )

    def _held(self, task: str, devices: Mapping[int, Device]) -> list[int]:
        """Indices that this process holds for a task."""
        holding = self._account.held(("gpu", task)) if devices else None
        index_of = {gpu_resource(socket.gethostname(), device): index for index, device in devices.items()}
        return [index_of[share.resource] for share in holding.shares if share.resource in index_of] if holding else []

    def _offers(self, devices: Mapping[int, Device], without_own: bool = False) -> list[Offer]:
        if not devices:
            return []
        host = socket.gethostname()
        leases = self._account.live([gpu_resource(host, device) for device in devices.values()])
        own = self._account.own_tokens() if without_own else ()
        return offers(devices, leases, host, reserved=self._reserve, without=own)

    def _picked(self, gpu_indices: Sequence[int]) -> dict[int, Device]:
        devices = self._devices()
        for index in gpu_indices:
            if isinstance(index, bool) or index not in devices:
                raise IndexError(f"there is no GPU {index!r} in this process; there are {sorted(devices) or 'none'}")
        return {index: devices[index] for index in gpu_indices}

    def _devices(self) -> dict[int, Device]:
        """The healthy devices of this process; faulty ones are warned about."""
        visible = self._visible()
        for index, device in visible.items():
            if device.fault:
                logger.warning("GPU %d (%s) is left out: %s", index, device.uuid, device.fault)
        healthy = _healthy(visible)
        _publish_free_memory(healthy)
        return healthy

    def _visible(self) -> dict[int, Device]:
        try:
            devices = self._provider.devices()
        # A provider may be anybody's code, and without GPUs there is always something that can go on.
        except Exception as error:
            logger.warning("GPUs cannot be listed, so none is used: %s", error)
            return {}
        visible = visible_devices(devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if not visible:
            _warn_once(
                "none", "there is no GPU that this process may use; what needs one runs on the CPU, or not at all"
            )
        elif not order_is_certain(devices, os.environ):
            _warn_once(
                "order",
                "the GPUs differ in model, and frameworks may number them otherwise than here; set "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID, or list UUIDs in CUDA_VISIBLE_DEVICES",
            )
        return visible


def configured_provider() -> GpuProvider:
    """The system's driver, or what `resources.gpu.simulated_mb` pretends."""
    from rayzyme.settings import get_settings

    simulated = get_settings().resources.gpu.simulated_mb
    return FakeGPUs(simulated, simulated) if simulated else SystemGPUs()


def _checked_requirements(required_memory: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(required_memory, Mapping):
        raise ValidationError(f"required_memory must map tasks to MB, not {required_memory!r}")
    for task in required_memory:
        short_text("each task of required_memory", task, at_most=LONGEST_PURPOSE)
    return {
        task: whole_number(f"required_memory[{task!r}]", need, at_least=1) for task, need in required_memory.items()
    }


def _require_as_asked(task: str, shares: Sequence[Share], count: int | None, need: int) -> None:
    """What was held before may be less than what is asked for now."""
    if any(share.amount < need for share in shares) or (count is not None and len(shares) != count):
        amounts = ", ".join(f"{share.amount:,.0f}" for share in shares)
        raise ResourceError(
            f"{count or len(shares)} GPU(s) with {need:,} MB are asked for {task!r}, which this process holds with {amounts} MB; "
            "call release_gpus first"
        )


def _healthy(devices: Mapping[int, Device]) -> dict[int, Device]:
    return {index: device for index, device in devices.items() if not device.fault}


def _publish_free_memory(devices: Mapping[int, Device]) -> None:
    from rayzyme.monitoring.metrics import get_metrics_collector

    for device in devices.values():
        get_metrics_collector().set_gauge("rayzyme_gpu_memory_free_mb", device.memory_free, {"device": device.uuid})


def _count(outcome: str) -> None:
    from rayzyme.monitoring.metrics import get_metrics_collector

    get_metrics_collector().increment(outcome)


_warned: set[str] = set()
_warning = threading.Lock()


def _warn_once(subject: str, message: str) -> None:
    with _warning:
        if subject in _warned:
            return
        _warned.add(subject)
    logger.warning(message)
