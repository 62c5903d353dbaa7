"""One attempt of one task, run in this process from plain data to plain data.

Whatever the task does, the answer is an outcome, and `cleanup` has run. Only what is done to the thread from outside comes
through: an interrupt of the keyboard, or `TaskInterrupted`.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayzyme.jobs.states import JobState
from rayzyme.jobs.vocabularies import TaskStatus
from rayzyme.resources import TwoLevelCache
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import SharedState, StoredValue, StoredValues, store_value
from rayzyme.workflows.plan_change import PlanChange
from rayzyme.workflows.publishing import manifest_of
from rayzyme.workflows.result import TaskResult, as_json
from rayzyme.workflows.specs import change_document, load_task
from rayzyme.workflows.task import FunctionTask, Task
from rayzyme.workflows.task_cache import CachedTask
from rayzyme.workflows.task_config import Document

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], Any]
"""Called with a percentage and a message."""


class TaskInterrupted(BaseException):
    """Raised in a task's thread to stop it; not an `Exception`, so that tasks do not take it for one of theirs."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attempt to run.

    Attributes:
        job_id: The job.
        job_name: Its name, for people.
        task: The task's name in its workflow.
        attempt: Number of the attempt, from 1.
        job_attempt: Number of the job's attempt.
        source: The task's document, or a transient task.
        inputs: What the tasks that it depends on gave, by name.
        shared_state: What its ancestors wrote, by key.
        folder: Folder of the attempt; made when something is written.
        gpu_ids: GPUs that it was granted.
        memory_mb: MB (2^20 bytes) that it may take; None as much as there is.
        cache_enabled: Whether the runner gives it a cache.
        parent: The task whose plan change added it; "" where none did.
    """

    job_id: str
    job_name: str
    task: str
    attempt: int
    job_attempt: int
    source: Document | Task
    inputs: Mapping[str, StoredValue] = field(default_factory=dict)
    shared_state: Mapping[str, StoredValue] = field(default_factory=dict)
    folder: str = ""
    gpu_ids: Sequence[int] = ()
    memory_mb: int | None = None
    cache_enabled: bool = False
    parent: str = ""

    @property
    def type_name(self) -> str:
        """What sort of task it is, for statistics."""
        if isinstance(self.source, FunctionTask):
            return f"{self.source.func.__module__}:{getattr(self.source.func, '__qualname__', self.task)}"
        if isinstance(self.source, Task):
            return f"{type(self.source).__module__}:{type(self.source).__qualname__}"
        return str(self.source["type"])

    def with_gpus(self, gpu_ids: Sequence[int]) -> Assignment:
        """The same with GPUs."""
        return replace(self, gpu_ids=tuple(gpu_ids)) if gpu_ids else self


def run_assignment(
    assignment: Assignment,
    *,
    progress: Progress | None = None,
    services: Any = None,
    cache: TwoLevelCache | None = None,
    on_ready: Callable[[Callable[[], None]], Any] | None = None,
    clock: Callable[[], float] = time.time,
) -> TaskOutcome:
    """Run it.

    Args:
        assignment: What to run.
        progress: Told how far the task is.
        services: What tasks find as `context.services`.
        cache: Where results of tasks with `cache_enabled` are kept; None keeps none.
        on_ready: Given the task's cleanup, before it begins, for when its thread is too stuck to call it; it runs once.
        clock: Seconds since 1970.
    """
    started_at = clock()
    try:
        task = load_task(assignment.source)
    except Exception as error:
        outcome = _failure(error, is_final=True)
        return replace(outcome, started_at=started_at, computed_at=clock())
    metrics: dict[str, Any] = {}
    context = _context(assignment, task, started_at, progress, services, metrics)
    cleanup = _Once(task, context)
    if on_ready is not None:
        on_ready(cleanup)
    try:
        outcome = _attempt(assignment, task, context, cache)
    except (KeyboardInterrupt, TaskInterrupted):
        raise
    except SystemExit as error:
        outcome = _failure(
            RuntimeError(f"it called sys.exit({error.code!r})"), is_final=not task.config.retries_on(SystemExit)
        )
    except BaseException as error:
        outcome = _failure(error, is_final=not task.config.retries_on(type(error)))
    finally:
        cleanup()
    metadata = dict(outcome.metadata)
    if task.config.gpus_needed and not assignment.gpu_ids and not task.uses_actors:
        metadata.setdefault("device", "cpu")
        logger.warning("task %s needs a GPU, was granted none, and ran on the CPU", assignment.task)
    return replace(
        outcome, metrics={**as_json(metrics), **outcome.metrics}, metadata=metadata, started_at=started_at, computed_at=clock()
    )  # fmt: skip


class _Once:
    """A task's cleanup, for whoever calls it first."""

    def __init__(self, task: Task, context: TaskContext) -> None:
        self._task, self._context = task, context
        self._called = threading.Lock()

    def __call__(self) -> None:
        if not self._called.acquire(blocking=False):
            return
        try:
            self._task.cleanup(self._context)
        except Exception:
            logger.exception("the cleanup of task %s failed; its result stands", self._context.task_name)


