"""What a run writes of its tasks: the rows from which the next run can go on, and people see what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayzyme.jobs.changes import TaskChange
from rayzyme.jobs.states import JobState
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import as_record, is_durable
from rayzyme.workflows.run_events import TaskRun


def begun(name: str, task: TaskRun, now: float, used: Mapping[str, int]) -> TaskChange:
    """An attempt begins; where the task had completed before, why it is run again."""
    values: dict[str, Any] = {"not_before": None}
    if task.why_again is not None:
        values["metadata"] = {**used, "run_again": task.why_again}
    return TaskChange(name, task.attempt, JobState.RUNNING, values, {"leased": now})


def completed(
    name: str, task: TaskRun, outcome: TaskOutcome, plan_change: Mapping[str, Any] | None, used: Mapping[str, int]
) -> TaskChange:
    """A result; it counts once this is written."""
    values = {
        "error_class": None,
        "error_message": None,
        "error_traceback": None,
        "output": as_record(outcome.output),
        "shared_writes": {key: as_record(value) for key, value in outcome.shared_writes.items()},
        "plan_change": plan_change,
        "manifest": [dict(file) for file in outcome.manifest],
        "metrics": dict(outcome.metrics),
        "metadata": {**outcome.metadata, **used},
        "durable": is_durable(outcome.output) and all(map(is_durable, outcome.shared_writes.values())),
        "not_before": None,
    }
    return TaskChange(name, task.attempt, JobState.COMPLETED, values, _hops(outcome))


def gone_wrong(name: str, task: TaskRun, outcome: TaskOutcome, used: Mapping[str, int]) -> TaskChange:
    """A failed or lost attempt: the task has failed, or is queued for its next."""
    values = {
        "error_class": outcome.error_class,
        "error_message": outcome.error,
        "error_traceback": outcome.error_traceback,
        "metrics": dict(outcome.metrics),
        "metadata": {**outcome.metadata, **used},
        "site_faults": task.site_faults,
        "not_before": task.not_before,
    }
    return TaskChange(name, task.attempt, task.state, values, _hops(outcome))


def cancelled(name: str, task: TaskRun, why: Mapping[str, Any], used: Mapping[str, int]) -> TaskChange:
    """It will not run, or was stopped."""
    return TaskChange(name, task.attempt, JobState.CANCELLED, {"metadata": {**used, **why}, "not_before": None})


def done_again(name: str, task: TaskRun, workflow_retries: int) -> TaskChange:
    """The next run is to do it again, with all its retries; what went wrong stays readable until then."""
    values = {
        "metadata": {"workflow_retries": workflow_retries},
        "not_before": None,
        "error_class": task.error_class,
        "error_message": task.error,
    }
    return TaskChange(name, task.attempt, JobState.QUEUED, values)


def _hops(outcome: TaskOutcome) -> dict[str, float]:
    hops = {"started": outcome.started_at, "computed": outcome.computed_at}
    return {name: moment for name, moment in hops.items() if moment}
