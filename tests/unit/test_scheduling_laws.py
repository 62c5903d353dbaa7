"""Laws that hold under every strategy, whatever happens in whatever order.

A second book of jobs is kept here, in the plainest way: lists that are sorted and sums that are added up again each time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.queued_jobs import NOON, queued, started

from rayzyme.jobs.durations import DurationBook, JobDuration
from rayzyme.jobs.fair_share import UsageBook
from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT, OwnerQuota, SchedulingConfig
from rayzyme.jobs.scheduling_events import (
    Cancel,
    CancelRequested,
    CapacityChanged,
    Command,
    Event,
    Fail,
    Finished,
    Held,
    Lost,
    Queued,
    Requeue,
    Start,
    StartRefused,
    Stop,
    Tick,
    Unheld,
)
from rayzyme.jobs.states import JobState
from rayzyme.jobs.strategies import STRATEGIES, View, create_priority_strategy

CLUSTER = {"gpu": 2.0, "memory_mb": 1000.0}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
WITHOUT_RESERVATIONS = {"max_bypass": 10**6, "reserve_after": 1e12}


@dataclass
class Book:
    """What must be true, kept beside the machine."""

    config: SchedulingConfig
    now: float = NOON
    cluster: dict[str, float] = field(default_factory=lambda: dict(CLUSTER))
    queue: dict[str, Job] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    usage: UsageBook = field(default_factory=UsageBook)
    durations: DurationBook = field(default_factory=DurationBook)
    passes: dict[str, int] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)

    def free(self) -> dict[str, float]:
        totals = {SLOT: float(self.config.max_concurrent_jobs), **self.cluster}
        needs = [self.config.needs(job) for job in self.running.values()]
        names = {name for job in [*self.queue.values(), *self.running.values()] for name in self.config.needs(job)}
        for name in names - set(totals):
            totals[name] = self.config.quota_capacity(name) or 0.0
        return {name: total - sum(need.get(name, 0.0) for need in needs) for name, total in totals.items()}

    def ready(self) -> list[Job]:
        return [job for job in self.queue.values() if not job.is_held and (job.not_before or 0.0) <= self.now]

    def fits(self, job: Job) -> bool:
        free = self.free()
        return all(amount <= free[name] for name, amount in self.config.needs(job).items())

    def in_order(self) -> list[Job]:
        """All that may start, sorted: those that waited too long, then by score, submission time and sequence."""
        totals, free = {SLOT: self.config.max_concurrent_jobs, **self.cluster}, self.free()
        oldest_first = sorted((job.submitted_at, job.sequence) for job in self.queue.values())

        def rank(job: Job) -> float:
            return 1.0 - oldest_first.index((job.submitted_at, job.sequence)) / len(oldest_first)

        view = View(
            epoch=NOON, max_job_size=self.config.max_job_size, usage=self.usage, durations=self.durations,
            load=max(min(1.0, 1 - free[name] / total) for name, total in totals.items() if total), fifo_rank=rank,
        )  # fmt: skip
        strategy = create_priority_strategy(self.config.strategy)

        def standing(job: Job) -> tuple[bool, float, float, int]:
            is_aged = bool(self.config.max_wait) and job.submitted_at + self.config.max_wait <= self.now
            score = 0.0 if is_aged else round(strategy.score(job, view, self.now), 10)
            return not is_aged, -score, job.submitted_at, job.sequence

        return sorted(self.ready(), key=standing)

    def take(self, command: Command) -> None:
        """Carry a command out."""
        match command:
            case Start(job_id, attempt):
                self._note_passes(self.queue[job_id])
                job = self.queue.pop(job_id)
                assert attempt == job.attempt + 1
                assert job_id not in self.over
                self.running[job_id] = replace(
                    job, state=JobState.RUNNING, attempt=attempt, started_at=self.now, not_before=None
                )
                self.usage.begin(job_id, job.owner, self.config.needs(job), self.now)
                assert all(left >= 0 or name in CLUSTER for name, left in self.free().items())
            case Requeue(job_id, attempt, _, not_before, site_faults):
                job = self.running.pop(job_id)
                assert attempt == job.attempt
                self.usage.end(job_id, self.now)
                self.queue[job_id] = replace(job, state=JobState.QUEUED, not_before=not_before, site_faults=site_faults)
            case Cancel(job_id):
                self.over.add(self.queue.pop(job_id).job_id)
            case Fail(job_id):
                self.over.add(self.running.pop(job_id).job_id)
                self.usage.end(job_id, self.now)
            case Stop(job_id):
                assert job_id in self.running

    def finish(self, job_id: str, ran_s: float) -> None:
        job = self.running.pop(job_id)
        self.durations.add(job, ran_s)
        self.usage.end(job_id, self.now, ran_s)
        self.over.add(job_id)

    def _note_passes(self, chosen: Job) -> None:
        """Count, for jobs that stand before the chosen one and do not fit, that it takes some of what they lack.

        One that has a reservation stands before them. Of jobs that need the same the first is counted.
        """
        if chosen.job_id in self.reserved:
            return
        free, needs, seen = self.free(), self.config.needs(chosen), []
        for job in self.in_order():
            if job.job_id == chosen.job_id:
                return
            lacking = {name for name, amount in self.config.needs(job).items() if amount > free[name]}
            if lacking & set(needs) and job.needs not in seen:
                self.passes[job.job_id] = self.passes.get(job.job_id, 0) + 1
            seen.append(job.needs)


ACTIONS = ("submit",) * 6 + ("finish",) * 4 + ("wait", "lose", "cancel", "hold", "release", "refuse", "grow", "shrink")
Steps = list[tuple[str, int]]


def _script(seed: int, length: int) -> Steps:
    # Lists of hypothesis' own are mostly short, and few jobs ever wait in them.
    choice = random.Random(seed)
    return [(choice.choice(ACTIONS), choice.randrange(1001)) for _ in range(length)]


SCRIPTS = st.builds(_script, st.integers(0, 10**6), st.integers(1, 150))
SHAPES: tuple[dict[str, float], ...] = (
    {},
    {"gpu": 1.0},
    {"gpu": 2.0},
    {"memory_mb": 600.0},
    {"gpu": 1.0, "memory_mb": 300.0},
)


def job_from(number: int, choice: int, now: float) -> Job:
    """One of a thousand different jobs."""
    return queued(
        number,
        owner=("anna", "bert", "carl")[choice % 3],
        priority=TaskPriority(choice % 4),
        job_type=("screening", "evaluation")[choice % 2],
        task_count=(1, 5, 40, 200)[choice // 4 % 4],
        submitted_at=now - choice % 7 * 300.0,
        deadline=NOON + choice if choice % 5 else None,
        not_before=now + 50.0 if choice % 11 == 0 else None,
        estimated_seconds=choice % 13 * 100.0 if choice % 4 == 0 else None,
        needs={SLOT: 1.0, **SHAPES[choice // 16 % len(SHAPES)]},
    )


class Drive:
    """A machine and its book, through steps."""

    def __init__(self, **config: Any) -> None:
        self.book = Book(SchedulingConfig(**{"max_concurrent_jobs": 3, **config}))
        self.machine = SchedulerMachine(self.book.config, now=NOON)
        self.told: list[list[Command]] = []
        self.numbers = 0
        self.refused_at = -1e9
        self.tell(CapacityChanged(self.book.cluster))

    def tell(self, event: Event) -> None:
        commands = self.machine.handle(event, self.book.now)
        self.told.append(commands)
        for command in commands:
            self.before(command)
            self.book.take(command)
        self.machine.check_invariants()
        self.book.reserved = {
            job_id for job_id in self.book.queue if self.machine.explain(job_id, self.book.now).is_reserved
        }
        known = self.machine.jobs
        assert {job_id: job.state for job_id, job in known.items()} == {
            job.job_id: job.state for job in [*self.book.queue.values(), *self.book.running.values()]
        }

    def before(self, command: Command) -> None:
        """A law of a test's own, before a command is carried out."""

    def step(self, what: str, choice: int) -> None:
        book = self.book
        book.now += choice % 97
        queue, running = sorted(book.queue), sorted(book.running)
        if what == "submit":
            job = job_from(self.numbers, choice, book.now)
            self.numbers += 1
            book.queue[job.job_id] = job
            self.tell(Queued([job]))
        elif what == "finish" and running:
            job_id = running[choice % len(running)]
            book.finish(job_id, float(choice))
            self.tell(Finished(job_id, JobState.COMPLETED, float(choice)))
        elif what == "lose" and running:
            lost = book.running[running[choice % len(running)]]
            self.tell(Lost(lost.job_id, lost.attempt, "lost"))
        elif what == "wait":
            book.now += choice * 10.0
            self.tell(Tick())
        elif what == "cancel" and queue:
            self.tell(CancelRequested(queue[choice % len(queue)]))
        elif what in ("hold", "release") and queue:
            job_id = queue[choice % len(queue)]
            book.queue[job_id] = replace(book.queue[job_id], is_held=what == "hold")
            self.tell(Held(job_id) if what == "hold" else Unheld(job_id))
        elif what == "refuse" and running:
            job_id = running[choice % len(running)]
            job = book.running.pop(job_id)
            book.usage.end(job_id, book.now, 0.0)
            book.queue[job_id] = replace(job, state=JobState.QUEUED, attempt=job.attempt - 1, started_at=None)
            self.refused_at = book.now
            self.tell(StartRefused(job_id, book.queue[job_id]))
        elif what in ("grow", "shrink"):
            book.cluster = {name: amount * (1.0 if what == "grow" else 0.5) for name, amount in CLUSTER.items()}
            self.tell(CapacityChanged(book.cluster))
        else:
            self.tell(Tick())


