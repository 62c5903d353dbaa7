"""Building a workflow step by step; every method gives the builder back, and faults of the whole come out in `build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from rayzyme.workflows.task import Task
from rayzyme.workflows.workflow import TaskCallback, Workflow, WorkflowConfig

if TYPE_CHECKING:
    from rayzyme.workflows.workflow_result import WorkflowResult


class WorkflowBuilder:
    """Collects tasks and settings of a workflow."""

    def __init__(self, name: str, description: str = "") -> None:
        """Begin a workflow."""
        self._config = WorkflowConfig(name=name, description=description)
        self._tasks: list[tuple[Task, Sequence[str] | None]] = []

    def add_task(self, task: Task, depends_on: Sequence[str] | None = None) -> Self:
        """Add a task; `depends_on` may name tasks that are added later. None takes `task.config.depends_on`."""
        self._tasks.append((task, depends_on))
        return self

    def set_max_parallel(self, count: int) -> Self:
        """Run at most so many tasks at once."""
        return self._set(max_parallel_tasks=count)

    def set_fail_fast(self, value: bool) -> Self:
        """Whether the first failed task ends everything."""
        return self._set(fail_fast=value)

    def set_continue_on_error(self, value: bool) -> Self:
        """Whether the workflow counts as completed where tasks failed."""
        return self._set(continue_on_error=value)

    def set_timeout(self, seconds: float | None) -> Self:
        """Stop it after so many seconds."""
        return self._set(timeout=seconds)

    def on_task_complete(self, callback: TaskCallback) -> Self:
        """Call `callback(name, result)` for each task that completes."""
        return self._set(on_task_complete=callback)

    def on_task_failed(self, callback: TaskCallback) -> Self:
        """Call `callback(name, result)` for each task that fails for good."""
        return self._set(on_task_failed=callback)

    def on_workflow_complete(self, callback: Callable[[WorkflowResult], Any]) -> Self:
        """Call `callback(result)` at the end, however that is."""
        return self._set(on_workflow_complete=callback)

    def build(self) -> Workflow:
        """The workflow; the builder may go on and build others.

        Raises:
            ValueError: There is no task, a name is there twice, a dependency not at all, or a circle, which is named.
        """
        workflow = Workflow(self._config)
        for task, depends_on in self._tasks:
            workflow.add_task(task, depends_on)
        workflow.validate()
        return workflow

    def _set(self, **changes: Any) -> Self:
        self._config = replace(self._config, **changes)
        return self
