"""Why a job waits, in figures and in sentences, read off the same queue and capacity that the decisions are made from."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from rayzyme.jobs.capacity import Capacity, fits, subtract
from rayzyme.jobs.choosing import Chooser
from rayzyme.jobs.demand import Entry
from rayzyme.jobs.durations import DurationBook
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.queue import JobQueue
from rayzyme.jobs.scheduling_config import is_quota, quota_owner
from rayzyme.jobs.states import JobState

_LISTED: Final = 5


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a job needs more of than is free.

    Attributes:
        resource: What.
        needed: How much the job needs.
        free: How much is free.
        total: How much there is; less than `needed` when waiting does not help.
        holders: Ids of the jobs that hold the rest.
        reserved_for: Ids of the jobs that what is free is reserved for.
    """

    resource: str
    needed: float
    free: float
    total: float
    holders: tuple[str, ...]
    reserved_for: tuple[str, ...] = ()

    @property
    def missing(self) -> float:
        """How much more must become free."""
        return self.needed - self.free


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a job stands and what it waits for. Times are seconds since 1970, UTC.

    Attributes:
        job_id: The job.
        state: Its state.
        position: Where it stands among the jobs that only wait for room, from 1; None where it is none of them.
        waiting: How many those are.
        strategy: What orders them.
        lacking: What it lacks.
        is_reserved: Whether what it needs is reserved for it.
        times_passed_over: How often another job was started that stands behind it.
        next_try_at: Before when it is not tried.
        expected_start: Earliest and latest expected time of its start, as far as that can be told: the first if only what
            runs now had to make room, the second if all that stand before it go first, one by one in their order.
        sentences: The same for people.
    """

    job_id: str
    state: JobState
    position: int | None
    waiting: int
    strategy: str
    lacking: tuple[Lack, ...]
    is_reserved: bool
    times_passed_over: int
    next_try_at: float | None
    expected_start: tuple[float, float] | None
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, times in ISO 8601."""
        start = self.expected_start
        return asdict(self) | {
            "state": self.state.value,
            "next_try_at": None if self.next_try_at is None else _time(self.next_try_at),
            "expected_start": None if start is None else [_time(moment) for moment in start],
        }

    def to_text(self) -> str:
        """For people, one sentence a line."""
        return "\n".join(self.sentences)


def explain(
    job: Job,
    queue: JobQueue,
    capacity: Capacity,
    chooser: Chooser,
    jobs: Mapping[str, Job],
    now: float,
    is_draining: bool,
) -> Explanation:
    """Why `job`, which is queued or runs, does what it does now."""
    entry = queue.entries.get(job.job_id)
    if entry is None:
        since = "" if job.started_at is None else f" since {_time(job.started_at)}"
        sentence = f"{job.job_id} is {job.state}{since}, attempt {job.attempt}."
        return Explanation(
            job.job_id, job.state, None, 0, queue.strategy.name, (), False, 0, None, None, (sentence,)
        )  # fmt: skip
    chooser.count_passes(entry)
    order = queue.in_order(now)
    position = order.index(entry) + 1 if queue.may_start(entry, now) else None
    lacking = _lacking(entry, capacity, chooser)
    delays = [time for time in (job.not_before, entry.demand.paused_until) if time is not None and time > now]
    expected = None
    if not job.is_held and not is_draining and capacity.suffices(entry.demand.needs):
        ahead = order if position is None else order[: position - 1]
        durations = queue.view.durations
        ends = list(_expected_ends(capacity, jobs, durations, now))
        earliest = max([_start_after((), entry, capacity, ends, durations, now), *delays])
        expected = (earliest, max(earliest, _start_after(ahead, entry, capacity, ends, durations, now)))
    facts = Explanation(
        job_id=job.job_id,
        state=job.state,
        position=position,
        waiting=len(order),
        strategy=queue.strategy.name,
        lacking=lacking,
        is_reserved=job.job_id in chooser.reserved,
        times_passed_over=entry.passes,
        next_try_at=max(delays, default=None),
        expected_start=expected,
        sentences=(),
    )
    return replace(facts, sentences=tuple(_sentences(facts, entry, is_draining)))


