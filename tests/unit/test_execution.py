"""One attempt of one task: whatever it does, there is an outcome, and its cleanup has run."""

from __future__ import annotations

import ctypes
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import workflow_tasks
from tests.support.workflow_tasks import CALLS, Join, another_key, double

from rayzyme.jobs.states import JobState
from rayzyme.resources import TwoLevelCache
from rayzyme.workflows import FunctionTask, PlanChange, Task, TaskConfig, TaskContext, TaskResult, TaskStatus
from rayzyme.workflows.execution import Assignment, TaskInterrupted, run_assignment
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import load_value, store_value
from rayzyme.workflows.publishing import publish
from rayzyme.workflows.specs import task_document


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


class Step(Task):
    """Runs what it is given, and says when it cleans up."""

    def __init__(self, config: TaskConfig, work: Any, is_valid: bool = True, cleaning: Any = None) -> None:
        super().__init__(config)
        self.work, self.is_valid, self.cleaning = work, is_valid, cleaning
        self.cleaned = 0

    def validate_inputs(self, context: TaskContext) -> bool:
        return self.is_valid

    def execute(self, context: TaskContext) -> Any:
        return self.work(context)

    def cleanup(self, context: TaskContext) -> None:
        self.cleaned += 1
        if self.cleaning is not None:
            self.cleaning()


def assigned(source: Any, folder: Path | None = None, **more: Any) -> Assignment:
    return Assignment("job_1", "a job", "t", 1, 1, source, folder=str(folder or ""), **more)


def run(work: Any, folder: Path | None = None, config: TaskConfig | None = None, **more: Any) -> TaskOutcome:
    return run_assignment(assigned(Step(config or TaskConfig("t"), work), folder, **more))


def test_a_plain_value_is_the_output_of_a_completed_task() -> None:
    """D24"""
    outcome = run(lambda _: {"a": 1})
    assert outcome.state is JobState.COMPLETED
    assert outcome.output is not None
    assert load_value(outcome.output) == {"a": 1}


def test_the_context_is_filled_on_every_run(tmp_path: Path) -> None:
    """D23"""
    seen: dict[str, TaskContext] = {}
    told: list[Any] = []
    config = TaskConfig("t", task_params={"x": 1})

    def work(context: TaskContext) -> None:
        seen["context"] = context
        context.progress_callback(50, "half")
        context.progress_callback(100)
        context.metrics_callback({"n": np.int64(3)})

    assignment = assigned(
        Step(config, work), tmp_path, gpu_ids=(1,), inputs={"before": store_value([1], tmp_path, "before")},
        shared_state={"key": store_value("value", tmp_path, "key")},
    )  # fmt: skip
    outcome = run_assignment(
        replace(assignment, attempt=3), progress=lambda *news: told.append(news), services="services", clock=lambda: 5.0
    )
    context = seen["context"]
    assert (context.task_id, context.task_name, context.workflow_id) == ("job_1/t", "t", "job_1")
    assert (context.parent_task_id, context.attempt, context.gpu_ids) == ("job_1", 3, [1])
    assert context.start_time is not None
    assert context.start_time.timestamp() == 5.0
    assert (context.memory_limit_mb or 0) > 100
    assert (context.config, dict(context.inputs), dict(context.shared_state)) == (
        {"x": 1},
        {"before": [1]},
        {"key": "value"},
    )
    assert context.services == "services"
    assert told == [(50, "half"), (100, "")]
    assert json.loads(json.dumps(outcome.metrics)) == {"n": 3}
    assert (outcome.started_at, outcome.computed_at) == (5.0, 5.0)


def test_an_exception_is_a_failure_with_its_class_and_traceback() -> None:
    """D17, D24"""
    outcome = run(lambda _: 1 / 0)
    assert (outcome.state, outcome.error_class, outcome.error) == (
        JobState.FAILED,
        "ZeroDivisionError",
        "division by zero",
    )
    assert "1 / 0" in (outcome.error_traceback or "")
    assert not outcome.is_final


@pytest.mark.parametrize("is_returned", [False, True])
def test_an_error_that_is_not_in_retry_on_errors_is_final_raised_or_returned(is_returned: bool) -> None:
    """D17"""
    config = TaskConfig("t", retry_on_errors=[OSError])

    def work(error: Exception) -> Any:
        if is_returned:
            return TaskResult(TaskStatus.FAILED, exception=error)
        raise error

    assert run(lambda _: work(ValueError("bad")), config=config).is_final
    outcome = run(lambda _: work(FileNotFoundError("gone")), config=config)
    assert (outcome.state, outcome.error_class, outcome.is_final) == (JobState.FAILED, "FileNotFoundError", False)


