"""One attempt of a job, from its first task to its end.

The machine `WorkflowRun` decides; here its commands are carried out and what happens is told to it. The order is what keeps the
promises: a result is written (compare-and-set on the attempt), then its files are published, and only then does a task begin
that may need them, or the job end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from rayzyme.errors import PublishingFailed, RayzymeError
from rayzyme.jobs.changes import Change, TaskChange
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.monitoring import get_metrics_collector
from rayzyme.settings import Settings
from rayzyme.workflows.execution import Assignment
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import StoredValue
from rayzyme.workflows.plan import PlannedTask
from rayzyme.workflows.publishing import discard, publish
from rayzyme.workflows.run import WorkflowRun
from rayzyme.workflows.run_events import (
    CancelRun,
    Remark,
    RunCommand,
    RunEvent,
    RunFinished,
    StartTask,
    StopTask,
    TaskBegan,
    TaskFinished,
    TaskLost,
    TaskMemory,
    TaskStopped,
    Tick,
)
from rayzyme.workflows.specs import plan_from_spec
from rayzyme_actors.committing import Committer
from rayzyme_actors.gpu_memory import with_gpu_memory
from rayzyme_actors.job_progress import JobProgress
from rayzyme_actors.placement import TASK_CPUS, host_share, live_nodes
from rayzyme_actors.task_log import file_name
from rayzyme_actors.task_pool import ProcessLost, Shape, TaskPool
from rayzyme_actors.task_process import marker_of

logger = logging.getLogger(__name__)

# That a task has begun need not be on the disk before it runs; most tell of their end by then.
_BEGUN_WAITS_S = 0.2
_TASKS_TOLD = 5


@dataclass(frozen=True, slots=True)
class RunOrder:
    """An attempt to carry out.

    Attributes:
        job_id: The job.
        name: Its name, for people.
        attempt: Number of the attempt, as committed.
        token: Newest lease that it holds.
        document: The job's spec.
        transient: Tasks that the spec cannot hold, by name.
        is_first: Whether no attempt was before it, so that nothing can have been committed.
    """

    job_id: str
    name: str
    attempt: int
    token: int | None
    document: Mapping[str, Any]
    transient: Mapping[str, Any] = field(default_factory=dict)
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: in which state its job is now, after how many seconds."""

    job_id: str
    attempt: int
    state: JobState | None
    ran_s: float


