"""The Python API: submit workflows, follow them, get their results.

A submit is written to the database by the program itself before its id is returned, so no scheduler need live at that moment,
and none that dies takes a job with it. The scheduler is only told that there is something to do.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from rayzyme.errors import RayzymeError, UnknownJob
from rayzyme.jobs.job import TaskPriority
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.vocabularies import JOB
from rayzyme.monitoring import ProgressTracker, get_metrics_collector
from rayzyme.settings import Settings, get_settings, load_settings, use_settings
from rayzyme.workflows import Task, Workflow, WorkflowBuilder, WorkflowResult
from rayzyme_actors.callbacks import Callbacks
from rayzyme_actors.cluster_capacity import cluster_capacity, largest_node
from rayzyme_actors.connection import connect_to_scheduler, disconnect, is_answering, is_part_of_ray
from rayzyme_actors.dispatcher_stats import dispatcher_stats
from rayzyme_actors.explaining import explain_end, explain_from_store
from rayzyme_actors.job_results import workflow_result, workflow_results
from rayzyme_actors.scheduler import ask_scheduler, start_scheduler
from rayzyme_actors.scheduler_settings import scheduling_config, store_of
from rayzyme_actors.submitting import Prepared, Submission, prepare

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LONGEST_QUESTION_S = 30.0
_STOP_TIMEOUT_S = 30.0
_CALLBACKS_S = 10.0
_POKE_S = 1.0
# Of the jobs that it submitted, as many as `stop` waits for at most.
_REMEMBERED = 10_000


class Dispatcher:
    """A program's way to jobs. Safe under threads; a context manager.

    Attributes:
        settings: In force here and handed to what it starts.
    """

    def __init__(
        self,
        config_file: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        auto_start: bool = True,
    ) -> None:
        """Connect to Ray (`ray.address` in the settings, else where the scheduler lives, else a local Ray).

        Args:
            config_file: Settings file.
            config: Settings that beat the file's, as a nested mapping.
            auto_start: Call `start` now.

        Raises:
            FileNotFoundError: There is no such settings file.
            ValidationError: The settings do not hold.
            DatabaseError: The database cannot be used.
            ConnectionError: A named cluster does not answer.
        """
        self._has_own_settings = config_file is not None or config is not None
        if self._has_own_settings:
            use_settings(load_settings(config_file, config))
        self.settings: Settings = get_settings()
        self._store = store_of(self.settings)
        self._callbacks = Callbacks(self._store)
        self._scheduler: Any = None
        self._submitted: deque[str] = deque(maxlen=_REMEMBERED)
        if auto_start:
            self.start()

    def start(self) -> None:
        """Find the scheduler, or start it. Settings that were given here become those of a scheduler that runs already."""
        if self._scheduler is not None:
            return
        connect_to_scheduler(self.settings, self._store)
        self._scheduler = start_scheduler(self.settings)
        self._callbacks.resume()
        if self._has_own_settings:
            ask_scheduler(self.settings, "configure", self.settings)

    def stop(self, wait: bool = True) -> None:
        """Detach this program; what is queued stays queued.

        Args:
            wait: First wait for the jobs of this program that run, at most 30 s.
        """
        if self._scheduler is None:
            return
        end = time.monotonic() + (_STOP_TIMEOUT_S if wait else 0.0)
        for job_id in self._submitted:
            if time.monotonic() < end and self.get_job_status(job_id) == JobState.RUNNING:
                with suppress(TimeoutError):
                    self.wait_for_job(job_id, end - time.monotonic())
        self._callbacks.close(wait)
        self._scheduler = None

    @property
    def is_running(self) -> bool:
        """Whether this program is attached to a scheduler."""
        return self._scheduler is not None

    def __enter__(self) -> Dispatcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit_workflow(
        self,
        workflow: Workflow,
        name: str | None = None,
        priority: TaskPriority | int = TaskPriority.NORMAL,
        metadata: Mapping[str, Any] | None = None,
        owner: str | None = None,
        idempotency_key: str | None = None,
        actor: str | None = None,
    ) -> str:
        """Accept a workflow; when this returns, the job is on the disk.

        Args:
            workflow: What `WorkflowBuilder.build` or a `create_...` function gives.
            name: For people; None takes the workflow's.
            priority: How urgent it is.
            metadata: Kept with the job, as JSON; `deadline` counts for the strategy `edf`.
            owner: Whose job it is; None is the user of this process.
            idempotency_key: The same key of the same owner gives the same job, however often it is submitted.
            actor: Who asks, for the audit log; None names the user and machine of this process.

        Returns:
            The job's id, `job_` and 12 hexadecimal digits.

        Raises:
            DeviceUnavailable: It needs a GPU, and the cluster has none.
            ResourceError: It needs more of something than the cluster has.
            TaskNotSendable: A task can be neither stored nor sent; names the attribute at fault.
            IdempotencyConflict: The key was used for another request.
            QuotaExceeded: The owner has as many jobs waiting as they may.
            DatabaseError: The database cannot be used; nothing was accepted.
        """
        submission = Submission(workflow, name, TaskPriority(priority), metadata or {}, owner, idempotency_key)
        return self.submit_many([submission], actor)[0]

    def submit_task(
        self, task: Task, name: str | None = None, priority: TaskPriority | int = TaskPriority.NORMAL, **more: Any
    ) -> str:
        """Accept one task as a workflow of its own; `more` as for `submit_workflow`."""
        workflow = WorkflowBuilder(name or task.config.name).add_task(task, depends_on=[]).build()
        return self.submit_workflow(workflow, name, priority, **more)

    def submit_many(self, submissions: Sequence[Submission | Workflow], actor: str | None = None) -> list[str]:
        """Accept many at once, in one transaction: all or none.

        Args:
            submissions: Workflows, or `Submission`s with what `submit_workflow` takes.
            actor: Who asks, for the audit log; None names the user and machine of this process.

        Returns:
            Their ids, in order. Errors as in `submit_workflow`.
        """
        asked = [item if isinstance(item, Submission) else Submission(item) for item in submissions]
        self._stay_connected()
        cluster = cluster_capacity(self.settings) if ray.is_initialized() else self._store.cluster("ray")
        node = largest_node() if ray.is_initialized() else self._store.cluster("largest node")
        prepared = [prepare(submission, self.settings, cluster, node) for submission in asked]
        self._hand_over(prepared)
        try:
            requests, quotas = [item.request for item in prepared], scheduling_config(self.settings)
            job_ids = self._store.submit(requests, quotas=quotas, actor=actor)
        except RayzymeError:
            self._take_back(prepared)
            raise
        get_metrics_collector().increment("rayzyme_jobs_submitted_total", len(job_ids))
        for job_id, submission in zip(job_ids, asked, strict=True):
            self._callbacks.watch(job_id, submission.workflow)
        for job_id, item in zip(job_ids, prepared, strict=True):
            if item.transient:
                self._attached().bind.remote(item.transient_key, job_id)
        self._submitted.extend(job_ids)
        self._poke()
        return job_ids

    def get_job_status(self, job_id: str) -> str | None:
        """queued, running, completed, failed, cancelled or unknown; None where there is no such job."""
        try:
            return self._store.job(job_id).state.value
        except UnknownJob:
            return None

    def get_job_result(self, job_id: str) -> WorkflowResult | None:
        """What a job that has ended gave; None before, and where there is no such job."""
        try:
            is_over = self._store.job(job_id).state in FINAL
        except UnknownJob:
            return None
        return workflow_result(self._store, job_id) if is_over else None

    def wait_for_job(self, job_id: str, timeout: float | None = None) -> WorkflowResult:
        """Wait until a job has ended, and until its callbacks were called.

        Args:
            job_id: Which one.
            timeout: Seconds to wait; None waits for ever. The job runs on.

        Raises:
            UnknownJob: There is no such job (a `KeyError`).
            TimeoutError: It had not ended in time.
        """
        return self.wait_for_jobs([job_id], timeout)[job_id]

    def wait_for_jobs(self, job_ids: Sequence[str], timeout: float | None = None) -> dict[str, WorkflowResult]:
        """Wait until all of these jobs have ended, and until their callbacks were called.

        Args:
            job_ids: Which ones.
            timeout: Seconds to wait for them together; None waits for ever. The jobs run on.

        Returns:
            Their results by id, in the order of the ids. Errors as in `wait_for_job`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        left_over = list(job_ids)
        while left_over := self._unfinished(left_over):
            self._wait_for_end(left_over[0], end, timeout)
        for job_id in job_ids:
            self._callbacks.wait_for(job_id, _CALLBACKS_S)
        return workflow_results(self._store, job_ids)

    def cancel_job(self, job_id: str, actor: str | None = None) -> bool:
        """Cancel a job, queued or running; False where it has ended already.

        Args:
            job_id: Which one.
            actor: Who wants that, for the audit log; None names the user and machine of this process.

        Raises:
            UnknownJob: There is no such job (a `KeyError`).
        """
        was_live = self._store.request_cancel(job_id, actor)
        self._poke()
        return was_live

    def hold_job(self, job_id: str) -> bool:
        """Let a queued job wait until `release_job`; False where it waits no more."""
        return self._store.hold(job_id)

    def release_job(self, job_id: str) -> bool:
        """Let a job go on that was held."""
        released = self._store.unhold(job_id)
        self._poke()
        return released

    def list_jobs(self, status: str | None = None) -> list[dict[str, Any]]:
        """All jobs, or those in one state, the newest first; times are UTC in ISO 8601, durations in seconds.

        Raises:
            UnknownWord: There is no such state; the message lists those that there are.
        """
        return [
            record.to_dict() for record in self._store.records(states=None if status is None else [JOB.state(status)])
        ]

    def get_job_progress(self, job_id: str) -> dict[str, Any]:
        """How far a running job is, as `ProgressTracker.get_progress`.

        Raises:
            NotFound: It has told nothing (yet); short jobs never do.
        """
        with ProgressTracker.attach(job_id, self._store.database) as progress:
            return progress.get_progress()

    def explain(self, job_id: str) -> dict[str, Any]:
        """Why a job waits: its place, what it lacks and who holds that, when it may start.

        Raises:
            UnknownJob: There is no such job.
        """
        over = explain_end(self._store, job_id)
        if over is not None:
            return over
        try:
            explained: dict[str, Any] = ray.get(self._attached().explain.remote(job_id))
        except UnknownJob:
            # It ended between the two questions.
            return explain_end(self._store, job_id) or explain_from_store(self._store, job_id, self.settings)
        return explained

    def get_stats(self) -> dict[str, Any]:
        """What the scheduler, the queue and the machine look like now: `scheduler`, `queue`, `resources`."""
        described = ray.get(self._scheduler.describe.remote()) if self._scheduler is not None else {}
        return dispatcher_stats(self._store, self.settings, described)

    def _hand_over(self, prepared: Sequence[Prepared]) -> None:
        for item in prepared:
            if item.transient:
                # Before the job can be seen, or a quick scheduler would find its tasks missing.
                ray.get(self._attached().hand_over.remote(item.transient_key, item.transient))

    def _unfinished(self, job_ids: Sequence[str]) -> list[str]:
        states = self._store.states_of(job_ids)
        return [job_id for job_id in job_ids if states[job_id] not in FINAL]

    def _wait_for_end(self, job_id: str, end: float | None, timeout: float | None) -> None:
        news: Any = None
        try:
            while self._store.job(job_id).state not in FINAL:
                left = _LONGEST_QUESTION_S if end is None else end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"job {job_id} has not ended within {timeout:g} s: it is {self.get_job_status(job_id)} and goes on; "
                        "`explain` tells why a job waits"
                    )
                news = self._wait_for_news(job_id, left, news)
        finally:
            if news is not None:
                ray.cancel(news)

    def _wait_for_news(self, job_id: str, left: float, news: Any) -> Any:
        """Wait a while for the scheduler's word, which is asked for once; gives the question, where it is still open."""
        seconds = min(_POLL_S, left)
        if self._scheduler is None:
            time.sleep(seconds)
            return None
        if not self._stay_connected():
            return None
        news = self._scheduler.wait_for.remote(job_id, left) if news is None else news
        if not ray.wait([news], timeout=seconds)[0]:
            return news
        try:
            ray.get(news)
        except RayError:
            # It is being started again; the store is asked meanwhile.
            time.sleep(seconds)
        return None

    def _stay_connected(self) -> bool:
        """Whether the Ray that this program joined still answers. Where it is gone, the one that took its place is joined.

        Ray itself would first wait, and then end this program. An actor is a part of its Ray, and has no other.
        """
        if self._scheduler is None or is_part_of_ray() or is_answering():
            return True
        logger.warning("the Ray that this program used is gone; joining the one of the scheduler, or starting one")
        self._scheduler = None
        disconnect()
        self.start()
        return False

    def _take_back(self, prepared: Sequence[Prepared]) -> None:
        for item in prepared:
            if item.transient:
                self._attached().drop.remote(item.transient_key)

    def _poke(self) -> None:
        """Tell the scheduler that there is something new; one that has ended since is started again."""
        if self._scheduler is not None and self._stay_connected():
            try:
                ray.get(self._scheduler.poke.remote(), timeout=_POKE_S)
            except ActorDiedError:
                self._scheduler = start_scheduler(self.settings)
            except RayError:
                return  # it looks by itself, soon

    def _attached(self) -> Any:
        if self._scheduler is None:
            raise RuntimeError("this dispatcher is stopped; call start() first")
        return self._scheduler


DispatcherAPI = Dispatcher
"""The same class under the name that programs know."""