def test_a_returned_failure_is_a_failure() -> None:
    """D24"""
    outcome = run(lambda _: TaskResult(TaskStatus.FAILED, error="bad", metadata={"row": 3}))
    assert (outcome.state, outcome.error, outcome.metadata, outcome.is_final) == (
        JobState.FAILED,
        "bad",
        {"row": 3},
        False,
    )
    assert run(lambda _: TaskResult(TaskStatus.PENDING)).state is JobState.FAILED


def test_inputs_that_are_not_valid_end_the_task_without_a_retry() -> None:
    """D22"""
    step = Step(TaskConfig("t"), lambda _: CALLS.append("executed"), is_valid=False)
    outcome = run_assignment(assigned(step))
    assert (outcome.error, outcome.is_final) == ("Input validation failed for task t", True)
    assert (CALLS, step.cleaned) == ([], 1)


@pytest.mark.parametrize(
    "work",
    [lambda _: 1, lambda _: 1 / 0, lambda _: exit(3), lambda _: threading.Event().nonsense],  # type: ignore[attr-defined]
)
def test_cleanup_runs_once_and_its_failure_is_only_logged(work: Any, caplog: pytest.LogCaptureFixture) -> None:
    """D22"""
    step = Step(TaskConfig("t"), work, cleaning=lambda: 1 / 0)
    outcome = run_assignment(assigned(step))
    assert step.cleaned == 1
    assert "the cleanup of task t failed" in caplog.text
    assert outcome.error_class != "ZeroDivisionError" or "1 / 0" in (outcome.error_traceback or "")
    assert outcome.state is run(work).state


def test_an_interrupt_comes_through_after_the_cleanup() -> None:
    """D18, D22"""
    began, ended = threading.Event(), threading.Event()

    def work(_: Any) -> None:
        began.set()
        while True:
            ended.wait(0.001)

    step = Step(TaskConfig("t"), work)
    raised: list[BaseException] = []

    def in_thread() -> None:
        try:
            run_assignment(assigned(step))
        except TaskInterrupted as error:
            raised.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    assert began.wait(10)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TaskInterrupted))
    thread.join(10)
    assert len(raised) == 1
    assert step.cleaned == 1


def test_who_holds_the_cleanup_may_call_it_first() -> None:
    """D22"""
    step = Step(TaskConfig("t"), lambda _: None)
    run_assignment(assigned(step), on_ready=lambda cleanup: cleanup())
    assert step.cleaned == 1


def test_writes_to_the_shared_state_are_part_of_the_outcome(tmp_path: Path) -> None:
    """D35"""
    before = {"n": store_value(1, tmp_path, "n")}
    outcome = run(lambda context: context.shared_state.update(n=2, m=3), shared_state=before)
    assert {key: load_value(value) for key, value in outcome.shared_writes.items()} == {"n": 2, "m": 3}
    assert run(lambda context: [context.shared_state.update(n=2), 1 / 0], shared_state=before).shared_writes == {}


def test_files_are_in_the_manifest_of_a_completed_attempt(tmp_path: Path) -> None:
    """D20"""
    final = tmp_path / "results" / "hits.csv"
    outcome = run(lambda context: context.output_file(final).write_text("a,b"), tmp_path / "attempt")
    assert [(entry["path"], entry["size"]) for entry in outcome.manifest] == [(str(final), 3)]
    assert not final.exists()
    publish(outcome.manifest)
    assert final.read_text() == "a,b"


def test_a_task_that_writes_nothing_makes_no_folder(tmp_path: Path) -> None:
    """D20"""
    run(lambda _: "small", tmp_path / "attempt")
    assert list(tmp_path.iterdir()) == []
    outcome = run(lambda _: np.arange(3), tmp_path / "attempt")
    assert outcome.output is not None
    assert Path(outcome.output["path"]).parent == tmp_path / "attempt"


def test_a_plan_change_is_part_of_the_outcome() -> None:
    """D39"""
    outcome = run(lambda _: PlanChange(addition=[FunctionTask("more", double)], output=5))
    assert outcome.plan_change is not None
    assert outcome.plan_change["addition"][0]["name"] == "more"
    assert outcome.output is not None
    assert load_value(outcome.output) == 5
    refused = run(lambda _: PlanChange(addition=[FunctionTask("more", lambda: 1)]))
    assert (refused.state, refused.error_class) == (JobState.FAILED, "TaskNotSendable")


def test_a_task_without_the_gpu_that_it_asks_for_says_that_it_ran_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """D27"""
    config = TaskConfig("t", gpu_required=True)
    assert run(lambda _: None, config=config).metadata == {"device": "cpu"}
    assert "ran on the CPU" in caplog.text
    assert run(lambda _: None, config=config, gpu_ids=(0,)).metadata == {}