@every_strategy
@settings(max_examples=20, deadline=None)
@given(steps=SCRIPTS, quota=st.sampled_from([None, 1, 2]))
def test_no_job_is_lost_or_started_twice_and_capacity_is_never_exceeded(
    strategy: str, steps: Steps, quota: int | None
) -> None:
    """D47, D50"""
    drive = Drive(strategy=strategy, default_quota=OwnerQuota(running=quota), max_bypass=2, max_wait=1500.0)
    for step in steps:
        drive.step(*step)
    assert set(drive.book.queue) | set(drive.book.running) | drive.book.over == {
        f"job_{n}" for n in range(drive.numbers)
    }


class InOrder(Drive):
    """Each start must be the first of all that fit."""

    def before(self, command: Command) -> None:
        if isinstance(command, Start) and self.book.now > self.refused_at + 1:
            first = next(job for job in self.book.in_order() if self.book.fits(job))
            assert command.job_id == first.job_id


@every_strategy
@settings(max_examples=30, deadline=None)
@given(steps=SCRIPTS, max_wait=st.sampled_from([0.0, 700.0, 21600.0]))
def test_the_order_is_that_of_sorting_by_score_submission_and_sequence(
    strategy: str, steps: Steps, max_wait: float
) -> None:
    """D41, D44, D47"""
    drive = InOrder(strategy=strategy, max_wait=max_wait, **WITHOUT_RESERVATIONS)
    for step in steps:
        drive.step(*step)


