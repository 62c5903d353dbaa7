"""Which queued job is next: eight strategies, each a pure function from a job and what there is to know now to a score.

The order is (score desc, submission time, sequence). For the queue to find the first of many jobs without scoring them all, a
strategy also files each job in lines whose inner order no passing of time changes, so that only their heads need scoring.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple

from rayzyme.jobs.durations import DurationBook
from rayzyme.jobs.fair_share import UsageBook
from rayzyme.jobs.job import Job, TaskPriority

_HIGHEST: Final = float(max(TaskPriority))
_CAPPED_AFTER_S: Final = 3600.0
_BUSY, _IDLE = 0.7, 0.3


class Line(NamedTuple):
    """Where a job is filed.

    Attributes:
        place: Its place in the line: the smaller goes first, then the submission time, then the sequence.
        name: Which line.
        order: The order that the line belongs to, where a strategy keeps several of which one counts.
    """

    place: float
    name: Hashable = None
    order: Hashable = None


@dataclass(slots=True)
class View:
    """What a strategy may look at besides the job.

    Attributes:
        epoch: A moment near now that stays the same, for places that differ by less than times since 1970 can hold.
        max_job_size: Tasks from which on a job is as large as can be.
        usage: What owners used and run.
        durations: How long jobs are likely to take.
        weights: Shares of owners that have not 1.
        load: Part of the most used resource that is held, from 0 to 1.
        fifo_rank: Where a job stands among all queued ones by its submission, from 1 (the first) down to above 0.
        scores_at: The moment that `scores` holds for.
        scores: Scores that many jobs have alike, as long as nothing that they depend on changes.
    """

    epoch: float = 0.0
    max_job_size: int = 100
    usage: UsageBook = field(default_factory=UsageBook)
    durations: DurationBook = field(default_factory=DurationBook)
    weights: Mapping[str, float] = field(default_factory=dict)
    load: float = 0.0
    fifo_rank: Callable[[Job], float] = lambda _job: 1.0
    scores_at: float = float("-inf")
    scores: dict[Hashable, float] = field(default_factory=dict)

    def renew(self, now: float) -> None:
        """It is `now`, or something is known that was not."""
        self.scores_at = now
        self.scores.clear()

    def relative_size(self, job: Job) -> float:
        """A job's tasks as a part of the largest size, from 0 to 1."""
        return min(job.task_count / self.max_job_size, 1.0)


class PriorityStrategy(ABC):
    """One way to order jobs."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, job: Job, view: View, now: float) -> float:
        """How urgent a job is; the highest goes first."""

    @abstractmethod
    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        """Where a job is to be filed, until `refile_at`."""

    def refile_at(self, job: Job, now: float) -> float | None:
        """When a job's place in its line changes next, None for never."""
        return None

    def order(self, view: View) -> Hashable:
        """Which of its orders counts as things are; every job is in one line of each."""
        return None

    def alike(self, job: Job) -> Hashable:
        """What all jobs with the same score have in common; None where each is scored for itself."""
        return None

    def rank(self, job: Job, view: View) -> float | None:
        """Where a job's line stands among all that have a rank, the smallest first, until `moved_lines` names it.

        None where it has none, because its place among the lines changes with time: its head is scored for each decision.
        """
        return None

    def moved_lines(self, job: Job, view: View) -> tuple[Hashable, ...]:
        """Lines that may have another rank after `job` began or ended."""
        return ()

    def basis(self, view: View) -> Hashable:
        """What all places depend on: when it changes, all jobs are filed anew."""
        return None


class FirstInFirstOut(PriorityStrategy):
    """By submission."""

    name = "fifo"

    def score(self, job: Job, view: View, now: float) -> float:
        return -job.submitted_at

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        return (Line(job.submitted_at),)


class LastInFirstOut(PriorityStrategy):
    """By submission, the newest first."""

    name = "lifo"

    def score(self, job: Job, view: View, now: float) -> float:
        return job.submitted_at

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        return (Line(-job.submitted_at),)


class UserPriority(PriorityStrategy):
    """By the priority that the user gave."""

    name = "priority"

    def score(self, job: Job, view: View, now: float) -> float:
        return float(job.priority)

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        return (Line(-float(job.priority)),)


