"""A run driven by hand: what it tells to start runs until the test says otherwise, what it tells to write is in rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rayzyme.jobs.changes import TaskChange
from rayzyme.jobs.records import TaskRecord
from rayzyme.jobs.states import JobState
from rayzyme.workflows import TaskConfig, WorkflowConfig
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import store_value
from rayzyme.workflows.plan import Plan, PlannedTask
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


def planned(name: str, *depends_on: str, **config: Any) -> PlannedTask:
    """A task that runs nothing."""
    return PlannedTask(
        name, TaskConfig(name, **{"retry_jitter": 0, **config}), {"name": name, "type": "m:f"}, depends_on
    )


def added(name: str, *depends_on: str) -> dict[str, Any]:
    """The document of a task that a plan change adds."""
    return {"name": name, "type": "m:f", "depends_on": list(depends_on)}


class Story:
    """One job: its plan, its rows, and the run of its newest attempt, whose invariants are checked after each step.

    Attributes:
        run: The run.
        now: The time, in seconds; 0 at the beginning.
        running: Attempt numbers of the tasks that run, by name.
        told: Commands of the last step, in short: `start a.1`, `stop a.1`, `a queued`, `completed`.
        rows: What was written of each task.
        remarks: What was remarked.
        finished: How it ended.
        has_processes: Whether what is started has a process at once.
        began: Every start so far, `a.1`, over all attempts of the job.
    """

    def __init__(self, *tasks: PlannedTask, max_workers: int = 9, has_processes: bool = True, **config: Any) -> None:
        self.plan = Plan.of(WorkflowConfig("w", **{"max_parallel_tasks": 9, **config}), list(tasks))
        self._max_workers = max_workers
        self.has_processes = has_processes
        self.now = 0.0
        self.rows: dict[str, TaskRecord] = {}
        self.began: list[str] = []
        self.remarks: list[str] = []
        self._job_attempt = 0

    def begin(self) -> list[str]:
        """Begin the job, or begin it again after its runner was lost: only what was written is still known."""
        self._job_attempt += 1
        self.running: dict[str, int] = {}
        self.finished: RunFinished | None = None
        self.run = WorkflowRun(
            self.plan,
            job_id="job_1",
            job_attempt=self._job_attempt,
            max_workers=self._max_workers,
            memories={name: TaskMemory.of_row(row) for name, row in self.rows.items()},
        )
        return self._take(self.run.begin(self.now))

    def begins(self, name: str) -> None:
        """An attempt gets its process; at once, where the story has enough of them."""
        assert self.run.handle(TaskBegan(name, self.running[name]), self.now) == []

    def complete(
        self, name: str, output: Any = None, shared: Mapping[str, Any] | None = None, **more: Any
    ) -> list[str]:
        """A task completes."""
        writes = {key: store_value(value, Path(), key) for key, value in (shared or {}).items()}
        outcome = TaskOutcome(
            JobState.COMPLETED, output=store_value(output, Path(), "output"), shared_writes=writes, **more
        )
        return self.finish(name, outcome)

    def fail(self, name: str, error_class: str = "OddError", **more: Any) -> list[str]:
        """An attempt fails."""
        return self.finish(name, TaskOutcome.failed(error_class, "bad", **more))

    def finish(self, name: str, outcome: TaskOutcome) -> list[str]:
        """An attempt comes to an end."""
        return self.handle(TaskFinished(name, self.running.pop(name), outcome))

    def lose(self, name: str) -> list[str]:
        """An attempt's process is gone."""
        return self.handle(TaskLost(name, self.running.pop(name), "it died"))

    def stopped(self, name: str, *survivors: str) -> list[str]:
        """An attempt that was to be stopped is."""
        return self.handle(TaskStopped(name, self.running.pop(name), survivors))

    def cancel(self) -> list[str]:
        """The job is cancelled."""
        return self.handle(CancelRun("its user said so"))

    def wait(self, seconds: float) -> list[str]:
        """Time passes, with a tick at its end."""
        self.now += seconds
        return self.handle(Tick())

    def wake(self) -> list[str]:
        """Time passes until the run wants to be woken."""
        at = self.run.next_wake()
        assert at is not None, "it waits for nothing"
        return self.wait(at - self.now)

    def handle(self, event: RunEvent) -> list[str]:
        """Anything happens."""
        return self._take(self.run.handle(event, self.now))

    def states(self) -> dict[str, str]:
        """What is written of each task's state."""
        return {name: row.state.value for name, row in self.rows.items()}

    def _take(self, commands: list[RunCommand]) -> list[str]:
        self.told = []
        for command in commands:
            assert self.finished is None, "nothing comes after the end"
            match command:
                case StartTask(name, attempt):
                    assert name not in self.running, f"{name} runs already"
                    self.running[name] = attempt
                    self.began.append(f"{name}.{attempt}")
                    self.told.append(f"start {name}.{attempt}")
                case StopTask(name, attempt):
                    self.told.append(f"stop {name}.{attempt}")
                case TaskChange():
                    self._write(command)
                    if command.state is not JobState.RUNNING:
                        self.told.append(f"{command.task} {command.state}")
                case Remark(text):
                    self.remarks.append(text)
                case RunFinished():
                    self.finished = command
                    self.told.append("again" if command.retry_workflow else command.state.value)
        self.run.check_invariants()
        if self.has_processes:
            for command in commands:
                if isinstance(command, StartTask):
                    self.begins(command.task)
        return self.told

    def _write(self, change: TaskChange) -> None:
        before = self.rows.get(change.task)
        known = {} if before is None else {item.name: getattr(before, item.name) for item in fields(before)}
        assert change.attempt >= known.get("attempt", 0), "attempts only grow"
        if known.get("state") is JobState.COMPLETED and change.state is not JobState.COMPLETED:
            assert change.attempt > known["attempt"], "what was committed is not undone"
        self.rows[change.task] = TaskRecord(
            **{**known, **change.values, "name": change.task, "state": change.state, "attempt": change.attempt}
        )