def _context(
    assignment: Assignment,
    task: Task,
    started_at: float,
    progress: Progress | None,
    services: Any,
    metrics: dict[str, Any],
) -> TaskContext:
    def tell(percentage: float, message: str = "") -> None:
        if progress is not None:
            progress(float(percentage), str(message))

    limit = assignment.memory_mb
    return TaskContext(
        task_id=f"{assignment.job_id}/{assignment.task}",
        task_name=assignment.task,
        workflow_id=assignment.job_id,
        parent_task_id=assignment.parent or assignment.job_id,
        gpu_ids=list(assignment.gpu_ids),
        memory_limit_mb=_memory_of_this_machine() if limit is None else limit,
        start_time=datetime.fromtimestamp(started_at, UTC),
        attempt=assignment.attempt,
        shared_state=SharedState(assignment.shared_state),
        config=dict(task.config.task_params),
        progress_callback=tell,
        metrics_callback=metrics.update,
        inputs=StoredValues(assignment.inputs),
        services=services,
        folder=Path(assignment.folder) if assignment.folder else None,
    )


def _attempt(assignment: Assignment, task: Task, context: TaskContext, cache: TwoLevelCache | None) -> TaskOutcome:
    if not task.validate_inputs(context):
        return TaskOutcome.failed(
            "ValidationError", f"Input validation failed for task {assignment.task}", is_final=True
        )
    if cache is None or not task.config.cache_enabled:
        return _outcome(task.execute(context), task, context)
    cached = CachedTask(assignment, task, context, cache)
    found = cached.find()
    if found is not None:
        return found
    return cached.keep(_outcome(task.execute(context), task, context))


def _outcome(returned: Any, task: Task, context: TaskContext) -> TaskOutcome:
    """What a task returned, stored."""
    if isinstance(returned, PlanChange):
        returned = TaskResult(output=returned.output, plan_change=returned)
    elif not isinstance(returned, TaskResult):
        returned = TaskResult(output=returned)
    told = {"metrics": as_json(returned.metrics), "metadata": as_json(returned.metadata)}
    if returned.status is not TaskStatus.COMPLETED:
        return _returned_failure(returned, task, told)
    folder = context.folder or Path()
    shared = context.shared_state
    change = returned.plan_change
    return TaskOutcome(
        JobState.COMPLETED,
        output=store_value(returned.output, folder, "output"),
        shared_writes=shared.writes(folder) if isinstance(shared, SharedState) else {},
        plan_change=None if change is None else change_document(change),
        manifest=manifest_of(context.written) if context.written else (),
        **told,
    )


def _returned_failure(result: TaskResult, task: Task, told: dict[str, Any]) -> TaskOutcome:
    """A failure is one however a task tells of it."""
    error = result.exception
    kind = Exception if error is None else type(error)
    if result.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
        result.error = f"it returned a result that is {result.status}; return one that is completed or failed"
    return TaskOutcome.failed(
        "TaskFailed" if error is None else kind.__name__,
        result.error or f"it returned a result that is {result.status}, without saying why",
        error_traceback=result.error_traceback,
        is_final=not task.config.retries_on(kind),
        **told,
    )


def _failure(error: BaseException, *, is_final: bool) -> TaskOutcome:
    text = "".join(traceback.format_exception(error))
    return TaskOutcome.failed(
        type(error).__name__, str(error) or type(error).__name__, error_traceback=text, is_final=is_final
    )


@lru_cache(maxsize=1)
def _memory_of_this_machine() -> float:
    from rayzyme.resources.memory import system_memory

    return system_memory().total / 2**20