@every_strategy
@settings(max_examples=15, deadline=None)
@given(steps=SCRIPTS)
def test_what_fits_does_not_wait(strategy: str, steps: Steps) -> None:
    """D47"""
    drive = Drive(strategy=strategy, **WITHOUT_RESERVATIONS)
    for what, choice in steps:
        if what != "refuse":
            drive.step(what, choice)
            assert not [job for job in drive.book.ready() if drive.book.fits(job)]


@every_strategy
@settings(max_examples=20, deadline=None)
@given(steps=SCRIPTS)
def test_no_job_is_passed_over_more_often_than_allowed(strategy: str, steps: Steps) -> None:
    """D44"""
    drive = Drive(strategy=strategy, max_bypass=3, reserve_after=1e12, max_wait=0.0)
    for what, choice in steps:
        if what in ("submit", "finish", "wait"):
            drive.step(what, choice)
    assert max(drive.book.passes.values(), default=0) <= 3


@every_strategy
@settings(max_examples=15, deadline=None)
@given(steps=SCRIPTS)
def test_the_same_events_give_the_same_commands(strategy: str, steps: Steps) -> None:
    """D47"""
    one, other = Drive(strategy=strategy, max_bypass=2), Drive(strategy=strategy, max_bypass=2)
    for step in steps:
        one.step(*step)
        other.step(*step)
    assert one.told == other.told


@pytest.mark.parametrize("strategy", ["priority", "weighted", "adaptive"])
@settings(max_examples=20, deadline=None)
@given(
    choices=st.lists(st.integers(0, 1000), min_size=2, max_size=12),
    which=st.integers(0, 11),
    waited=st.integers(0, 8000),
)
def test_a_higher_priority_never_gives_a_later_place(
    strategy: str, choices: list[int], which: int, waited: int
) -> None:
    """D47"""
    which %= len(choices)
    places = []
    for priority in TaskPriority:
        jobs = [replace(job_from(number, choice, NOON), not_before=None) for number, choice in enumerate(choices)]
        jobs[which] = replace(jobs[which], priority=priority)
        machine = SchedulerMachine(SchedulingConfig(max_concurrent_jobs=1, strategy=strategy), now=NOON)
        machine.handle(Queued([queued(99, submitted_at=NOON)]), NOON)
        machine.handle(Queued(jobs), NOON)
        places.append(machine.explain(f"job_{which}", NOON + waited).position or 0)
    assert places == sorted(places, reverse=True)
    assert places[-1] > 0


@every_strategy
def test_nobody_starves_however_many_better_jobs_come(strategy: str) -> None:
    """D44, D47"""
    config = SchedulingConfig(max_concurrent_jobs=1, strategy=strategy, max_wait=6 * 3600.0)
    records = [
        JobDuration("workflow", job_type, 1, seconds) for job_type, seconds in (("screening", 600.0), ("long", 6000.0))
    ]
    machine, now, running = SchedulerMachine(config, now=NOON, durations=DurationBook(records * 3)), NOON, "job_0"
    machine.handle(Queued([queued(0, submitted_at=NOON - 10, owner="zoe")]), now)
    # Unattractive to every strategy but the one that takes the oldest first.
    worst = queued(1, submitted_at=NOON, owner="zoe", priority=TaskPriority.LOW, job_type="long")
    machine.handle(Queued([worst]), now)
    number = 2
    while running != "job_1":
        now += 600.0
        better = [
            queued(
                number + more, submitted_at=now - 1, owner=f"new {number}", priority=TaskPriority.CRITICAL, deadline=now,
            )
            for more in range(2)
        ]  # fmt: skip
        number += 2
        assert started(machine.handle(Queued(better), now)) == []
        (running,) = started(machine.handle(Finished(running, JobState.COMPLETED, 600.0), now))
        assert now <= NOON + config.max_wait + 600.0
    assert strategy == "fifo" or now >= NOON + config.max_wait
