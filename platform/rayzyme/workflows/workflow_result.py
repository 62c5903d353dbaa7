"""How a workflow ended, as it is told to the program that submitted it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from rayzyme.jobs.records import JobRecord, TaskRecord
from rayzyme.jobs.vocabularies import TaskStatus, WorkflowStatus, task_status, workflow_status
from rayzyme.workflows.outputs import load_value
from rayzyme.workflows.result import TaskResult, as_json


@dataclass
class WorkflowResult:
    """A workflow and its tasks.

    Attributes:
        status: How it ended.
        task_results: Of each task, by name.
        metadata: Counts `total_tasks`, `completed_tasks` and `failed_tasks`.
        error: What went wrong.
        start_time: When its first attempt began, UTC; None where none did.
        end_time: When it ended.
    """

    status: WorkflowStatus
    task_results: dict[str, TaskResult] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None

    @classmethod
    def from_records(cls, job: JobRecord, tasks: Sequence[TaskRecord]) -> WorkflowResult:
        """What the store tells of a job; outputs are loaded when they are first asked for.

        Args:
            job: The job.
            tasks: Its tasks, in plan order.
        """
        results = {task.name: _task_result(task) for task in tasks}
        result = cls(
            workflow_status(job.job.state, is_held=job.job.is_held),
            results,
            error=job.error_message,
            start_time=job.started_at,
            end_time=job.completed_at,
        )
        result.metadata = {
            # Plan changes add tasks that were not counted when the job was submitted.
            "total_tasks": max(job.job.task_count, len(tasks)),
            "completed_tasks": len(result.completed_tasks),
            "failed_tasks": len(result.failed_tasks),
        }
        return result

    @property
    def failed_tasks(self) -> list[str]:
        """Names of the tasks that failed."""
        return self._names(TaskStatus.FAILED)

    @property
    def completed_tasks(self) -> list[str]:
        """Names of the tasks that completed."""
        return self._names(TaskStatus.COMPLETED)

    @property
    def duration(self) -> float:
        """Seconds from the begin of its first attempt to its end, all attempts included; 0.0 where it never began."""
        if self.start_time is None or self.end_time is None:
            return 0.0
        return max(0.0, (self.end_time - self.start_time).total_seconds())

    @property
    def success(self) -> bool:
        """Whether it completed and none of its tasks failed."""
        return self.status is WorkflowStatus.COMPLETED and not self.failed_tasks

    def get_task_result(self, name: str) -> TaskResult | None:
        """The result of a task; None where the workflow has no such task."""
        return self.task_results.get(name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "status": self.status.value,
            "success": self.success,
            "error": self.error,
            "duration": self.duration,
            "start_time": as_json(self.start_time),
            "end_time": as_json(self.end_time),
            "metadata": as_json(self.metadata),
            "completed_tasks": self.completed_tasks,
            "failed_tasks": self.failed_tasks,
            "task_results": {name: result.to_dict() for name, result in self.task_results.items()},
        }

    def _names(self, status: TaskStatus) -> list[str]:
        return [name for name, result in self.task_results.items() if result.status is status]


def _task_result(task: TaskRecord) -> TaskResult:
    fields: dict[str, Any] = {
        # A queued task whose newest attempt is n waits for attempt n + 1.
        "status": task_status(task.state, task.attempt + 1),
        "metadata": {**(task.metadata or {}), **({"error_class": task.error_class} if task.error_class else {})},
        "metrics": dict(task.metrics or {}),
        "error": task.error_message,
        "error_traceback": task.error_traceback,
        "start_time": task.started_at,
        "end_time": task.computed_at,
    }
    if task.output is None:
        return TaskResult(**fields)
    return TaskResult.with_stored_output(partial(load_value, task.output), **fields)