class RunningJob:
    """Carries out one order."""

    def __init__(
        self,
        order: RunOrder,
        settings: Settings,
        committer: Committer,
        pool: TaskPool,
        store: JobStore,
        runner_id: str,
    ) -> None:
        self.order = order
        self.progress = JobProgress(order.job_id, order.attempt, store)
        self._settings, self._committer, self._pool, self._store = settings, committer, pool, store
        self._runner_id = runner_id
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue()
        self._begun: dict[tuple[str, int], TaskChange] = {}
        self._underway: set[tuple[str, int]] = set()
        self._markers: dict[tuple[str, int], str] = {}
        self._values: dict[str, tuple[StoredValue | None, Mapping[str, StoredValue]]] = {}
        self._outcomes: dict[str, TaskOutcome] = {}
        self._folders: dict[str, str] = {}
        self._kept: set[asyncio.Task[None]] = set()
        self._state: JobState | None = None
        self._is_over = False

    async def carry_out(self) -> Ended:
        """Run to the end; `state` of the answer is None where the attempt was no longer the job's newest."""
        begin = time.monotonic()
        try:
            await self._run_through()
        except RayzymeError as error:
            await self._stop_all(str(error))
            await self._finish(RunFinished(JobState.FAILED, type(error).__name__, str(error)), ())
        except Exception as error:
            logger.exception("job %s", self.order.job_id)
            await self._stop_all("Rayzyme failed")
            message = (
                f"Rayzyme itself failed in this job: {type(error).__name__}: {error}; see the log of {self._runner_id}"
            )
            await self._finish(RunFinished(JobState.FAILED, type(error).__name__, message), ())
        finally:
            self.progress.close()
        return Ended(self.order.job_id, self.order.attempt, self._state, time.monotonic() - begin)

    async def _stop_all(self, reason: str) -> None:
        """Nothing of this attempt may go on when its job has ended."""
        grace = self._settings.cancel.grace
        stops = [self._pool.stop(marker, reason, grace) for marker in self._markers.values()]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, BaseException):
                logger.error("stopping a task of job %s: %s", self.order.job_id, outcome)

    def cancel(self, reason: str) -> None:
        """Stop what runs and end as cancelled."""
        self._events.put_nowait(CancelRun(reason))

    def give_up(self, reason: str) -> None:
        """Stop what runs and write nothing more: the job is no longer this attempt's."""
        logger.warning("attempt %d of job %s stops: %s", self.order.attempt, self.order.job_id, reason)
        self._is_over = True
        for marker in self._markers.values():
            self._keep(self._pool.stop(marker, reason, 0.0))
        self._events.put_nowait(Tick())

    async def _run_through(self) -> None:
        order = self.order
        memories: Mapping[str, TaskMemory] = {}
        if not order.is_first:
            records = await asyncio.to_thread(self._store.tasks, order.job_id)
            memories = {record.name: TaskMemory.of_row(record) for record in records}
            self._values = {record.name: (record.output, record.shared_writes or {}) for record in records}
            # A runner that died may have left its last results committed and not yet published.
            for record in records:
                if record.state is JobState.COMPLETED and record.manifest:
                    await self._publish(record.name, record.manifest)
        plan = plan_from_spec(order.document, order.transient)
        self._run = WorkflowRun(
            plan,
            job_id=order.job_id,
            job_attempt=order.attempt,
            max_workers=self._settings.scheduler.max_workers_per_job,
            memories=memories,
        )
        self.progress.begin([task.name for task in plan.tasks], _completed(memories))
        await self._obey(self._run.begin(time.time()))
        while not self._is_over:
            event = await self._next_event()
            await self._obey(self._run.handle(event, time.time()))

    async def _next_event(self) -> RunEvent:
        wake = self._run.next_wake()
        try:
            return await asyncio.wait_for(self._events.get(), None if wake is None else max(0.0, wake - time.time()))
        except TimeoutError:
            return Tick()

    async def _obey(self, commands: Sequence[RunCommand]) -> None:
        changes = [command for command in commands if isinstance(command, TaskChange)]
        if any(isinstance(change, TaskChange) and change.state is JobState.QUEUED for change in commands):
            get_metrics_collector().increment("rayzyme_retries_total", tags={"fault": "job"})
        finished = next((command for command in commands if isinstance(command, RunFinished)), None)
        begun = [change for change in changes if change.state is JobState.RUNNING]
        settled = [change for change in changes if change.state is not JobState.RUNNING]
        self._begun |= {(change.task, change.attempt): change for change in begun}
        manifests = self._take_results(settled)
        if finished is not None and not manifests:
            await self._finish(finished, settled)
            return
        if settled and not await self._commit(settled, _told(settled)):
            return
        for task, manifest in manifests.items():
            await self._publish(task, manifest)
        if finished is not None:
            await self._finish(finished, ())
            return
        for command in commands:
            if isinstance(command, StartTask):
                await self._start(command)
            elif isinstance(command, StopTask):
                self._keep(self._stop(command))
            elif isinstance(command, Remark):
                self._keep(self._commit((), command.text, data=command.data))

    def _take_results(self, settled: Sequence[TaskChange]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """What the machine accepted counts from now on; the files to publish, by task. Of anything else nothing is kept."""
        manifests: dict[str, Sequence[Mapping[str, Any]]] = {}
        for change in settled:
            outcome, folder = self._outcomes.pop(change.task, None), self._folders.pop(change.task, None)
            if outcome is None or change.state is not JobState.COMPLETED:
                if folder is not None:
                    self._keep(asyncio.to_thread(discard, folder))
                continue
            self._values[change.task] = (outcome.output, outcome.shared_writes)
            if outcome.manifest:
                manifests[change.task] = outcome.manifest
        return manifests

    @staticmethod
    async def _publish(task: str, manifest: Sequence[Mapping[str, Any]]) -> None:
        try:
            await asyncio.to_thread(publish, manifest)
        except OSError as error:
            raise PublishingFailed(f"the files of task {task} could not be put in place: {error}") from error

    async def _finish(self, finished: RunFinished, settled: Sequence[TaskChange]) -> None:
        to = JobState.QUEUED if finished.retry_workflow else finished.state
        values: dict[str, Any] = {
            "error_class": finished.error_class,
            "error_message": finished.error,
            "fault": finished.fault,
            "result": {"failed_tasks": list(finished.failed_tasks)},
        }
        change = self._change(
            settled, "the workflow is tried again" if finished.retry_workflow else f"the workflow {finished.state.value}",
            to=to, values=values, release=True,
        )  # fmt: skip
        applied = await self._committer.commit(change)
        self._is_over = True
        self._state = to if applied.accepted else None
        if not applied.accepted:
            get_metrics_collector().increment("rayzyme_late_results_total")

    async def _commit(self, settled: Sequence[TaskChange], reason: str, **more: Any) -> bool:
        applied = await self._committer.commit(self._change(settled, reason, **more))
        if not applied.accepted and not self._is_over:
            get_metrics_collector().increment("rayzyme_late_results_total")
            self.give_up(applied.why)
        return applied.accepted

    def _change(self, settled: Sequence[TaskChange], reason: str, **more: Any) -> Change:
        order = self.order
        return Change(
            job_id=order.job_id, attempt=order.attempt, states=frozenset({JobState.RUNNING}), reason=reason,
            actor=self._runner_id, tasks=self._with_begun(settled), **more,
        )  # fmt: skip

    def _with_begun(self, settled: Sequence[TaskChange]) -> tuple[TaskChange, ...]:
        """The changes, and with them those begun that were not told yet; one row for each attempt."""
        merged = []
        for change in settled:
            key = change.task, change.attempt
            before = self._begun.pop(key, None)
            self._underway.discard(key)
            hops = dict(change.hops) if before is None else {**before.hops, **change.hops}
            merged.append(replace(change, hops=hops, runner=self._runner_id))
        begun = [replace(self._begun.pop(key), runner=self._runner_id) for key in self._underway]
        self._underway.clear()
        return (*begun, *merged)

    def _tell_begun(self) -> None:
        if self._underway and not self._is_over:
            self._keep(self._commit((), f"begun: {_named([self._begun[key] for key in self._underway])}"))

    async def _start(self, command: StartTask) -> None:
        planned = self._run.plan.tasks_by_name[command.task]
        shape = await shape_of(planned, self._settings)
        if self._is_over:
            return
        assignment = self._assignment(planned, command.attempt)
        marker = self._markers[command.task, command.attempt] = marker_of(assignment)
        self._folders[command.task] = assignment.folder
        logger.debug("%s begins", marker)
        # The time of one with a limit must not go on behind others of its batch.
        is_alone = planned.config.timeout is not None
        future = self._pool.submit(assignment, shape, lambda: self._on_begin(command), is_alone)
        future.add_done_callback(lambda done: self._on_done(command, done))

    def _on_begin(self, command: StartTask) -> None:
        self.progress.began()
        key = command.task, command.attempt
        if key in self._begun:
            if not self._underway:
                asyncio.get_running_loop().call_later(_BEGUN_WAITS_S, self._tell_begun)
            self._underway.add(key)
        if self._run.plan.tasks_by_name[command.task].config.timeout is not None:
            self._events.put_nowait(TaskBegan(command.task, command.attempt))

    def _on_done(self, command: StartTask, done: asyncio.Future[TaskOutcome]) -> None:
        self._markers.pop((command.task, command.attempt), None)
        error = done.exception()
        if isinstance(error, ProcessLost):
            self._events.put_nowait(TaskLost(command.task, command.attempt, str(error)))
            return
        outcome = done.result()
        self._outcomes[command.task] = outcome
        # What follows depends on this; figures and progress are for people.
        self._events.put_nowait(TaskFinished(command.task, command.attempt, outcome))
        self._measure(outcome)
        self.progress.ended(command.task, outcome.state)

    @staticmethod
    def _measure(outcome: TaskOutcome) -> None:
        metrics = get_metrics_collector()
        took = max(0.0, outcome.computed_at - outcome.started_at)
        metrics.record("rayzyme_task_seconds", took, tags={"state": outcome.state.value}, unit="seconds")
        if outcome.metadata.get("cached"):
            metrics.increment("rayzyme_task_cache_hits_total")

    async def _stop(self, command: StopTask) -> None:
        marker = self._markers.get((command.task, command.attempt))
        survivors: list[str] = []
        try:
            if marker is not None:
                survivors = await self._pool.stop(marker, command.reason, self._settings.cancel.grace)
        except Exception as error:
            logger.exception("stopping %s", marker)
            survivors = [f"unknown: {error}"]
        self._events.put_nowait(TaskStopped(command.task, command.attempt, tuple(survivors)))

    def _assignment(self, planned: PlannedTask, attempt: int) -> Assignment:
        order, plan = self.order, self._run.plan
        shared: dict[str, StoredValue] = {}
        inputs: dict[str, StoredValue] = {}
        for dependency, source in plan.inputs_of(planned.name).items():
            output = self._values.get(source, (None, {}))[0]
            if output is not None:
                inputs[dependency] = output
        for ancestor in plan.ancestors(planned.name):
            shared |= self._values.get(ancestor, (None, {}))[1]
        folder = self._settings.runs / order.job_id / file_name(planned.name) / f"{order.attempt}.{attempt}"
        return Assignment(
            job_id=order.job_id, job_name=order.name, task=planned.name, attempt=attempt, job_attempt=order.attempt,
            source=planned.source, inputs=inputs, shared_state=shared, folder=str(folder), memory_mb=planned.memory_mb,
            cache_enabled=planned.config.cache_enabled, parent=planned.added_by,
        )  # fmt: skip

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)