def _lacking(entry: Entry, capacity: Capacity, chooser: Chooser) -> tuple[Lack, ...]:
    unreserved, _ = chooser.unreserved(before=entry)
    lacks = []
    for resource, needed in entry.demand.needs.items():
        free = max(0.0, unreserved[resource])
        if fits({resource: needed}, unreserved):
            continue
        reserved = tuple(
            job_id
            for job_id, other in chooser.reserved.items()
            if other is not entry and unreserved[resource] < capacity.free[resource] and resource in other.demand.needs
        )
        lacks.append(
            Lack(resource, needed, free, capacity.totals[resource], tuple(capacity.holders(resource)), reserved)
        )  # fmt: skip
    return tuple(lacks)


def _expected_ends(
    capacity: Capacity, jobs: Mapping[str, Job], durations: DurationBook, now: float
) -> Iterator[tuple[float, int, Resources]]:
    for number, (job_id, needs) in enumerate(capacity.holdings.items()):
        job = jobs[job_id]
        started_at = now if job.started_at is None else job.started_at
        yield max(now, started_at + durations.expected_s(job)), number, needs


def _start_after(
    ahead: Iterable[Entry],
    entry: Entry,
    capacity: Capacity,
    ends: list[tuple[float, int, Resources]],
    durations: DurationBook,
    now: float,
) -> float:
    """When `entry` could start if all `ahead` go first in their order and everything takes as long as expected."""
    ends = list(ends)
    heapq.heapify(ends)
    free = dict(capacity.free)
    for number, other in enumerate([*ahead, entry], len(ends)):
        needs = other.demand.needs
        while ends and not fits(needs, free):
            now, _, given_back = heapq.heappop(ends)
            for resource, amount in given_back.items():
                free[resource] += amount
        if fits(needs, free):
            subtract(needs, free)
            heapq.heappush(ends, (now + durations.expected_s(other.job), number, needs))
    return now


def _sentences(facts: Explanation, entry: Entry, is_draining: bool) -> Iterator[str]:
    job = entry.job
    if is_draining:
        yield "The scheduler is draining: nothing more starts."
    if job.is_held:
        yield f"{job.job_id} is held: it waits until it is released."
    if facts.next_try_at is not None:
        yield f"It is tried again at {_time(facts.next_try_at)}, not before."
    if job.site_faults:
        yield f"It lost its worker {job.site_faults} of at most {job.max_site_faults} times."
    if facts.position is not None:
        why = "because it waited for so long" if entry.is_aged else f"by the strategy {facts.strategy}"
        yield f"It is number {facts.position} of {facts.waiting} waiting jobs, {why}."
    yield from map(_lack_sentence, facts.lacking)
    if facts.is_reserved:
        yield (
            f"It was passed over {facts.times_passed_over} times, so what it needs is reserved for it: "
            "it goes first when that is free."
        )
    if facts.expected_start is not None:
        earliest, latest = map(_time, facts.expected_start)
        yield (
            f"It is expected to start at {earliest}."
            if earliest == latest
            else f"It is expected to start between {earliest} and {latest}, if nothing comes that goes before it."
        )


def _lack_sentence(lack: Lack) -> str:
    if is_quota(lack.resource):
        return (
            f"Its owner {quota_owner(lack.resource)} has reached the quota {lack.resource.split(':')[1]} "
            f"of {lack.total:g}; {_held(lack)}."
        )
    if lack.needed > lack.total:
        return f"It needs {lack.needed:g} {lack.resource} and there are {lack.total:g} in all; it waits until there are more."
    rest = f"{lack.free:g} of {lack.total:g} are free"
    sentence = f"It lacks {lack.missing:g} {lack.resource}: it needs {lack.needed:g}, and {rest}"
    if lack.reserved_for:
        sentence += f", because some are reserved for {_listed(lack.reserved_for)}"
    return f"{sentence}; {_held(lack)}."


def _held(lack: Lack) -> str:
    return f"the others are held by {_listed(lack.holders)}" if lack.holders else "nobody holds any"


def _listed(job_ids: tuple[str, ...]) -> str:
    listed = ", ".join(job_ids[:_LISTED])
    return listed if len(job_ids) <= _LISTED else f"{listed} and {len(job_ids) - _LISTED} more"


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
