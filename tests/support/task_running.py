"""Running single tasks as a job would: from their stored form, one after the other, each committed before the next."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayzyme.jobs.states import JobState
from rayzyme.workflows.execution import Assignment, run_assignment
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import StoredValue, load_value
from rayzyme.workflows.publishing import publish
from rayzyme.workflows.specs import task_document
from rayzyme.workflows.task import Task
from rayzyme.workflows.workflow import Workflow


@dataclass
class TaskRunner:
    """A job's shared state, and what its tasks told of their progress.

    Attributes:
        folder: Where attempts have their folders.
        services: What tasks find as `context.services`.
        commits: Whether what tasks wrote is published; without, it stays in the folder of the attempt.
    """

    folder: Path
    services: Any = None
    commits: bool = True
    stored: dict[str, StoredValue] = field(default_factory=dict)
    told: list[tuple[float, str]] = field(default_factory=list)
    attempts: int = 0

    def run(self, task: Task) -> TaskOutcome:
        """One attempt of a task, in whatever way it ends."""
        self.attempts += 1
        self.told = []
        assignment = Assignment(
            "job_000000000001", "test", task.name, self.attempts, 1,
            source=json.loads(json.dumps(task_document(task))), shared_state=self.stored,
            folder=str(self.folder / str(self.attempts)),
        )  # fmt: skip
        outcome = run_assignment(assignment, progress=lambda *told: self.told.append(told), services=self.services)
        if outcome.state is JobState.COMPLETED and self.commits:
            self.stored.update(outcome.shared_writes)
            publish(outcome.manifest)
        return outcome

    def complete(self, task: Task) -> Any:
        """The output of a task that completes."""
        outcome = self.run(task)
        assert outcome.state is JobState.COMPLETED, f"{outcome.error_class}: {outcome.error}"
        assert outcome.output is not None
        return load_value(outcome.output)

    def fail(self, task: Task) -> str:
        """Class and message of the error of a task that fails for good."""
        outcome = self.run(task)
        assert outcome.state is JobState.FAILED
        assert outcome.is_final
        return f"{outcome.error_class}: {outcome.error}"

    def complete_all(self, workflow: Workflow) -> dict[str, Any]:
        """The outputs of all tasks of a workflow, by name."""
        names = [name for level in workflow.get_execution_plan() for name in level]
        return {task.name: self.complete(task) for name in names if (task := workflow.get_task(name)) is not None}

    def shared(self, key: str) -> Any:
        """A value of the shared state."""
        return load_value(self.stored[key])

    def share(self, **values: Any) -> None:
        """Put plain values into the shared state, as if earlier tasks had."""
        from rayzyme.workflows.outputs import store_value

        self.stored.update({key: store_value(value, self.folder, key) for key, value in values.items()})
