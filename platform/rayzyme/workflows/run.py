"""One attempt of a workflow as a state machine: events in, commands out, no clock and no I/O.

It starts what may start, in plan order and so many at once, tries again what failed, stops what must stop, and says when it is
over. What it must remember stands in the `TaskChange`s that it gives out, so that the next run can go on from their rows:

- A task that has completed is not run again, but for one whose output could not be stored and is needed.
- A task that has failed stays failed, unless the workflow itself is retried; then its row says queued.
- A task that was running is lost, which counts as a site fault of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayzyme.errors import InvalidInput, MemoryLimitExceeded, TaskTimeout
from rayzyme.jobs.changes import TaskChange
from rayzyme.jobs.faults import classify, lost_too_often
from rayzyme.jobs.retries import SITE_RETRIES
from rayzyme.jobs.states import JobState
from rayzyme.workflows import run_changes
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.plan import Plan
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
    TaskRun,
    TaskStopped,
)
from rayzyme.workflows.run_order import StartOrder
from rayzyme.workflows.run_restoring import restored

MAX_SITE_FAULTS = 5
# What happens to a task's process; of all other errors that process has judged whether they are worth a retry.
_JUDGED_HERE = {error.__name__: error for error in (TaskTimeout, MemoryLimitExceeded)}


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
        self.plan, self.tasks, self._plan_changes = restored(plan, self._memories, self._workflow_retries)
        self._limit = min(plan.config.max_parallel_tasks, max_workers)
        self._running: set[str] = set()
        self._deadline: float | None = None
        self._ending: RunFinished | None = None
        self._is_over = False
        self._why_cancelled: dict[str, Any] = {}
        self._stopped: dict[str, dict[str, Any]] = {}
        self._withheld: dict[str, TaskChange] = {}
        self._commands: list[RunCommand] = []
        self._order = StartOrder()

    def begin(self, now: float) -> list[RunCommand]:
        """Start what can start."""
        self._commands = []
        timeout = self.plan.config.timeout
        self._deadline = None if timeout is None else now + timeout
        self._order.rebuild(self.plan, self.tasks)
        for name in list(self.tasks):
            task = self.tasks[name]
            if task.state is JobState.FAILED:
                self._on_failure(name)
            elif task.state is JobState.RUNNING:
                self._lost(name, "the runner of its job was lost", now)
            elif task.state is JobState.COMPLETED and (self._plan_changes.get(name) or {}).get("stop_children"):
                self._cancel_descendants(name, "stopped_by")
        self._go_on(now)
        return self._commands

    def handle(self, event: RunEvent, now: float) -> list[RunCommand]:
        """What follows from an event. Commands are to be carried out in their order; a change holds once it is written."""
        self._commands = []
        match event:
            case TaskBegan(name, attempt) if self._is_at(name, attempt):
                timeout = self.plan.tasks_by_name[name].config.timeout
                self.tasks[name].deadline = None if timeout is None else now + timeout
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
        times += [self._deadline, self._order.next_time]
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
        self._order.check()
        for name in self._running:
            unmet = [one for one in self.plan.tasks_by_name[name].depends_on if states[one] is not JobState.COMPLETED]
            assert not unmet, f"{name} runs before {unmet}"
        if self._ending is None:
            assert self._running or self._order, "nothing runs, nothing can start, and it is not over"
            assert len(self._running) == self._limit or not self._order.has_ready, "idle although a task could start"

    def _is_at(self, name: str, attempt: int) -> bool:
        task = self.tasks.get(name)
        return task is not None and task.state is JobState.RUNNING and task.attempt == attempt

    def _go_on(self, now: float) -> None:
        if self._is_over:
            return
        if self._ending is None:
            self._look_at_clock(now)
        if self._ending is None:
            for name in self._order.take(self._limit - len(self._running)):
                self._start(name, now)
            if not self._running and not self._order:
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
        self._order.note_time(now)

    def _start(self, name: str, now: float) -> None:
        task = self.tasks[name]
        task.state = JobState.RUNNING
        task.attempt += 1
        task.not_before = None
        self._running.add(name)
        self._commands += [run_changes.begun(name, task, now, self._used(task)), StartTask(name, task.attempt)]

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
        used = self._used(task, "workflow_retries")
        self._commands.append(run_changes.completed(name, task, outcome, self._plan_changes.get(name), used))
        self._remark_on_conflicts(name)
        if change is not None and is_new_change:
            self._change_plan(plan)
            if change.get("stop_children"):
                self._cancel_descendants(name, "stopped_by")
        else:
            self._order.note_completed(name)

    def _failed_attempt(self, name: str, outcome: TaskOutcome, now: float) -> None:
        task, config = self.tasks[name], self.plan.tasks_by_name[name].config
        error = _JUDGED_HERE.get(outcome.error_class or "")
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
        task.not_before = not_before
        self._order.note_delayed(name)
        self._commands.append(run_changes.gone_wrong(name, task, outcome, self._used(task)))

    def _fail(self, name: str, outcome: TaskOutcome) -> None:
        self._leave(name, JobState.FAILED)
        task = self.tasks[name]
        task.error_class, task.error = outcome.error_class, outcome.error
        self._tell_end(run_changes.gone_wrong(name, task, outcome, self._used(task)))
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
                why = {"reason": reason, "culprit": name}
                self._tell_end(run_changes.cancelled(descendant, task, why, self._used(task)))
        self._order.note_cancelled()

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
                why = {**self._why_cancelled, **self._stopped.get(name, {})}
                self._commands.append(run_changes.cancelled(name, task, why, self._used(task)))
        self._order.clear()
        self._is_over = True
        self._commands.append(
            RunFinished(finished.state, finished.error_class, finished.error, finished.fault, failed, is_retried)
        )

    def _reset(self, name: str) -> None:
        """Have the next run do this task again, with all its retries."""
        task = self.tasks[name]
        # What has completed keeps its row; where it is to run again, the next run sees that it is of an earlier try.
        if task.state is JobState.COMPLETED:
            return
        if task.attempt == 0 and task.state is JobState.QUEUED:
            return
        task.state = JobState.QUEUED
        self._commands = [
            command for command in self._commands if not (isinstance(command, TaskChange) and command.task == name)
        ]
        self._commands.append(run_changes.done_again(name, task, self._workflow_retries + 1))

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
        self._order.rebuild(self.plan, self.tasks)

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

    def _used(self, task: TaskRun, *names: str) -> dict[str, int]:
        """What of a task's budgets the next run must know, and stands in no column of its own."""
        counts = {"retries": task.retries, "workflow_retries": self._workflow_retries}
        return {name: count for name, count in counts.items() if count and (not names or name in names)}

    def _timeout_message(self, name: str) -> str:
        return f"task {name} ran longer than its timeout of {self.plan.tasks_by_name[name].config.timeout:g} s"
