"""Which queued job starts next, given what is free: the first that fits, and nobody is passed over for ever.

A job that does not fit may be passed over `max_bypass` times, or for `reserve_after` seconds. From then on what it needs is
reserved: jobs that leave all of that free still start, and it goes first as soon as it fits. There is one reservation for each
set of needs; jobs that need the same have their turn after it. Passes are counted for the first of those that need the same, and
for the others as far as the newest of these passes tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from rayzyme.jobs.capacity import Capacity, fits, subtract
from rayzyme.jobs.demand import Demand, Entry, Standing
from rayzyme.jobs.queue import JobQueue
from rayzyme.jobs.scheduling_config import SchedulingConfig

Head = tuple[Standing, Entry]


class Chooser:
    """Chooses from a queue within a capacity.

    Attributes:
        reserved: Jobs that have a reservation, those that got it first first.
    """

    def __init__(self, queue: JobQueue, capacity: Capacity, config: SchedulingConfig) -> None:
        """Choose by the rules of `config`."""
        self._queue, self._capacity, self._config = queue, capacity, config
        self.reserved: dict[str, Entry] = {}

    def next_start(self, now: float) -> Entry | None:
        """The job to start now, None where none fits. It is to be taken out of the queue."""
        while True:
            free, first = self.unreserved()
            if first is not None:
                return first
            fitting: list[Demand] = []
            others: list[Demand] = []
            for demand in self._queue.demands.values():
                if demand.paused_until <= now:
                    (fitting if fits(demand.needs, free) else others).append(demand)
            if not fitting:
                return None
            self._queue.view.load = self._capacity.load()
            best = min(self._heads(fitting, now), default=None)
            if best is None:
                return None
            behind = (demand for demand in others if demand.reserved is None)
            passed = [head for head in self._heads(behind, now) if head[0] < best[0] and self._may_wait(head[1].demand)]
            due = [first for _, head in passed if (first := self._due(head, best[0], now)) is not None]
            if not due:
                for _, head in passed:
                    self._pass(head, best[0], now)
                return best[1]
            for entry in due:
                self._queue.reserve(entry)
                self.reserved[entry.job.job_id] = entry

    def unreserved(self, before: Entry | None = None) -> tuple[dict[str, float], Entry | None]:
        """What is free and not reserved; or the first job that has a reservation and fits.

        Args:
            before: Count only reservations that were made before this job's.
        """
        free = self._capacity.free
        if not self.reserved:
            return free, None
        free = dict(free)
        for entry in self.reserved.values():
            if entry is before:
                break
            if not self._may_wait(entry.demand):
                continue
            if fits(entry.demand.needs, free):
                return free, entry
            subtract(entry.demand.needs, free)
        return free, None

    def forget(self, job_id: str) -> None:
        """The job waits no more; drop its reservation."""
        self.reserved.pop(job_id, None)

    def count_passes(self, entry: Entry) -> None:
        """Bring a job's passes up to date. Those of others with the same needs are its own where it stood before them as well.

        Beyond `max_bypass` more of them tell nothing more.
        """
        demand = entry.demand
        for at, by, head in islice(reversed(demand.passes), demand.passed - entry.counted):
            if entry.passes >= self._config.max_bypass:
                break
            if head is entry or (at >= entry.since and demand.standing(entry, at) < by):
                entry.passes += 1
                entry.passed_since = min(entry.passed_since, at)
        entry.counted = demand.passed

    def _heads(self, demands: Iterable[Demand], now: float) -> list[Head]:
        return [head for demand in demands if (head := demand.head(now)) is not None]

    def _may_wait(self, demand: Demand) -> bool:
        """Nobody is to wait for what cannot be had, or for what only other jobs of the same owner can give back."""
        return self._capacity.suffices(demand.needs) and fits(demand.quotas, self._capacity.free)

    def _due(self, head: Entry, best: Standing, now: float) -> Entry | None:
        """Which one of a demand was passed over often enough, if the head or one that was the head would be again."""
        demand, config = head.demand, self._config
        if head not in demand.heads:
            self.count_passes(head)
            demand.heads[head] = None
        for entry in demand.heads:
            is_due = entry.passes >= config.max_bypass or now - entry.passed_since >= config.reserve_after
            if is_due and demand.standing(entry, now) < best:
                return entry
        return None

    def _pass(self, head: Entry, by: Standing, now: float) -> None:
        """A job that stands `by` starts before this one, and before those of its demand that were its head and stand so too."""
        demand = head.demand
        demand.passes.append((now, by, head))
        demand.passed += 1
        for entry in demand.heads:
            if entry is head or demand.standing(entry, now) < by:
                entry.passes += 1
                entry.passed_since = min(entry.passed_since, now)
            entry.counted = demand.passed
