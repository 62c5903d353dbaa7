"""Memory of this machine: what may still be taken, limits of containers and jobs respected, and what is promised to whom.

Promises are leases in the ledger, as for GPUs: they bind every Rayzyme process on this machine, and a process that dies
frees its own. Figures are MB of 2^20 bytes where a name says mb, else bytes.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rayzyme.checks import short_text, whole_number
from rayzyme.errors import ResourceError, ValidationError
from rayzyme.resources.account import Account
from rayzyme.resources.allocation import still_promised
from rayzyme.resources.control_groups import memory_limits
from rayzyme.resources.leases import LONGEST_PURPOSE, Share
from rayzyme.resources.ledger import LeaseLedger

if TYPE_CHECKING:
    from rayzyme.database import Database

logger = logging.getLogger(__name__)

_MB: Final = 1 << 20
_LARGEST: Final = sys.float_info.max


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The memory that this process lives in: the machine's, or less where the limit of a container or a job is lower.

    Attributes:
        total: Bytes.
        available: Bytes that can be taken before the machine swaps or the limit kills.
    """

    total: int
    available: int


def system_memory(root: Path = Path("/")) -> SystemMemory:
    """The memory as it is now, within the limits of the control groups that the file system `root` tells of."""
    import psutil

    machine = psutil.virtual_memory()
    limits = memory_limits(root)
    return SystemMemory(
        total=min([int(machine.total), *(limit.total for limit in limits)]),
        available=min([int(machine.available), *(limit.available for limit in limits)]),
    )


def available_memory() -> int:
    """Bytes that can be taken before the machine swaps or the limit of a container or a job kills, whichever comes first."""
    return system_memory().available


def resident_mb(pids: Collection[int]) -> dict[int, int]:
    """MB that each process holds in memory now; one that is gone holds none and is left out."""
    import psutil

    resident = {}
    for pid in pids:
        try:
            resident[pid] = int(psutil.Process(pid).memory_info().rss) // _MB
        except psutil.Error:
            continue
    return resident


class MemoryManager:
    """Suggests batch sizes, and promises memory to tasks. Safe under threads and processes."""

    def __init__(
        self,
        reserve_ratio: float = 0.2,
        store: Database | LeaseLedger | None = None,
        measure: Callable[[], SystemMemory] = system_memory,
        resident: Callable[[Collection[int]], Mapping[int, int]] = resident_mb,
    ) -> None:
        """Manage the memory of this machine. The database is opened when memory is first promised or its promises read.

        Args:
            reserve_ratio: Share of the available memory (0 to 1) that is left alone.
            store: Database, or ledger, of the leases; None: the settings' database.
            measure: Measures the memory.
            resident: Measures what processes hold of it, in MB by process id.

        Raises:
            ValidationError: Names the argument.
        """
        self._reserve_ratio = _ratio("reserve_ratio", reserve_ratio)
        self._account = Account(store)
        self._measure = measure
        self._resident = resident

    def available_mb(self) -> int:
        """MB that this machine has to give, the reserve left alone; promises are not looked at."""
        return int(self._unreserved_mb())

    def suggest_batch_size(
        self, item_memory_mb: float, max_batch_size: int = 1024, memory_reserve_ratio: float = 0.2
    ) -> int:
        """How many items fit into what this machine has to give, from 1 to `max_batch_size`.

        Args:
            item_memory_mb: MB of one item; 0 for items that take none.
            max_batch_size: The largest answer.
            memory_reserve_ratio: Share (0 to 1) of what is available that the batch leaves to others.

        Raises:
            ValidationError: Names the argument.
        """
        largest = whole_number("max_batch_size", max_batch_size, at_least=1)
        usable = self._unreserved_mb() * (1 - _ratio("memory_reserve_ratio", memory_reserve_ratio))
        item = _amount("item_memory_mb", item_memory_mb)
        return largest if item == 0 else max(1, min(largest, int(min(usable / item, largest))))

    def allocate(self, task: str, memory_mb: int) -> bool:
        """Promise memory to a task until `release`; the same again for a task that this process holds.

        Args:
            task: Any name.
            memory_mb: MB.

        Returns:
            False where that much cannot be promised; a warning says what can.

        Raises:
            ResourceError: The task is held with less.
            ValidationError: Names the argument.
            DatabaseError: The lease cannot be written now.
        """
        need = whole_number("memory_mb", memory_mb, at_least=1)
        short_text("task", task, at_most=LONGEST_PURPOSE)
        available = 0

        def decide(leases: Sequence[Share]) -> list[tuple[str, float]]:
            nonlocal available
            available = self._unpromised(leases)
            return [(_resource(), need)] if need <= available else []

        def accept(shares: Sequence[Share]) -> None:
            if shares[0].amount < need:
                held = f"{shares[0].amount:,.0f}"
                raise ResourceError(f"{need:,} MB are asked for {task!r}, which holds {held} MB; release it first")

        _key, holding = self._account.acquire([_resource()], decide, purpose=task, key=("memory", task), accept=accept)
        if not holding.shares:
            logger.warning(
                "no memory for %r: it needs %s MB, and %s MB can be promised", task, f"{need:,}", f"{available:,}"
            )
            return False
        return True

    def release(self, task: str) -> bool:
        """Give back what this process holds for a task; False where it holds nothing."""
        return self._account.release(("memory", task))

    def get_stats(self) -> dict[str, Any]:
        """The memory and who it is promised to, on this machine, in MB: system_memory, allocations, available_for_allocation_mb.

        Tasks of one name are summed up, whichever process holds them.
        """
        memory, leases = self._measure(), self._account.live([_resource()])
        tasks: dict[str, int] = {}
        for lease in leases:
            tasks[lease.purpose] = tasks.get(lease.purpose, 0) + round(lease.amount)
        used = memory.total - memory.available
        return {
            "system_memory": {
                "total_mb": memory.total // _MB,
                "available_mb": memory.available // _MB,
                "used_mb": used // _MB,
                "percent": round(100 * used / memory.total, 1),
            },
            "allocations": {"total_allocated_mb": sum(tasks.values()), "task_count": len(tasks), "tasks": tasks},
            "available_for_allocation_mb": max(0, self._unpromised(leases)),
        }

    def close(self) -> None:
        """Give back what no other manager of this process holds too."""
        self._account.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _unreserved_mb(self) -> float:
        return self._measure().available / _MB * (1 - self._reserve_ratio)

    def _unpromised(self, leases: Sequence[Share]) -> int:
        return self.available_mb() - still_promised(leases, self._resident({lease.pid for lease in leases}))


def get_memory_manager() -> MemoryManager:
    """The manager of this process, always the same, with the reserve of the settings (`resources.memory.reserve_ratio`).

    Settings that changed since the last call take effect, and drop no promise; what is promised stays in the database in
    which this manager began, until its `close`.
    """
    from rayzyme.settings import get_settings

    _of_this_process._reserve_ratio = get_settings().resources.memory.reserve_ratio
    return _of_this_process


def _resource() -> str:
    return f"memory:{socket.gethostname()}"


def _ratio(name: str, value: float) -> float:
    if not 0 <= _amount(name, value) <= 1:
        raise ValidationError(f"{name} must be between 0 and 1, not {value!r}")
    return float(value)


def _amount(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= _LARGEST:
        raise ValidationError(f"{name} must be a finite number of at least 0, not {value!r}")
    return float(value)


# Made with the module, so that no two threads can make two.
_of_this_process: Final = MemoryManager()
