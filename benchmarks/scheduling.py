"""The scheduler's decisions with 10,000 queued jobs, against the same decision by looking at every job.

A decision is an end of a job and the start that follows it. The peer scores all queued jobs by the same strategy and takes the
first that fits; it does nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from benchmarks.measuring import Measurement, compared

from rayzyme.jobs.durations import DurationBook, JobDuration
from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT, SchedulingConfig
from rayzyme.jobs.scheduling_events import CapacityChanged, Finished, Queued, Start
from rayzyme.jobs.states import JobState
from rayzyme.jobs.strategies import STRATEGIES, View, create_priority_strategy

QUEUED = 10_000
DECISIONS = 2_000
PEER_DECISIONS = 10
OWNERS = 20
NOW = 1_800_000_000.0
BAR_US = 50.0


def run() -> list[Measurement]:
    """All strategies, and the first of them with more owners."""
    return [*(_measure(name, OWNERS) for name in STRATEGIES), _measure("fair_share", 1000)]


def _measure(strategy: str, owners: int) -> Measurement:
    jobs = _jobs(QUEUED + DECISIONS, owners)
    config = SchedulingConfig(max_concurrent_jobs=8, strategy=strategy)
    records = [
        JobDuration("workflow", f"type {number % 5}", 1 + number % 20, 60.0 * (number % 7)) for number in range(500)
    ]
    machine = SchedulerMachine(config, now=NOW, durations=DurationBook(records))
    machine.handle(CapacityChanged({"gpu": 4.0, "memory_mb": 64_000.0}), NOW)
    begin = time.perf_counter()
    running = [command.job_id for command in machine.handle(Queued(jobs[:QUEUED]), NOW) if isinstance(command, Start)]
    filing_us = (time.perf_counter() - begin) / QUEUED * 1e6
    durations = []
    random_ends = random.Random(1)
    for number, job in enumerate(jobs[QUEUED:]):
        now = NOW + number
        machine.handle(Queued([job]), now)
        ended = running.pop(random_ends.randrange(len(running)))
        begin = time.perf_counter()
        commands = machine.handle(Finished(ended, JobState.COMPLETED, 60.0), now)
        durations.append(time.perf_counter() - begin)
        running += [command.job_id for command in commands if isinstance(command, Start)]
    durations.sort()
    ours_us = sum(durations) / len(durations) * 1e6
    peer_us = _seconds(lambda: _look_at_all(jobs[:QUEUED], strategy, records)) * 1e6
    return compared(
        f"decision by {strategy}, {owners} owners", ours_us, peer_us, "us", bar_us=BAR_US,
        median_us=durations[DECISIONS // 2] * 1e6, p99_us=durations[DECISIONS * 99 // 100] * 1e6, filing_us=filing_us,
    )  # fmt: skip


def _look_at_all(jobs: list[Job], strategy_name: str, records: list[JobDuration]) -> Job:
    strategy, view = create_priority_strategy(strategy_name), View(durations=DurationBook(records))
    free = {SLOT: 1.0, "gpu": 1.0, "memory_mb": 64_000.0}
    return min(
        (job for job in jobs if all(amount <= free[resource] for resource, amount in job.needs.items())),
        key=lambda job: (-strategy.score(job, view, NOW), job.submitted_at, job.sequence),
    )


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(PEER_DECISIONS):
        work()
    return (time.perf_counter() - begin) / PEER_DECISIONS


def _jobs(number: int, owners: int) -> list[Job]:
    choice = random.Random(0)
    shapes = ({SLOT: 1.0}, {SLOT: 1.0, "gpu": 1.0}, {SLOT: 1.0, "gpu": 2.0}, {SLOT: 1.0, "memory_mb": 8000.0})
    return [
        Job(
            job_id=f"job_{index:012x}", sequence=index, name="", owner=f"owner {choice.randrange(owners)}", kind="workflow",
            job_type=f"type {choice.randrange(5)}", priority=TaskPriority(choice.randrange(4)), state=JobState.QUEUED, attempt=0,
            submitted_at=NOW - (number - index) * 0.5, task_count=1 + choice.randrange(100), needs=choice.choice(shapes),
            deadline=NOW + choice.randrange(100_000) if choice.random() < 0.5 else None,
        )
        for index in range(number)
    ]  # fmt: skip