class ShortestJobFirst(PriorityStrategy):
    """By the expected duration, the shortest first.

    A line for each class of jobs that is known, ranked by its duration, one for those that are only estimated, and one for all
    others: unknown jobs take equally long.
    """

    name = "sjf"

    def score(self, job: Job, view: View, now: float) -> float:
        return -view.durations.expected_s(job)

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        durations = view.durations
        if durations.is_known(job):
            return (Line(0.0, durations.likeness(job)),)
        if job.estimated_seconds is not None:
            return (Line(job.estimated_seconds, "estimated"),)
        return (Line(durations.expected_s(job) if durations.is_empty else 0.0),)

    def rank(self, job: Job, view: View) -> float | None:
        return view.durations.expected_s(job) if view.durations.is_known(job) else None

    def moved_lines(self, job: Job, view: View) -> tuple[Hashable, ...]:
        return (view.durations.likeness(job),)

    def basis(self, view: View) -> Hashable:
        return view.durations.is_empty, view.durations.known_classes


class Weighted(PriorityStrategy):
    """Half by priority, three tenths by the wait up to an hour, a fifth by smallness.

    All waits of less than an hour grow alike, so those jobs keep their order; so do those that waited longer.
    """

    name = "weighted"
    _PRIORITY, _WAIT, _SIZE = 0.5, 0.3, 0.2

    def score(self, job: Job, view: View, now: float) -> float:
        waited = min((now - job.submitted_at) / _CAPPED_AFTER_S, 1.0)
        return (
            self._PRIORITY * job.priority / _HIGHEST
            + self._WAIT * waited
            + self._SIZE * (1.0 - view.relative_size(job))
        )

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        is_capped = self.refile_at(job, now) is None
        at = job.submitted_at + _CAPPED_AFTER_S if is_capped else view.epoch
        return (Line(-self.score(job, view, at), is_capped),)

    def refile_at(self, job: Job, now: float) -> float | None:
        capped_at = job.submitted_at + _CAPPED_AFTER_S
        return capped_at if now < capped_at else None


class FairShare(PriorityStrategy):
    """By what the owner used lately and runs now, in relation to the owner's share. A line for each owner.

    What all owners used is forgotten alike, so owners of whom nothing runs keep their order.
    """

    name = "fair_share"

    def score(self, job: Job, view: View, now: float) -> float:
        return -view.usage.charge(job.owner, now) / view.weights.get(job.owner, 1.0)

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        return (Line(0.0, job.owner),)

    def alike(self, job: Job) -> Hashable:
        return job.owner

    def rank(self, job: Job, view: View) -> float | None:
        if view.usage.running(job.owner):
            return None
        return view.usage.log2_of_ended(job.owner, view.epoch) - math.log2(view.weights.get(job.owner, 1.0))

    def moved_lines(self, job: Job, view: View) -> tuple[Hashable, ...]:
        return (job.owner,)


class EarliestDeadlineFirst(PriorityStrategy):
    """By the deadline; jobs without one come after all that have one."""

    name = "edf"

    def score(self, job: Job, view: View, now: float) -> float:
        return float("-inf") if job.deadline is None else -(job.deadline - now)

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        return (Line(float("inf") if job.deadline is None else job.deadline),)


class Adaptive(PriorityStrategy):
    """Small jobs first under high load, large ones under low load, otherwise by submission; three tenths by priority.

    For each priority a line of each of these orders, of which the load chooses one.
    """

    name = "adaptive"

    def score(self, job: Job, view: View, now: float) -> float:
        order = self.order(view)
        if order == "small":
            place = 1.0 - view.relative_size(job)
        else:
            place = view.relative_size(job) if order == "large" else view.fifo_rank(job)
        return 0.7 * place + 0.3 * job.priority / _HIGHEST

    def lines(self, job: Job, view: View, now: float) -> tuple[Line, ...]:
        size = view.relative_size(job)
        return (
            Line(size, job.priority, "small"),
            Line(-size, job.priority, "large"),
            Line(job.submitted_at, job.priority, "fifo"),
        )

    def order(self, view: View) -> str:
        return "small" if view.load > _BUSY else "large" if view.load < _IDLE else "fifo"


STRATEGIES: Final[Mapping[str, type[PriorityStrategy]]] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            FirstInFirstOut,
            LastInFirstOut,
            UserPriority,
            ShortestJobFirst,
            Weighted,
            FairShare,
            EarliestDeadlineFirst,
            Adaptive,
        )
    }
)


def create_priority_strategy(name: str) -> PriorityStrategy:
    """The strategy of that name.

    Raises:
        ValueError: There is none; the message lists the names, and tells the nearest.
    """
    if name not in STRATEGIES:
        near = difflib.get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no priority strategy {name!r}; there are {', '.join(STRATEGIES)}{hint}")
    return STRATEGIES[name]()
