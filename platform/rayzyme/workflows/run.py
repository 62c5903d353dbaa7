"""One attempt of a workflow as a state machine: events in, commands out, no clock and no I/O.

It starts what may start, in plan order and so many at once, tries again what failed, stops what must stop, and says when it is
over. What it must remember stands in the `TaskChange`s that it gives out, so that the next run can go on from their rows:

- A task that has completed is not run again, but for one whose output could not be stored and is needed.
- A task that has failed stays failed, unless the workflow itself is retried; then its row says queued.
- A task that was running is lost, which counts as a site fault of it.
"""

from __future__ import annotations

import builtins
import heapq
from collections.abc import Mapping
from typing import Any

import rayzyme.errors
from rayzyme.errors import InvalidInput, TaskTimeout
from rayzyme.jobs.changes import TaskChange
from rayzyme.jobs.faults import classify, lost_too_often
from rayzyme.jobs.retries import SITE_RETRIES
from rayzyme.jobs.states import JobState
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import as_record, is_durable
from rayzyme.workflows.plan import Plan
from rayzyme.workflows.run_events import (
    CancelRun,
    Remark,
    RunCommand,
    RunEvent,
    RunFinished,
    StartTask,
    StopTask,
    TaskFinished,
    TaskLost,
    TaskMemory,
    TaskRun,
    TaskStopped,
)
from rayzyme.workflows.run_restoring import restored

MAX_SITE_FAULTS = 5
_NO_ERROR: Mapping[str, Any] = {"error_class": None, "error_message": None, "error_traceback": None}