def test_code_that_cannot_be_loaded_is_a_final_failure() -> None:
    """D29"""
    outcome = run_assignment(assigned({"name": "t", "type": "no_such_module:work"}))
    assert (outcome.state, outcome.error_class, outcome.is_final) == (JobState.FAILED, "NotFound", True)
    assert "no_such_module" in (outcome.error or "")


def cached(task: Task, cache: TwoLevelCache, **more: Any) -> TaskOutcome:
    return run_assignment(assigned(task_document(task), **more), cache=cache)


def doubled(number: int, **more: Any) -> FunctionTask:
    return FunctionTask("t", double, TaskConfig("t", cache_enabled=True, task_params={"number": number}, **more))


def test_a_hit_gives_the_stored_output_without_execution(tmp_path: Path) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    first = cached(doubled(2), cache)
    again = cached(doubled(2, memory_mb=10, max_retries=1), cache, memory_mb=10)
    assert CALLS == ["t"]
    assert first.output == again.output
    assert "cached" not in first.metadata
    assert again.metadata["cached"] is True
    assert cached(doubled(3), cache).output != first.output
    other = cached(doubled(2), cache, inputs={"before": store_value(1, tmp_path, "before")})
    assert "cached" not in other.metadata
    assert CALLS == ["t"] * 3


def test_without_cache_enabled_nothing_is_looked_up_or_kept(tmp_path: Path) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    for _ in range(2):
        cached(FunctionTask("t", double), cache)
    assert CALLS == ["t", "t"]
    assert cache.get_stats()["l2_disk"]["entries"] == 0


def test_the_version_of_the_code_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    task = Join(TaskConfig("t", cache_enabled=True), ["a"])
    cached(task, cache)
    assert cached(task, cache).metadata["cached"] is True
    from rayzyme.workflows import task_cache

    monkeypatch.setattr(Join, "code_version", "2")
    task_cache._code_version.cache_clear()
    assert "cached" not in cached(task, cache).metadata


def test_a_key_of_ones_own_decides_alone(tmp_path: Path) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    cached(doubled(2, cache_key_fn=another_key), cache)
    assert cached(doubled(3, cache_key_fn=another_key), cache).metadata["cached"] is True
    lambda_task = Step(TaskConfig("t", cache_enabled=True, cache_key_fn=lambda context: context.task_name), lambda _: 0)
    assert run_assignment(assigned(lambda_task), cache=cache).metadata["cached"] is True


def test_shared_writes_and_files_come_back_with_a_hit_as_long_as_the_files_are_there(tmp_path: Path) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    final = tmp_path / "out.txt"

    def work(context: TaskContext) -> None:
        CALLS.append("work")
        context.shared_state["path"] = str(final)
        context.output_file(final).write_text("content")

    step = Step(TaskConfig("t", cache_enabled=True, cache_key_fn=lambda _: "key"), work)
    first = run_assignment(assigned(step, tmp_path / "1"), cache=cache)
    publish(first.manifest)
    again = run_assignment(assigned(step, tmp_path / "2"), cache=cache)
    assert (again.metadata, again.shared_writes, CALLS) == ({"cached": True}, first.shared_writes, ["work"])
    final.write_text("altered")
    assert "cached" not in run_assignment(assigned(step, tmp_path / "3"), cache=cache).metadata
    assert CALLS == ["work", "work"]


def test_what_cannot_be_kept_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")

    def outcome(work: Any, **more: Any) -> str:
        step = Step(TaskConfig("t", cache_enabled=True, **more), work)
        return str(run_assignment(assigned(step), cache=cache).metadata["not_cached"])

    assert "give it a cache_key_fn" in outcome(lambda _: 1)
    assert "cannot be stored" in outcome(lambda _: threading.Lock(), cache_key_fn=lambda _: "a")
    change = PlanChange(addition=[FunctionTask("more", workflow_tasks.answer)])
    assert "changed the plan" in outcome(lambda _: change, cache_key_fn=lambda _: "b")
    assert "is not kept in the cache" in caplog.text


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    """D26"""
    cache = TwoLevelCache(cache_dir=tmp_path / "cache")
    step = Step(TaskConfig("t", cache_enabled=True, cache_key_fn=lambda _: "key"), lambda _: 1 / 0)
    assert run_assignment(assigned(step), cache=cache).state is JobState.FAILED
    step.work = lambda _: 1
    assert "cached" not in run_assignment(assigned(step), cache=cache).metadata
