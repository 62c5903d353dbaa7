"""The jobs that wait, filed so that the first of ten thousand is found without looking at them all.

Jobs that need the same make a demand: what does not fit is skipped as a whole. A job's place holds until a time that is
known when it is filed; it is filed anew then.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable

from rayzyme.jobs.demand import Demand, Entry, Pass, tickets
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.lazy_heap import NO_TICKET, LazyHeap
from rayzyme.jobs.scheduling_config import is_quota
from rayzyme.jobs.strategies import PriorityStrategy, View

_NEVER = float("inf")


class JobQueue:
    """All queued jobs, those included that may not start yet.

    Attributes:
        entries: By job id.
        demands: By what they need.
        strategy: What orders them.
        view: What it looks at.
    """

    def __init__(self, strategy: PriorityStrategy, view: View, *, max_wait: float, kept_passes: int) -> None:
        """An empty queue; `max_wait` as `SchedulingConfig` has it, `kept_passes` for each demand."""
        self.strategy, self.view = strategy, view
        self._max_wait, self._kept_passes = max_wait, kept_passes
        self.entries: dict[str, Entry] = {}
        self.demands: dict[Hashable, Demand] = {}
        self._timers: LazyHeap[Entry] = LazyHeap()
        self._delayed: LazyHeap[Entry] = LazyHeap()
        self._submissions: list[tuple[float, int]] = []
        self._basis = strategy.basis(view)
        view.fifo_rank = self.fifo_rank

    def add(self, job: Job, needs: Resources, now: float) -> None:
        """Queue a job, or take its changed form."""
        old = self.entries.get(job.job_id)
        self.remove(job.job_id)
        key = tuple(sorted(needs.items()))
        demand = self.demands.get(key)
        if demand is None:
            quotas = {resource: amount for resource, amount in needs.items() if is_quota(resource)}
            passes: deque[Pass] = deque(maxlen=self._kept_passes)
            demand = self.demands[key] = Demand(key, needs, quotas, self.strategy, self.view, passes)
        demand.size += 1
        entry = self.entries[job.job_id] = Entry(job, demand, since=now, counted=demand.passed)
        if old is not None:
            entry.since, entry.passes, entry.passed_since = old.since, old.passes, old.passed_since
        insort(self._submissions, (job.submitted_at, job.sequence))
        self._file(entry, now)

    def remove(self, job_id: str) -> None:
        """Take a job out, if it is here."""
        entry = self.entries.pop(job_id, None)
        if entry is None:
            return
        entry.ticket = NO_TICKET
        demand = entry.demand
        demand.size -= 1
        demand.heads.pop(entry, None)
        if demand.reserved is entry:
            demand.reserved = None
        if not demand.size:
            del self.demands[demand.key]
        del self._submissions[bisect_left(self._submissions, (entry.job.submitted_at, entry.job.sequence))]

    def advance(self, now: float) -> None:
        """File anew what time, or what all places depend on, has moved."""
        if now != self.view.scores_at:
            self.view.renew(now)
        basis = self.strategy.basis(self.view)
        if basis != self._basis:
            self._basis = basis
            for demand in self.demands.values():
                demand.clear()
            for entry in self.entries.values():
                if entry.demand.reserved is not entry:
                    self._file(entry, now)
        for heap in (self._timers, self._delayed):
            while (due := heap.first()) is not None and heap.first_place() <= now:
                self._file(due, now)

    def note_change(self, job: Job) -> None:
        """What the strategy knows of jobs like one that has begun or ended has changed."""
        self.view.renew(self.view.scores_at)
        for line in self.strategy.moved_lines(job, self.view):
            for demand in self.demands.values():
                demand.rank_again(line)

    def next_start_time(self) -> float | None:
        """When the first of the jobs that wait for a time may start."""
        return None if self._delayed.first() is None else self._delayed.first_place()

    def reserve(self, entry: Entry) -> None:
        """Take a job out of its lines, for what it needs is reserved."""
        entry.demand.reserved = entry
        entry.demand.heads.pop(entry, None)
        entry.ticket = next(tickets)

    def may_start(self, entry: Entry, now: float) -> bool:
        """Whether only room keeps a job from starting."""
        return not entry.job.is_held and (entry.job.not_before is None or entry.job.not_before <= now)

    def in_order(self, now: float) -> list[Entry]:
        """All jobs that only wait for room, in the order in which they would be taken now."""
        ready = [entry for entry in self.entries.values() if self.may_start(entry, now)]
        return sorted(ready, key=lambda entry: entry.demand.standing(entry, now))

    def fifo_rank(self, job: Job) -> float:
        """Where a job stands by its submission: 1 for the first, down to 1/n for the last of n."""
        older = bisect_left(self._submissions, (job.submitted_at, job.sequence))
        return 1.0 - older / max(1, len(self._submissions))

    def _file(self, entry: Entry, now: float) -> None:
        entry.ticket = next(tickets)
        job = entry.job
        if job.is_held:
            return
        if job.not_before is not None and job.not_before > now:
            entry.since = job.not_before
            self._delayed.push(job.not_before, job, entry, len(self.entries))
            return
        aged_at = job.submitted_at + self._max_wait if self._max_wait else _NEVER
        entry.is_aged = aged_at <= now
        entry.demand.file(entry, now)
        moves_at = _NEVER if entry.is_aged else min(aged_at, self.strategy.refile_at(job, now) or _NEVER)
        if moves_at < _NEVER:
            self._timers.push(moves_at, job, entry, len(self.entries))

    def check_invariants(self, now: float) -> None:
        """Recompute from the jobs alone what the lines tell."""
        assert len(self._submissions) == len(self.entries)
        assert self._submissions == sorted(
            (entry.job.submitted_at, entry.job.sequence) for entry in self.entries.values()
        )
        assert sum(demand.size for demand in self.demands.values()) == len(self.entries)
        for key, demand in self.demands.items():
            members = [entry for entry in self.entries.values() if entry.demand is demand]
            assert demand.size == len(members), f"{key}: {demand.size} are counted, {len(members)} are there"
            filed = [entry for entry in members if self.may_start(entry, now) and demand.reserved is not entry]
            head = demand.head(now)
            first = min((demand.standing(entry, now) for entry in filed), default=None)
            assert first == (None if head is None else head[0]), f"{key}: {head} is filed first, {first} stands first"
            assert demand.reserved is None or demand.reserved in members
