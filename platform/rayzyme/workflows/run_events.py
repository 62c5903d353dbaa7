"""What a run is told, what it answers, and what it remembers of the attempts of its job before this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rayzyme.jobs.changes import TaskChange
from rayzyme.jobs.faults import Fault
from rayzyme.jobs.states import JobState
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import StoredValue, is_durable


@dataclass(frozen=True, slots=True)
class TaskBegan:
    """An attempt has its process, and its time counts from now; what it waited for one does not."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """An attempt ended by itself."""

    task: str
    attempt: int
    outcome: TaskOutcome


@dataclass(frozen=True, slots=True)
class TaskLost:
    """The process of an attempt is gone; nobody can say how far that was."""

    task: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskStopped:
    """The answer to `StopTask`: nothing of the attempt runs any more, but for the processes that are described."""

    task: str
    attempt: int
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelRun:
    """The job is to end as cancelled."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `WorkflowRun.next_wake`."""


RunEvent = TaskBegan | TaskFinished | TaskLost | TaskStopped | CancelRun | Tick


@dataclass(frozen=True, slots=True)
class StartTask:
    """Begin an attempt."""

    task: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StopTask:
    """Stop an attempt and everything that it started, and answer with `TaskStopped`, also where it had ended already."""

    task: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that the job's story should tell.

    Attributes:
        text: In words.
        data: The same as JSON.
    """

    text: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; nothing runs any more.

    Attributes:
        state: The job's state now, where `retry_workflow` is False.
        error_class: Name of the class of what went wrong.
        error: In words.
        fault: Whose.
        failed_tasks: Names, in plan order.
        retry_workflow: The job is to be queued again; the next run knows from the tasks' rows what to do.
    """

    state: JobState
    error_class: str | None = None
    error: str | None = None
    fault: Fault | None = None
    failed_tasks: tuple[str, ...] = ()
    retry_workflow: bool = False


RunCommand = StartTask | StopTask | TaskChange | Remark | RunFinished


class TaskRow(Protocol):
    """What the store keeps of a task; `not_before` in seconds since 1970 or as a time."""

    @property
    def state(self) -> JobState: ...
    @property
    def attempt(self) -> int: ...
    @property
    def site_faults(self) -> int: ...
    @property
    def output(self) -> StoredValue | None: ...
    @property
    def shared_writes(self) -> Mapping[str, StoredValue] | None: ...
    @property
    def plan_change(self) -> Mapping[str, Any] | None: ...
    @property
    def not_before(self) -> float | datetime | None: ...
    @property
    def metadata(self) -> Mapping[str, Any] | None: ...
    @property
    def error_class(self) -> str | None: ...
    @property
    def error_message(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class TaskMemory:
    """What a run knows of a task from the attempts of its job before.

    Attributes:
        state: Its state then.
        attempt: Number of its newest attempt.
        site_faults: How often it lost its process.
        is_durable: Whether it can be run without the program that submitted it.
        output_is_durable: Whether its output is still to be had.
        shared_is_durable: Whether what it wrote to the shared state is.
        not_before: Earliest time of its next attempt.
        plan_change: What it made of the plan.
        retries: How many of its `max_retries` are used.
        workflow_retries: How many of the workflow's are.
        shared_keys: What it wrote to the shared state.
        error_class: Name of the class of the error that it failed with.
        error: The error's message.
    """

    state: JobState
    attempt: int = 0
    site_faults: int = 0
    is_durable: bool = True
    output_is_durable: bool = True
    not_before: float | None = None
    plan_change: Mapping[str, Any] | None = None
    shared_is_durable: bool = True
    retries: int = 0
    workflow_retries: int = 0
    shared_keys: tuple[str, ...] = ()
    error_class: str | None = None
    error: str | None = None

    @classmethod
    def of_row(cls, row: TaskRow) -> TaskMemory:
        """What the store kept."""
        metadata, shared = row.metadata or {}, row.shared_writes or {}
        not_before = row.not_before
        return cls(
            state=row.state,
            attempt=row.attempt,
            site_faults=row.site_faults,
            output_is_durable=is_durable(row.output),
            not_before=not_before.timestamp() if isinstance(not_before, datetime) else not_before,
            plan_change=row.plan_change,
            shared_is_durable=all(is_durable(value) for value in shared.values()),
            retries=int(metadata.get("retries", 0)),
            workflow_retries=int(metadata.get("workflow_retries", 0)),
            shared_keys=tuple(shared),
            error_class=row.error_class,
            error=row.error_message,
        )


@dataclass(slots=True)
class TaskRun:
    """Where a task stands in a run.

    Attributes:
        state: Its state; an attempt that is being stopped counts as running.
        attempt: Number of its newest attempt.
        retries: Used ones of its `max_retries`.
        site_faults: How often it lost its process.
        not_before: Earliest time of its next attempt.
        deadline: When the attempt that runs is stopped.
        stopping: Why it is being stopped; None where it is not.
        why_again: Why it is run although it had completed before.
        shared_keys: What it wrote to the shared state.
        error_class: Name of the class of the error that it failed with.
        error: The error's message.
    """

    state: JobState = JobState.QUEUED
    attempt: int = 0
    retries: int = 0
    site_faults: int = 0
    not_before: float | None = None
    deadline: float | None = None
    stopping: str | None = None
    why_again: str | None = None
    shared_keys: tuple[str, ...] = ()
    error_class: str | None = None
    error: str | None = None
