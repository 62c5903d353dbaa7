"""The scheduler's mind: events in, commands out. It knows no clock and does nothing itself; whoever drives it carries the
commands out and tells it what came of them.

Each job that it was told of is either queued or holds what it needs, until the job's end is told or decided. After every event it
starts all that fits, in the order of the strategy, but for what is reserved for a job that was passed over too often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from rayzyme.errors import UnknownJob
from rayzyme.jobs.capacity import Capacity
from rayzyme.jobs.choosing import Chooser
from rayzyme.jobs.durations import DurationBook
from rayzyme.jobs.explanation import Explanation, explain
from rayzyme.jobs.fair_share import UsageBook
from rayzyme.jobs.faults import lost_too_often
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.queue import JobQueue
from rayzyme.jobs.retries import SITE_RETRIES
from rayzyme.jobs.scheduling_config import SchedulingConfig
from rayzyme.jobs.scheduling_events import (
    Cancel,
    CancelRequested,
    CapacityChanged,
    Command,
    ConfigChanged,
    Drain,
    Event,
    Fail,
    Finished,
    Held,
    Lost,
    Queued,
    Requeue,
    Restored,
    Start,
    StartRefused,
    Stop,
    StrategyChanged,
    Tick,
    Unheld,
)
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.strategies import View, create_priority_strategy

REFUSAL_PAUSE_S: Final = 1.0
"""How long jobs wait after the store refused to start one that needs the same: leases may be in the way that only it knows."""


class SchedulerMachine:
    """Decides which job starts when."""

    def __init__(
        self,
        config: SchedulingConfig,
        *,
        now: float,
        usage: UsageBook | None = None,
        durations: DurationBook | None = None,
        starts_jobs: bool = True,
    ) -> None:
        """Begin with no jobs, and of the capacity with nothing but the slots.

        Args:
            config: The settings.
            now: The time, in seconds since 1970; it never goes back afterwards.
            usage: What owners used before; kept up from now on.
            durations: How long jobs took before; kept up from now on.
            starts_jobs: False only looks on, to explain what one that starts them would do.
        """
        self._starts_jobs = starts_jobs
        self._now = now
        self._usage = UsageBook(config.half_life) if usage is None else usage
        self._durations = DurationBook() if durations is None else durations
        self._jobs: dict[str, Job] = {}
        self._cluster: Resources = {}
        self._is_draining = False
        self._starts = self._refusals = 0
        self._configure(config)

    @property
    def config(self) -> SchedulingConfig:
        """The settings that it goes by."""
        return self._config

    @property
    def capacity(self) -> Resources:
        """Everything that jobs can hold, the quotas of owners with jobs included."""
        return dict(self._capacity.totals)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs that are not over, as the machine knows them, by id."""
        return dict(self._jobs)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what happened.

        Returns:
            What to do, in this order.
        """
        self._now = now = max(now, self._now)
        commands = self._handlers[type(event)](self, event, now)
        self._queue.advance(now)
        return [*commands, *self._start_all_that_fits(now)]

    def next_wake(self, now: float) -> float | None:
        """When to send a `Tick` if nothing else happens: the first moment at which a waiting job may be tried."""
        if self._is_draining:
            return None
        paused = (demand.paused_until for demand in self._queue.demands.values() if demand.paused_until > now)
        delayed = self._queue.next_start_time()
        return min(paused, default=None) if delayed is None else min([delayed, *paused])

    def explain(self, job_id: str, now: float) -> Explanation:
        """Why a job waits, from what the decisions are made of.

        Raises:
            UnknownJob: The machine has no such job; it is over, or never was.
        """
        if job_id not in self._jobs:
            raise UnknownJob(f"no job {job_id} is queued or runs")
        now = max(now, self._now)
        self._queue.advance(now)
        return explain(
            self._jobs[job_id], self._queue, self._capacity, self._chooser, self._jobs, now, self._is_draining
        )

    def statistics(self) -> dict[str, Any]:
        """Figures for people: how many jobs are where, and by what rules."""
        queued = self._queue.entries.values()
        return {
            "strategy": self._config.strategy,
            "max_concurrent_jobs": self._config.max_concurrent_jobs,
            "queued": len(queued),
            "running": len(self._capacity.holdings),
            "held": sum(entry.job.is_held for entry in queued),
            "delayed": sum((entry.job.not_before or 0.0) > self._now for entry in queued),
            "reserved": len(self._chooser.reserved),
            "load": self._capacity.load(),
            "starts": self._starts,
            "refusals": self._refusals,
            "is_draining": self._is_draining,
        }

    def check_invariants(self) -> None:
        """Recompute everything from the jobs; for tests."""
        queued, holding = set(self._queue.entries), set(self._capacity.holdings)
        assert not queued & holding, f"both queued and running: {queued & holding}"
        assert queued | holding == set(self._jobs), f"nowhere: {set(self._jobs) - queued - holding}"
        for job_id, job in self._jobs.items():
            assert (job.state is JobState.QUEUED) == (job_id in queued), f"{job_id} is {job.state}"
            entry = self._queue.entries.get(job_id)
            assert entry is None or entry.job is job, f"{job_id} is queued in another form"
        for owner in {job.owner for job in self._jobs.values()}:
            running = sum(self._jobs[job_id].owner == owner for job_id in holding)
            assert self._usage.running(owner) == running, f"{owner} runs {running}"
        self._capacity.check_invariants()
        self._queue.check_invariants(self._now)
        for job_id, entry in self._chooser.reserved.items():
            assert self._queue.entries[job_id] is entry
            assert entry.demand.reserved is entry
        if self._starts_jobs and not self._is_draining:
            assert self._chooser.next_start(self._now) is None, "something that fits was not started"

    def _configure(self, config: SchedulingConfig) -> None:
        self._config = config
        self._usage.half_life = config.half_life
        view = View(
            epoch=self._now,
            max_job_size=config.max_job_size,
            usage=self._usage,
            durations=self._durations,
            weights=config.weights,
        )
        self._capacity = Capacity(config, self._cluster)
        self._queue = JobQueue(
            create_priority_strategy(config.strategy), view, max_wait=config.max_wait, kept_passes=2 * config.max_bypass
        )
        self._chooser = Chooser(self._queue, self._capacity, config)
        for job in self._jobs.values():
            self._place(job, self._now)

    def _start_all_that_fits(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while self._starts_jobs and not self._is_draining and (entry := self._chooser.next_start(now)) is not None:
            job = entry.job
            started = replace(
                job, state=JobState.RUNNING, attempt=job.attempt + 1, started_at=now, not_before=None
            )  # fmt: skip
            self._place(started, now, entry.demand.needs)
            self._starts += 1
            commands.append(Start(job.job_id, started.attempt, entry.demand.needs))
        return commands

    def _place(self, job: Job, now: float, needs: Resources | None = None) -> None:
        """Have a job where its state says: in the queue, or holding what it needs, if that is known already."""
        job_id = job.job_id
        needs = self._config.needs(job) if needs is None else needs
        self._jobs[job_id] = job
        self._chooser.forget(job_id)
        if job.state is JobState.QUEUED:
            self._capacity.release(job_id)
            self._usage.end(job_id, now)
            self._queue.note_change(job)
            for resource in needs:
                self._capacity.count(resource)
            self._queue.add(job, needs, now)
        else:
            self._queue.remove(job_id)
            self._capacity.hold(job_id, needs)
            self._usage.begin(job_id, job.owner, needs, now if job.started_at is None else job.started_at)
            self._queue.note_change(job)

    def _forget(self, job_id: str, now: float, ran_s: float | None = None) -> None:
        job = self._jobs.pop(job_id)
        self._chooser.forget(job_id)
        self._queue.remove(job_id)
        self._capacity.release(job_id)
        self._usage.end(job_id, now, ran_s)
        self._queue.note_change(job)

    def _admit(self, job: Job, now: float) -> list[Command]:
        """Take a job as the store has it, and its user's wish to cancel it with it."""
        known = self._jobs.get(job.job_id)
        if job.state in FINAL:
            if known is not None:
                self._forget(job.job_id, now)
            return []
        self._place(job, now)
        was_told_to_stop = known is not None and known.cancel_requested
        if not job.cancel_requested or (was_told_to_stop and job.state is not JobState.QUEUED):
            return []
        return self._cancel(job, now)

    def _cancel(self, job: Job, now: float) -> list[Command]:
        if job.state is not JobState.QUEUED:
            return [Stop(job.job_id)]
        self._forget(job.job_id, now)
        return [Cancel(job.job_id)]

    def _on_rows(self, event: Queued | Restored, now: float) -> list[Command]:
        commands: list[Command] = []
        for job in event.jobs:
            known = self._jobs.get(job.job_id)
            # A row that was read before the newest decision on it was written tells nothing new.
            if known is None or (job.attempt, job.version) > (known.attempt, known.version):
                commands += self._admit(job, now)
        return commands

    def _on_finished(self, event: Finished, now: float) -> list[Command]:
        if event.state not in FINAL:
            raise ValueError(f"{event.job_id} has not finished, it is {event.state}: tell Queued with its row")
        job = self._jobs.get(event.job_id)
        # Both the runner and the store's rows tell of an end, so the second of them is legitimately late.
        if job is None:
            return []
        if event.state is JobState.COMPLETED:
            self._durations.add(job, event.ran_s)
        self._forget(job.job_id, now, event.ran_s)
        return []

    def _on_lost(self, event: Lost, now: float) -> list[Command]:
        job = self._jobs.get(event.job_id)
        # A runner may die after its job's end was told, or after another runner began it again; the job is not lost then.
        if job is None or job.state is JobState.QUEUED or job.attempt != event.attempt:
            return []
        faults = job.site_faults + 1
        if faults >= job.max_site_faults and not job.cancel_requested:
            self._forget(job.job_id, now)
            message = f"{lost_too_often(faults)}, the last time: {event.reason}"
            return [Fail(job.job_id, job.attempt, "WorkerLost", message)]
        not_before = now + SITE_RETRIES.delay_before(faults, f"{job.job_id}/")
        requeued = replace(job, state=JobState.QUEUED, site_faults=faults, not_before=not_before, started_at=None)
        return [Requeue(job.job_id, job.attempt, event.reason, not_before, faults), *self._admit(requeued, now)]

    def _on_cancel_requested(self, event: CancelRequested, now: float) -> list[Command]:
        job = self._jobs.get(event.job_id)
        # A user's wish may cross with the job's end; asked twice, a running job is stopped once.
        if job is None or job.cancel_requested:
            return []
        job = replace(job, cancel_requested=True)
        self._place(job, now)
        return self._cancel(job, now)

    def _on_held(self, event: Held | Unheld, now: float) -> list[Command]:
        job = self._jobs.get(event.job_id)
        # A user's wish may cross with the job's end.
        if job is not None:
            self._place(replace(job, is_held=isinstance(event, Held)), now)
        return []

    def _on_capacity_changed(self, event: CapacityChanged, now: float) -> list[Command]:
        self._cluster = dict(event.capacity)
        self._capacity.change_cluster(self._cluster)
        return []

    def _on_start_refused(self, event: StartRefused, now: float) -> list[Command]:
        self._refusals += 1
        if event.current is None:
            # The job may have been withdrawn, and that told, since the start was decided.
            if event.job_id in self._jobs:
                self._forget(event.job_id, now, 0.0)
            return []
        self._usage.end(event.job_id, now, 0.0)
        commands = self._admit(event.current, now)
        entry = self._queue.entries.get(event.job_id)
        if entry is not None:
            entry.demand.paused_until = now + REFUSAL_PAUSE_S
        return commands

    def _on_strategy_changed(self, event: StrategyChanged, now: float) -> list[Command]:
        self._configure(replace(self._config, strategy=event.name))
        return []

    def _on_config_changed(self, event: ConfigChanged, now: float) -> list[Command]:
        self._configure(event.config)
        return []

    def _on_drain(self, event: Drain, now: float) -> list[Command]:
        self._is_draining = True
        return []

    def _on_tick(self, event: Tick, now: float) -> list[Command]:
        return []

    _handlers: ClassVar[Mapping[type, Callable[[SchedulerMachine, Any, float], Iterable[Command]]]] = {
        Queued: _on_rows,
        Restored: _on_rows,
        Finished: _on_finished,
        Lost: _on_lost,
        CancelRequested: _on_cancel_requested,
        Held: _on_held,
        Unheld: _on_held,
        CapacityChanged: _on_capacity_changed,
        StartRefused: _on_start_refused,
        StrategyChanged: _on_strategy_changed,
        ConfigChanged: _on_config_changed,
        Drain: _on_drain,
        Tick: _on_tick,
    }
