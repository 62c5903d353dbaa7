"""`GPUManager`: which GPUs there are, who may use how much of them, and what fits.

An allocation is a set of leases in the ledger: it binds every Rayzyme process on this machine, and a process that dies
frees its share. All memory is in MB of 2^20 bytes.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rayzyme.checks import short_text, truth_value, whole_number
from rayzyme.errors import ResourceError, ValidationError
from rayzyme.resources.account import Account
from rayzyme.resources.allocation import (
    Offer,
    batch_size,
    best_offer,
    choose,
    choose_together,
    explain,
    indices_of,
    offers,
    require_as_asked,
    resources_of,
    wants,
)
from rayzyme.resources.devices import Device, GpuProvider
from rayzyme.resources.drivers import SystemGPUs, configured_provider
from rayzyme.resources.frameworks import LoadedFramework
from rayzyme.resources.leases import LONGEST_PURPOSE, Share, Wants
from rayzyme.resources.ledger import LeaseLedger
from rayzyme.resources.packing import Request
from rayzyme.resources.visibility import list_visible

if TYPE_CHECKING:
    from rayzyme.database import Database

logger = logging.getLogger(__name__)

DEFAULT_REQUIRED_MEMORY: Final[Mapping[str, int]] = {"prediction": 16000, "dynamics": 8000}
"""MB that a task needs on each GPU."""

MOST_TOGETHER: Final = 12
"""Tasks that `allocate_together` places at once; the search for places takes no time up to there."""

OnLost = Callable[[str], None]
"""Called with the task, in a thread of its own, when its leases are lost: its work has to stop."""


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
            on_lost: Told when the leases are lost, once; it replaces what this manager gave before for the task.

        Returns:
            Indices, the freest device first. Without `count`, none where nothing fits; a warning says what was missing.

        Raises:
            KeyError: The task is not known.
            ResourceError: Fewer than `count` fit, or the task is held on fewer healthy GPUs or with smaller shares;
                nothing new is held.
            DatabaseError: The leases cannot be written now.
        """
        return self._allocate(task, ("gpu", task), count, min_memory_mb, on_lost)[1]

    def allocate_together(self, tasks: Mapping[str, int], on_lost: OnLost | None = None) -> dict[str, list[int]]:
        """Reserve memory for several tasks at once, all or none, wherever a placement of all of them exists.

        One by one, each on the freest GPUs, earlier tasks may strand memory that later ones need: of 6 GB on each of two
        GPUs, tasks of 2, 3 and 3 GB taken so leave no room for one of 4 GB, and together all four fit. Who waits for memory
        with several tasks asks for all of them again after each release. A task that this process holds stays where it is.

        Args:
            tasks: How many GPUs each task needs, exactly; at most `MOST_TOGETHER` tasks.
            on_lost: As for `allocate_gpus`, for each task.

        Returns:
            Indices by task. Each task is held as if by `allocate_gpus`, until `release_gpus`.

        Raises:
            KeyError: A task is not known.
            ResourceError: They cannot be placed together, or one is held otherwise than is asked for; nothing new is held.
            ValidationError: `tasks` names none or too many, or a count is no whole number above 0.
            DatabaseError: The leases cannot be written now.
        """
        if not isinstance(tasks, Mapping) or not 1 <= len(tasks) <= MOST_TOGETHER:
            raise ValidationError(f"tasks must map 1 to {MOST_TOGETHER} tasks to numbers of GPUs, not {tasks!r}")
        wishes = {
            task: Request(self._need(task, None), whole_number(f"tasks[{task!r}]", count, at_least=1))
            for task, count in tasks.items()
        }
        devices, host = self._devices(), socket.gethostname()

        def decide(leases: Sequence[Share], missing: Collection[Hashable]) -> dict[Hashable, Wants]:
            wanted = {task: wish for task, wish in wishes.items() if ("gpu", task) in missing}
            chosen = choose_together(self._look_again(devices, leases), wanted)
            return {("gpu", task): wants(places, wanted[task].memory_mb, host) for task, places in chosen.items()}

        def accept(shares: Sequence[Share]) -> None:
            wish = wishes[shares[0].purpose]
            require_as_asked(shares, indices_of(shares, devices, host), wish.count, wish.memory_mb)

        keys: dict[Hashable, str] = {("gpu", task): task for task in wishes}
        told = None if on_lost is None else {key: partial(on_lost, task) for key, task in keys.items()}
        with _counting_refusals():
            if not devices:
                choose_together([], wishes)
            holdings = self._account.acquire_together(
                resources_of(devices, host), decide, keys, accept=accept, on_lost=told
            )
        _count("rayzyme_gpu_allocations_total", len(holdings))
        return {task: indices_of(holdings[key].shares, devices, host) for key, task in keys.items()}

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
        visible = list_visible(self._provider)
        healthy = _healthy(visible)
        holding = self._account.held(("gpu", task)) if healthy else None
        held = indices_of(holding.shares, healthy, socket.gethostname()) if holding else ()
        told = explain(self._offers(healthy), need, single=self._prefer_single_gpu, held=held)
        told.update({index: f"unhealthy: {device.fault}" for index, device in visible.items() if device.fault})
        return dict(sorted(told.items()))

    def get_optimal_batch_size(self, task: str, gpu_indices: Sequence[int]) -> int:
        """How many items of a task fit on the smallest of some GPUs at once; 1 where that is less, or without GPUs.

        What this process leases for the task counts as free; what it leases for other tasks, and what others lease, does not.

        Raises:
            KeyError: The task is not known.
            IndexError: There is no such GPU.
            ValidationError: `gpu_indices` is no sequence.
        """
        need = self._need(task, None)
        devices = self._picked(gpu_indices)
        if not devices:
            return 1
        own = {share.token for share in self._account.shares(task)}
        offered = self._offers(devices, without=own)
        return batch_size(task, min(offer.available for offer in offered), need)

    def optimize_memory_usage(self, task: str, gpu_indices: Sequence[int]) -> dict[int, int]:
        """Give back what this process' framework does not use, and limit it to the task's memory on each GPU.

        Returns:
            MB freed, by index.

        Raises:
            KeyError: The task is not known.
            IndexError: There is no such GPU.
            ValidationError: `gpu_indices` is no sequence.
        """
        need = self._need(task, None)
        devices, framework = self._picked(gpu_indices), LoadedFramework()
        freed = framework.empty_caches(list(devices))
        for index, device in devices.items():
            framework.limit(index, min(need, device.memory_total) / device.memory_total)
        return freed

    def monitor_memory_usage(self, gpu_indices: Sequence[int]) -> dict[int, dict[str, int]]:
        """MB by index: `total` and `free` of the device; `reserved` by this process and `allocated` to its live tensors.

        Without a framework both of the latter are what the driver says that this process uses.

        Raises:
            IndexError: There is no such GPU.
            ValidationError: `gpu_indices` is no sequence.
        """
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
            ValidationError: `gpu_indices` is no sequence.
        """
        indices = list(self._devices() if gpu_indices is None else self._picked(gpu_indices))
        framework = LoadedFramework()
        for index in indices:
            framework.lift_limit(index)
        return framework.empty_caches(indices)

    def get_device_mapping(self, task: str) -> dict[str, str]:
        """Where each framework should compute a task: on the GPU that is held for it, else on the freest that fits, else "cpu".

        Of several held GPUs, by `lease` too, the one held longest. Nothing is allocated.

        Raises:
            KeyError: The task is not known.
        """
        need = self._need(task, None)
        devices = self._devices()
        held = indices_of(self._account.shares(task), devices, socket.gethostname()) if devices else []
        best = held or [offer.index for offer in choose(self._offers(devices), need)]
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
        devices, host = self._devices(), socket.gethostname()
        offered: list[Offer] = []

        def decide(leases: Sequence[Share]) -> Wants:
            offered[:] = self._look_again(devices, leases)
            chosen = choose(offered, need, count)
            return wants(chosen[:1] if count is None and self._prefer_single_gpu else chosen, need, host)

        def accept(shares: Sequence[Share]) -> None:
            require_as_asked(shares, indices_of(shares, devices, host), count, need)

        told = None if on_lost is None else partial(on_lost, task)
        shares: Sequence[Share] = ()
        with _counting_refusals():
            if devices:
                key, holding = self._account.acquire(
                    resources_of(devices, host), decide, purpose=task, key=key, accept=accept, on_lost=told
                )
                shares = holding.shares
            elif count is not None:
                raise ResourceError(f"{count} GPU(s) are needed for {task!r}, and this process has none")
        if not shares:
            _count("rayzyme_gpu_refusals_total")
            logger.warning("no GPU for %r, which needs %s MB: %s", task, f"{need:,}", best_offer(offered))
            return key, []
        _count("rayzyme_gpu_allocations_total")
        return key, indices_of(shares, devices, host)

    def _look_again(self, devices: dict[int, Device], leases: Sequence[Share]) -> list[Offer]:
        """What devices have to give, by their figures now, which `devices` has afterwards.

        To be called after `leases` were read: a holder that takes memory and gives its lease back meanwhile is then seen in
        one or the other.
        """
        known = {device.uuid for device in devices.values()}
        now = {
            index: device for index, device in _healthy(list_visible(self._provider)).items() if device.uuid in known
        }
        devices.clear()
        devices.update(now)
        return offers(devices, leases, socket.gethostname(), reserved=self._reserve)

    def _need(self, task: str, min_memory_mb: int | None) -> int:
        if task not in self._required:
            raise KeyError(f"task {task!r} has no known need of memory; known: {', '.join(sorted(self._required))}")
        return (
            self._required[task] if min_memory_mb is None else whole_number("min_memory_mb", min_memory_mb, at_least=1)
        )

    def _offers(self, devices: Mapping[int, Device], without: Collection[int] = ()) -> list[Offer]:
        leases = self._account.live(resources_of(devices, socket.gethostname())) if devices else []
        return offers(devices, leases, socket.gethostname(), reserved=self._reserve, without=without)

    def _picked(self, gpu_indices: Sequence[int]) -> dict[int, Device]:
        # NumPy's arrays are no sequences; of other than one dimension, and of other than integers, no element is an index.
        listed = gpu_indices.tolist() if hasattr(gpu_indices, "tolist") else gpu_indices
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise ValidationError(f"gpu_indices must be a sequence of whole numbers, not {gpu_indices!r}")
        devices = self._devices() if listed else {}
        for index in listed:
            if not isinstance(index, Integral) or isinstance(index, bool) or index not in devices:
                raise IndexError(f"there is no GPU {index!r} in this process; there are {sorted(devices) or 'none'}")
        return {int(index): devices[index] for index in listed}

    def _devices(self) -> dict[int, Device]:
        """The healthy devices of this process; faulty ones are warned about."""
        visible = list_visible(self._provider)
        for index, device in visible.items():
            if device.fault:
                logger.warning("GPU %d (%s) is left out: %s", index, device.uuid, device.fault)
        healthy = _healthy(visible)
        _publish_free_memory(healthy)
        return healthy


def _checked_requirements(required_memory: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(required_memory, Mapping):
        raise ValidationError(f"required_memory must map tasks to MB, not {required_memory!r}")
    for task in required_memory:
        short_text("each task of required_memory", task, at_most=LONGEST_PURPOSE)
    return {
        task: whole_number(f"required_memory[{task!r}]", need, at_least=1) for task, need in required_memory.items()
    }


def _healthy(devices: Mapping[int, Device]) -> dict[int, Device]:
    return {index: device for index, device in devices.items() if not device.fault}


def _publish_free_memory(devices: Mapping[int, Device]) -> None:
    from rayzyme.monitoring.metrics import get_metrics_collector

    for device in devices.values():
        get_metrics_collector().set_gauge("rayzyme_gpu_memory_free_mb", device.memory_free, {"device": device.uuid})


@contextmanager
def _counting_refusals() -> Iterator[None]:
    try:
        yield
    except ResourceError:
        _count("rayzyme_gpu_refusals_total")
        raise


def _count(outcome: str, times: int = 1) -> None:
    from rayzyme.monitoring.metrics import get_metrics_collector

    get_metrics_collector().increment(outcome, times)