def _told(changes: Sequence[TaskChange]) -> str:
    """What became of tasks, as the job's story tells it."""
    states = {change.state for change in changes}
    return "; ".join(
        f"{state.value}: {_named([one for one in changes if one.state is state])}" for state in sorted(states)
    )


def _named(changes: Sequence[TaskChange]) -> str:
    names = [change.task for change in changes]
    return ", ".join(names[:_TASKS_TOLD]) + (
        f" and {len(names) - _TASKS_TOLD} more" if len(names) > _TASKS_TOLD else ""
    )


def _completed(memories: Mapping[str, TaskMemory]) -> set[str]:
    return {name for name, memory in memories.items() if memory.state is JobState.COMPLETED}


async def shape_of(planned: PlannedTask, settings: Settings) -> Shape:
    """What a task's process asks Ray for."""
    config = planned.config
    # Ray is asked in a thread: the other jobs go on until it has answered.
    gpus = await asyncio.to_thread(_gpus_of, planned, settings) if planned.own_gpus else 0.0
    return Shape(
        cpus=config.num_cpus or TASK_CPUS,
        gpus=gpus,
        memory_mb=planned.memory_mb or 0,
        gpu_memory_mb=(config.gpu_memory_mb or 0) if gpus else 0,
    )


def _gpus_of(planned: PlannedTask, settings: Settings) -> float:
    """GPUs, or the share of one. Those that the cluster lacks were dealt with when the job was accepted."""
    nodes = live_nodes(ray.nodes())
    if not any(node.gpus for node in nodes):
        return 0.0
    gpus, memory_mb = float(planned.own_gpus), planned.config.gpu_memory_mb
    if memory_mb is None:
        return gpus
    reserve_mb = settings.resources.gpu.min_free_memory_mb
    share = host_share(memory_mb, with_gpu_memory(nodes, settings), reserve_mb=reserve_mb)
    return share if gpus == 1 else gpus
