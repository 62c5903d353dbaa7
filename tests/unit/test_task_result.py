"""What tasks and workflows are said to have given."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.records import JobRecord, TaskRecord
from rayzyme.jobs.states import JobState
from rayzyme.jobs.vocabularies import TaskStatus, WorkflowStatus
from rayzyme.workflows import TaskResult, WorkflowResult
from rayzyme.workflows.outputs import store_value

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_result_has_a_duration_only_once_it_began_and_ended() -> None:
    """D24"""
    assert TaskResult().duration == 0.0
    assert TaskResult(start_time=BEGIN).duration == 0.0
    assert TaskResult(start_time=BEGIN, end_time=BEGIN + timedelta(seconds=2)).duration == 2.0


def test_success_is_completed_and_nothing_else() -> None:
    """D24"""
    assert [status for status in TaskStatus if TaskResult(status).success] == [TaskStatus.COMPLETED]


def test_a_result_as_a_dict_is_json() -> None:
    """D24"""
    result = TaskResult(
        output={"scores": np.array([1.5, 2.5]), "path": Path("/x"), "when": BEGIN, "odd": float("nan"), "many": {1}},
        start_time=BEGIN,
        end_time=BEGIN,
        metrics={"n": np.int64(3)},
    )
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["output"] == {
        "scores": [1.5, 2.5], "path": "/x", "when": "2026-01-01T00:00:00.000Z", "odd": "nan", "many": [1],
    }  # fmt: skip
    assert document["metrics"] == {"n": 3}
    assert (document["status"], document["success"], document["duration"]) == ("completed", True, 0.0)


def test_an_exception_given_as_the_error_keeps_its_class_and_its_traceback() -> None:
    """D17, D24"""
    try:
        raise ValueError("bad")
    except ValueError as error:
        result = TaskResult(TaskStatus.FAILED, error=error)  # type: ignore[arg-type]
    assert result.error == "bad"
    assert isinstance(result.exception, ValueError)
    assert "raise ValueError" in (result.error_traceback or "")


def record(state: JobState, task_count: int = 1, **more: Any) -> JobRecord:
    job = Job("job_1", 1, "n", "me", "workflow", "n", TaskPriority.NORMAL, state, 1, 0.0, task_count=task_count)
    return JobRecord(job, created_at=BEGIN, read_at=BEGIN, **more)


def test_a_workflow_result_counts_names_and_times_its_tasks() -> None:
    """D36"""
    tasks = [
        TaskRecord(
            "a", JobState.COMPLETED, 1, output=store_value(3, Path(), "a"),
            started_at=BEGIN, computed_at=BEGIN + timedelta(seconds=2),
        ),
        TaskRecord("b", JobState.FAILED, 4, error_message="bad", metadata={"why": 1}),
        TaskRecord("c", JobState.CANCELLED, 0),
        TaskRecord("d", JobState.QUEUED, 1),
    ]  # fmt: skip
    job = record(JobState.COMPLETED, 5, started_at=BEGIN, completed_at=BEGIN + timedelta(seconds=10))
    result = WorkflowResult.from_records(job, tasks)
    assert result.metadata == {"total_tasks": 5, "completed_tasks": 1, "failed_tasks": 1}
    assert (result.completed_tasks, result.failed_tasks) == (["a"], ["b"])
    assert (result.status, result.success, result.duration) == (WorkflowStatus.COMPLETED, False, 10.0)
    a, b, d = (result.get_task_result(name) for name in "abd")
    assert a is not None
    assert (a.output, a.duration) == (3, 2.0)
    assert b is not None
    assert (b.error, b.output, b.metadata) == ("bad", None, {"why": 1})
    assert d is not None
    assert d.status is TaskStatus.RETRYING
    assert result.get_task_result("nobody") is None
    assert json.loads(json.dumps(result.to_dict()))["task_results"]["a"]["output"] == 3


@pytest.mark.parametrize("state", JobState)
def test_the_duration_can_be_shown_in_every_state(state: JobState) -> None:
    """D36"""
    assert f"{WorkflowResult.from_records(record(state), []).duration:.2f}" == "0.00"


def test_an_output_is_loaded_when_it_is_first_asked_for(tmp_path: Path) -> None:
    """D36"""
    stored = store_value(np.arange(3), tmp_path, "output")
    tasks = [TaskRecord("a", JobState.COMPLETED, 1, output=stored)]
    task = WorkflowResult.from_records(record(JobState.COMPLETED), tasks).task_results["a"]
    Path(stored["path"]).rename(tmp_path / "hidden")
    with pytest.raises(LookupError, match=r"output\.bundle"):
        _ = task.output
    (tmp_path / "hidden").rename(stored["path"])
    assert task.output.tolist() == [0, 1, 2]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = task.nonsense
