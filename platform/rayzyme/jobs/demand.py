"""The queued jobs that need the same, in the lines that a strategy files them in; finds the first without looking at all.

The inner order of a line does not change with time. Nor do lines that the strategy ranks change places, until it says so; of them
the first is known. Only the heads of the other lines are scored for each decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.lazy_heap import NO_TICKET, LazyHeap
from rayzyme.jobs.strategies import PriorityStrategy, View

Standing = tuple[int, float, float, int]
"""Where a job stands, the smallest first: its class, then -score, submission time, sequence."""

RESERVED, AGED, USUAL = 0, 1, 2
# Scores that are equal by their formula may differ in their last digits.
DIGITS: Final = 10
tickets: Final = count(1)


@dataclass(slots=True, eq=False)
class Entry:
    """A queued job.

    Attributes:
        job: The job.
        demand: Those that need the same, with its needs.
        ticket: Its newest filing.
        since: When it could first have started.
        is_aged: Whether it waited for so long that it goes before the usual order.
        passes: How often another was started though this one stands before it.
        passed_since: When that first happened.
        counted: How many of its demand's passes were looked at for that.
    """

    job: Job
    demand: Demand
    ticket: int = NO_TICKET
    since: float = 0.0
    is_aged: bool = False
    passes: int = 0
    passed_since: float = float("inf")
    counted: int = 0


Pass = tuple[float, Standing, Entry]


@dataclass(slots=True, eq=False)
class _Line:
    order: Hashable
    name: Hashable
    jobs: LazyHeap[Entry] = field(default_factory=LazyHeap)
    ticket: int = NO_TICKET
    rank: float | None = None


@dataclass(slots=True, eq=False)
class Demand:
    """The queued jobs that need the same.

    Attributes:
        key: What each of them needs, as a key.
        needs: The same.
        quotas: The part of it that is the owner's quotas.
        strategy: What orders them.
        view: What it looks at.
        passes: The newest starts that passed a head of theirs: when, where the started job stood, and that head.
        passed: How many there were ever.
        heads: Those of them that were the head when that happened, the first first.
        size: How many there are.
        reserved: The one that what it needs is reserved for; it is in no line.
        paused_until: The store refused a start although this seemed to fit: not before then again.
    """

    key: Hashable
    needs: Resources
    quotas: Resources
    strategy: PriorityStrategy
    view: View
    passes: deque[Pass]
    passed: int = 0
    heads: dict[Entry, None] = field(default_factory=dict)
    size: int = 0
    reserved: Entry | None = None
    paused_until: float = float("-inf")
    _aged: LazyHeap[Entry] = field(default_factory=LazyHeap)
    _lines: dict[tuple[Hashable, Hashable], _Line] = field(default_factory=dict)
    _ranked: LazyHeap[_Line] = field(default_factory=LazyHeap)
    _unranked: dict[Hashable, dict[Hashable, _Line]] = field(default_factory=dict)

    def file(self, entry: Entry, now: float) -> None:
        """Put a job, which has a new ticket, where it belongs now."""
        if entry.is_aged:
            self._aged.push(0.0, entry.job, entry, self.size)
            return
        for place, name, order in self.strategy.lines(entry.job, self.view, now):
            line = self._lines.get((order, name))
            if line is None:
                line = self._lines[order, name] = _Line(order, name)
            if line.jobs.push(round(place, DIGITS), entry.job, entry, self.size):
                self._rank(line)

    def clear(self) -> None:
        """Forget all lines; every job is filed anew."""
        self._lines.clear()
        self._unranked.clear()
        self._ranked = LazyHeap()

    def rank_again(self, name: Hashable) -> None:
        """A line's rank may have changed."""
        line = self._lines.get((None, name))
        if line is None or (head := line.jobs.first()) is None:
            return
        if line.rank != self.strategy.rank(head.job, self.view):
            self._rank(line)

    def head(self, now: float) -> tuple[Standing, Entry] | None:
        """The first of the jobs in line, and where it stands."""
        first = self._aged.first()
        if first is not None:
            return self.standing(first, now), first
        first = self._first_ranked()
        place = 0.0 if first is None else self._place(first.job, now)
        emptied = []
        for line in self._unranked.get(self.strategy.order(self.view), {}).values():
            entry = line.jobs.first()
            if entry is None:
                emptied.append(line)
                continue
            other = self._place(entry.job, now)
            if first is None or other < place or (other == place and _age(entry.job) < _age(first.job)):
                first, place = entry, other
        for line in emptied:
            self._rank(line)
        return None if first is None else ((USUAL, place, *_age(first.job)), first)

    def standing(self, entry: Entry, now: float) -> Standing:
        """Where a job stands among all jobs, of any demand."""
        if self.reserved is entry:
            return (RESERVED, float(entry.ticket), *_age(entry.job))
        if entry.is_aged:
            return (AGED, 0.0, *_age(entry.job))
        return (USUAL, self._place(entry.job, now), *_age(entry.job))

    def _place(self, job: Job, now: float) -> float:
        view, key = self.view, self.strategy.alike(job)
        if key is None or now != view.scores_at:
            return -round(self.strategy.score(job, view, now), DIGITS)
        place = view.scores.get(key)
        if place is None:
            place = view.scores[key] = -round(self.strategy.score(job, view, now), DIGITS)
        return place

    def _first_ranked(self) -> Entry | None:
        while (line := self._ranked.first()) is not None:
            entry = line.jobs.first()
            if entry is not None and entry.job.sequence == self._ranked.first_sequence():
                return entry
            self._rank(line)
        return None

    def _rank(self, line: _Line) -> None:
        """Have a line where its head belongs; without one it goes."""
        line.ticket = next(tickets)
        head = line.jobs.first()
        line.rank = rank = None if head is None else self.strategy.rank(head.job, self.view)
        if head is None:
            del self._lines[line.order, line.name]
        if head is not None and rank is None:
            self._unranked.setdefault(line.order, {})[line.name] = line
            return
        self._unranked.get(line.order, {}).pop(line.name, None)
        if head is not None and rank is not None:
            self._ranked.push(round(rank, DIGITS), head.job, line, len(self._lines))


def _age(job: Job) -> tuple[float, int]:
    return job.submitted_at, job.sequence