class WorkflowRun:
    """Decides what one attempt of a job does next.

    Attributes:
        plan: The tasks; plan changes replace it.
        tasks: Where each stands.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        job_id: str,
        job_attempt: int,
        max_workers: int,
        memories: Mapping[str, TaskMemory] | None = None,
        max_site_faults: int = MAX_SITE_FAULTS,
    ) -> None:
        """Take up a job; nothing happens before `begin`.

        Args:
            plan: As it was submitted.
            job_id: Seeds the jitter of retries.
            job_attempt: Number of the job's attempt.
            max_workers: Most tasks at once that one job may have.
            memories: What is known of tasks from attempts before, by name.
            max_site_faults: At so many lost processes a task fails.
        """
        self.job_id, self.job_attempt = job_id, job_attempt
        self._memories = dict(memories or {})
        self._max_site_faults = max_site_faults
        self._workflow_retries = max((memory.workflow_retries for memory in self._memories.values()), default=0)
        self.plan, self.tasks, self._plan_changes = restored(plan, self._memories)
        self._limit = min(plan.config.max_parallel_tasks, max_workers)
        self._running: set[str] = set()
        self._deadline: float | None = None
        self._ending: RunFinished | None = None
        self._is_over = False
        self._why_cancelled: dict[str, Any] = {}
        self._stopped: dict[str, dict[str, Any]] = {}
        self._withheld: dict[str, TaskChange] = {}
        self._commands: list[RunCommand] = []
        self._unmet: dict[str, int] = {}
        self._ready: list[tuple[int, str]] = []
        self._delayed: dict[str, float] = {}

    def begin(self, now: float) -> list[RunCommand]:
        """Start what can start."""
        self._commands = []
        timeout = self.plan.config.timeout
        self._deadline = None if timeout is None else now + timeout
        for name in list(self.tasks):
            task = self.tasks[name]
            if task.state is JobState.FAILED:
                self._on_failure(name)
            elif task.state is JobState.RUNNING:
                self._lost(name, "the runner of its job was lost", now)
            elif task.state is JobState.COMPLETED and (self._plan_changes.get(name) or {}).get("stop_children"):
                self._cancel_descendants(name, "stopped_by")
        self._file_all()
        self._go_on(now)
        return self._commands

    def handle(self, event: RunEvent, now: float) -> list[RunCommand]:
        """What follows from an event. Commands are to be carried out in their order; a change holds once it is written."""
        self._commands = []
        match event:
            case TaskFinished(name, attempt, outcome) if self._is_at(name, attempt):
                # Of one that is being stopped only the answer counts: it says whether anything is left of it.
                if self.tasks[name].stopping is None:
                    self._finished(name, outcome, now)
            case TaskLost(name, attempt, reason) if self._is_at(name, attempt):
                if self.tasks[name].stopping is None:
                    self._lost(name, reason, now)
            case TaskStopped(name, attempt, survivors) if self._is_at(name, attempt):
                self._on_stopped(name, survivors, now)
            case CancelRun(reason):
                self._end(RunFinished(JobState.CANCELLED, error=reason), reason, {"reason": "cancelled"})
            case _:
                pass  # a Tick, or a late message about an attempt that is over
        self._go_on(now)
        return self._commands

    def next_wake(self) -> float | None:
        """When a `Tick` is due, seconds since 1970; None when nothing depends on time."""
        if self._is_over or self._ending is not None:
            return None
        times = [self.tasks[name].deadline for name in self._running if self.tasks[name].stopping is None]
        times += [self._deadline, min(self._delayed.values(), default=None)]
        return min((time for time in times if time is not None), default=None)

    def check_invariants(self) -> None:
        """Recompute everything from the tasks' states.

        Raises:
            AssertionError: Something does not fit.
        """
        states = {name: task.state for name, task in self.tasks.items()}
        assert set(states) == set(self.plan.tasks_by_name), "every planned task has a state, and no other"
        assert self._running == {name for name, state in states.items() if state is JobState.RUNNING}
        assert len(self._running) <= self._limit, "more tasks run than may"
        if self._is_over:
            assert not self._running, "over, and tasks run"
            return
        for task in self.plan.tasks:
            unmet = [name for name in task.depends_on if states[name] is not JobState.COMPLETED]
            assert not (unmet and task.name in self._running), f"{task.name} runs before {unmet}"
            assert self._unmet[task.name] == len(unmet), f"{task.name} waits for {unmet}"
        ready = {name for _, name in self._ready}
        assert not ready & self._delayed.keys(), "ready and delayed at once"
        startable = {name for name in states if states[name] is JobState.QUEUED and not self._unmet[name]}
        assert ready | self._delayed.keys() == startable, "what can start is not what is filed"
        if self._ending is None:
            assert self._running or startable, "nothing runs, nothing can start, and it is not over"
            assert len(self._running) == self._limit or not ready, "idle although a task could start"

    def _is_at(self, name: str, attempt: int) -> bool:
        task = self.tasks.get(name)
        return task is not None and task.state is JobState.RUNNING and task.attempt == attempt

    def _go_on(self, now: float) -> None:
        if self._is_over:
            return
        if self._ending is None:
            self._look_at_clock(now)
        if self._ending is None:
            while self._ready and len(self._running) < self._limit:
                self._start(heapq.heappop(self._ready)[1], now)
            if not self._running and not self._delayed:
                self._conclude()
        if self._ending is not None and not self._running:
            self._finish(self._ending)

    def _look_at_clock(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            error = f"workflow {self.plan.config.name} ran longer than its timeout of {self.plan.config.timeout:g} s"
            self._end(
                RunFinished(JobState.FAILED, TaskTimeout.__name__, error, "job"), error, {"reason": "workflow_timeout"}
            )
            return
        for name in sorted(self._running, key=self.plan.positions.__getitem__):
            task = self.tasks[name]
            if task.deadline is not None and now >= task.deadline and task.stopping is None:
                self._stop(name, self._timeout_message(name))
        for name in [name for name, time in self._delayed.items() if time <= now]:
            del self._delayed[name]
            self._file(name)

    def _start(self, name: str, now: float) -> None:
        task, config = self.tasks[name], self.plan.tasks_by_name[name].config
        task.state = JobState.RUNNING
        task.attempt += 1
        task.not_before = None
        task.deadline = None if config.timeout is None else now + config.timeout
        values: dict[str, Any] = {"not_before": None}
        if task.why_again is not None:
            values["metadata"] = self._counts(task) | {"run_again": task.why_again}
        self._running.add(name)
        self._commands += [
            TaskChange(name, task.attempt, JobState.RUNNING, values, {"leased": now}),
            StartTask(name, task.attempt),
        ]

    def _stop(self, name: str, reason: str) -> None:
        task = self.tasks[name]
        if task.stopping is None:
            task.stopping = reason
            self._commands.append(StopTask(name, task.attempt, reason))

    def _on_stopped(self, name: str, survivors: tuple[str, ...], now: float) -> None:
        task = self.tasks[name]
        metadata: dict[str, Any] = {}
        if survivors:
            metadata["survivors"] = list(survivors)
            text = f"processes of task {name}, attempt {task.attempt}, could not be stopped: {', '.join(survivors)}"
            self._commands.append(Remark(text, {"task": name, "attempt": task.attempt, "survivors": list(survivors)}))
        if self._ending is None:
            error = TaskOutcome.failed(
                TaskTimeout.__name__, self._timeout_message(name), metadata=metadata, computed_at=now
            )
            self._finished(name, error, now)
        else:
            self._leave(name, JobState.CANCELLED)
            self._stopped[name] = metadata

    def _finished(self, name: str, outcome: TaskOutcome, now: float) -> None:
        if outcome.state is JobState.COMPLETED:
            self._complete(name, outcome)
        elif outcome.state is JobState.FAILED:
            self._failed_attempt(name, outcome, now)
        else:
            # Nobody here asked for that, so it is not the task's doing.
            self._lost(name, outcome.error or "it was interrupted", now)

    def _complete(self, name: str, outcome: TaskOutcome) -> None:
        task = self.tasks[name]
        change = outcome.plan_change
        # One that only had to give its output again has changed the plan before.
        is_new_change = change is not None and name not in self._plan_changes
        if change is not None and is_new_change:
            try:
                plan = self.plan.with_change(name, change)
            except InvalidInput as error:
                self._fail(name, TaskOutcome.failed("InvalidInput", f"its plan change cannot be: {error}"))
                return
            self._plan_changes[name] = change
        self._leave(name, JobState.COMPLETED)
        task.shared_keys = tuple(outcome.shared_writes)
        values = {
            **_NO_ERROR,
            "output": as_record(outcome.output),
            "shared_writes": {key: as_record(value) for key, value in outcome.shared_writes.items()},
            "plan_change": self._plan_changes.get(name),
            "manifest": [dict(file) for file in outcome.manifest],
            "metrics": dict(outcome.metrics),
            "metadata": {**outcome.metadata, **self._counts(task, "workflow_retries")},
            "durable": is_durable(outcome.output) and all(map(is_durable, outcome.shared_writes.values())),
            "not_before": None,
        }
        self._commands.append(TaskChange(name, task.attempt, JobState.COMPLETED, values, _hops(outcome)))
        self._remark_on_conflicts(name)
        if change is not None and is_new_change:
            self._change_plan(plan)
            if change.get("stop_children"):
                self._cancel_descendants(name, "stopped_by")
        else:
            for dependent in self.plan.dependents[name]:
                self._unmet[dependent] -= 1
                self._file(dependent)

    def _failed_attempt(self, name: str, outcome: TaskOutcome, now: float) -> None:
        task, config = self.tasks[name], self.plan.tasks_by_name[name].config
        error = _known_error(outcome.error_class)
        is_worth_it = not outcome.is_final and (error is None or config.retries_on(error))
        if not is_worth_it or task.retries >= config.max_retries:
            self._fail(name, outcome)
            return
        task.retries += 1
        self._try_again(name, outcome, now + config.retries.delay_before(task.retries, f"{self.job_id}/{name}"))

    def _lost(self, name: str, reason: str, now: float) -> None:
        task = self.tasks[name]
        task.site_faults += 1
        outcome = TaskOutcome.failed("WorkerLost", reason)
        if task.site_faults >= self._max_site_faults:
            message = f"task {name} {lost_too_often(task.site_faults)}; the last time: {reason}"
            self._fail(name, TaskOutcome.failed("WorkerLost", message))
            return
        # Most losses are of one process; only when it happens again there is something to wait for.
        wait = SITE_RETRIES.delay_before(task.site_faults - 1, f"{self.job_id}/{name}") if task.site_faults > 1 else 0.0
        self._try_again(name, outcome, now + wait)

    def _try_again(self, name: str, outcome: TaskOutcome, not_before: float) -> None:
        self._leave(name, JobState.QUEUED)
        task = self.tasks[name]
        task.not_before = self._delayed[name] = not_before
        values = self._error_values(task, outcome) | {"not_before": not_before}
        self._commands.append(TaskChange(name, task.attempt, JobState.QUEUED, values, _hops(outcome)))

    def _fail(self, name: str, outcome: TaskOutcome) -> None:
        self._leave(name, JobState.FAILED)
        task = self.tasks[name]
        task.error_class, task.error = outcome.error_class, outcome.error
        values = self._error_values(task, outcome) | {"not_before": None}
        self._tell_end(TaskChange(name, task.attempt, JobState.FAILED, values, _hops(outcome)))
        self._on_failure(name)

    def _on_failure(self, name: str) -> None:
        task = self.tasks[name]
        if self.plan.config.fail_fast:
            error = f"task {name} failed in attempt {task.attempt}: {task.error_class}: {task.error}"
            finished = RunFinished(JobState.FAILED, task.error_class, error, classify(task.error_class or ""))
            self._end(finished, f"task {name} has failed", {"reason": "fail_fast", "culprit": name})
        self._cancel_descendants(name, "dependency_failed")

    def _cancel_descendants(self, name: str, reason: str) -> None:
        for descendant in self.plan.descendants(name):
            task = self.tasks[descendant]
            if task.state is JobState.QUEUED:
                task.state = JobState.CANCELLED
                values = {"metadata": self._counts(task) | {"reason": reason, "culprit": name}, "not_before": None}
                self._tell_end(TaskChange(descendant, task.attempt, JobState.CANCELLED, values))
        self._unfile_cancelled()

    def _end(self, finished: RunFinished, reason: str, why: dict[str, Any]) -> None:
        """Stop what runs; it is over when that has stopped. A user's wish goes before a failure."""
        if self._is_over or (self._ending is not None and finished.state is not JobState.CANCELLED):
            return
        self._ending, self._why_cancelled = finished, why
        for name in sorted(self._running, key=self.plan.positions.__getitem__):
            self._stop(name, reason)

    def _conclude(self) -> None:
        failed = [name for name, task in self.tasks.items() if task.state is JobState.FAILED]
        if not failed or self.plan.config.continue_on_error:
            self._ending = RunFinished(JobState.COMPLETED)
            return
        told = [f"{name} ({self.tasks[name].error_class}: {self.tasks[name].error})" for name in failed]
        count = f"{len(failed)} tasks" if len(failed) > 1 else "1 task"
        error = f"{count} failed: {'; '.join(told)}"
        error_class = self.tasks[failed[0]].error_class
        self._ending = RunFinished(JobState.FAILED, error_class, error, classify(error_class or ""))

    def _finish(self, finished: RunFinished) -> None:
        """Say how it ended, and with it where each task is left."""
        is_retried = finished.state is JobState.FAILED and self._has_retries_left()
        if not is_retried:
            self._commands += self._withheld.values()
        failed = tuple(task.name for task in self.plan.tasks if self.tasks[task.name].state is JobState.FAILED)
        for planned in self.plan.tasks:
            name, task = planned.name, self.tasks[planned.name]
            if is_retried:
                self._reset(name)
            elif name in self._stopped or task.state is JobState.QUEUED:
                task.state = JobState.CANCELLED
                metadata = self._counts(task) | self._why_cancelled | self._stopped.get(name, {})
                values = {"metadata": metadata, "not_before": None}
                self._commands.append(TaskChange(name, task.attempt, JobState.CANCELLED, values))
        self._ready, self._delayed, self._is_over = [], {}, True
        self._commands.append(
            RunFinished(finished.state, finished.error_class, finished.error, finished.fault, failed, is_retried)
        )

    def _reset(self, name: str) -> None:
        """Have the next run do this task again, with all its retries."""
        task = self.tasks[name]
        if task.state is JobState.COMPLETED and self.plan.config.retry_failed_tasks:
            return
        if task.attempt == 0 and task.state is JobState.QUEUED:
            return
        values = {
            "metadata": {"workflow_retries": self._workflow_retries + 1}, "not_before": None,
            "error_class": task.error_class, "error_message": task.error,
        }  # fmt: skip
        task.state = JobState.QUEUED
        self._commands = [
            command for command in self._commands if not (isinstance(command, TaskChange) and command.task == name)
        ]
        self._commands.append(TaskChange(name, task.attempt, JobState.QUEUED, values))

    def _tell_end(self, change: TaskChange) -> None:
        """Where a failure only leads to another run, its row is not to say that it is for good."""
        if self.plan.config.fail_fast and self._has_retries_left():
            self._withheld[change.task] = change
        else:
            self._commands.append(change)

    def _has_retries_left(self) -> bool:
        return self._workflow_retries < self.plan.config.max_workflow_retries

    def _leave(self, name: str, state: JobState) -> None:
        """The attempt is over."""
        task = self.tasks[name]
        task.state, task.deadline, task.stopping, task.not_before = state, None, None, None
        self._running.discard(name)

    def _change_plan(self, plan: Plan) -> None:
        self.plan = plan
        for name in plan.tasks_by_name:
            if name not in self.tasks:
                before = self._memories.get(name)
                self.tasks[name] = TaskRun(attempt=before.attempt if before is not None else 0)
        self._file_all()

    def _file_all(self) -> None:
        done = {name for name, task in self.tasks.items() if task.state is JobState.COMPLETED}
        self._unmet = {task.name: sum(name not in done for name in task.depends_on) for task in self.plan.tasks}
        self._ready, self._delayed = [], {}
        for name in self.plan.tasks_by_name:
            not_before = self.tasks[name].not_before
            if not_before is not None and self.tasks[name].state is JobState.QUEUED and not self._unmet[name]:
                self._delayed[name] = not_before
            else:
                self._file(name)

    def _file(self, name: str) -> None:
        """Put a task where it can be started, if it can."""
        if self.tasks[name].state is JobState.QUEUED and not self._unmet[name]:
            heapq.heappush(self._ready, (self.plan.positions[name], name))

    def _unfile_cancelled(self) -> None:
        self._ready = [entry for entry in self._ready if self.tasks[entry[1]].state is JobState.QUEUED]
        heapq.heapify(self._ready)

    def _remark_on_conflicts(self, name: str) -> None:
        keys = set(self.tasks[name].shared_keys)
        if not keys:
            return
        related = {name, *self.plan.ancestors(name), *self.plan.descendants(name)}
        for other, task in self.tasks.items():
            for key in sorted(keys.intersection(task.shared_keys)) if other not in related else ():
                winner = max(name, other, key=self.plan.positions.__getitem__)
                text = f"tasks {other} and {name} both wrote {key!r} to the shared state; {winner}, later in the plan, wins"
                self._commands.append(Remark(text, {"key": key, "tasks": [other, name], "winner": winner}))

    def _error_values(self, task: TaskRun, outcome: TaskOutcome) -> dict[str, Any]:
        return {
            "error_class": outcome.error_class, "error_message": outcome.error, "error_traceback": outcome.error_traceback,
            "metrics": dict(outcome.metrics), "metadata": {**outcome.metadata, **self._counts(task)},
            "site_faults": task.site_faults,
        }  # fmt: skip

    def _counts(self, task: TaskRun, *names: str) -> dict[str, Any]:
        """What of a task's budgets the next run must know, and stands in no column of its own."""
        counts = {"retries": task.retries, "workflow_retries": self._workflow_retries}
        return {name: count for name, count in counts.items() if count and (not names or name in names)}

    def _timeout_message(self, name: str) -> str:
        return f"task {name} ran longer than its timeout of {self.plan.tasks_by_name[name].config.timeout:g} s"


def _known_error(name: str | None) -> type[BaseException] | None:
    """The class of that name of Rayzyme's errors or Python's; None for others, whose process knew them and has judged."""
    found = getattr(rayzyme.errors, name or "", None) or getattr(builtins, name or "", None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _hops(outcome: TaskOutcome) -> dict[str, float]:
    hops = {"started": outcome.started_at, "computed": outcome.computed_at}
    return {name: moment for name, moment in hops.items() if moment}
