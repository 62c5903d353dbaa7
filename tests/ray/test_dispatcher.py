"""The dispatcher on a real Ray: workflows in, results out, whatever is asked of it in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.ray.dispatching import dispatcher_of_its_own, function_task, lines, sample_tasks, until, workflow_of

from rayzyme.errors import DeviceUnavailable, IdempotencyConflict, ResourceError, TaskNotSendable
from rayzyme.jobs import TaskPriority
from rayzyme.workflows import FunctionTask, TaskConfig, WorkflowBuilder
from rayzyme_actors.task_log import logs_of


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all tests of this file, in a home of its own."""
    with dispatcher_of_its_own(home=str(tmp_path_factory.mktemp("home"))) as dispatcher:
        yield dispatcher


def test_a_diamond_runs_in_order_and_shares_what_its_tasks_found(dispatcher: Any, tmp_path: Path) -> None:
    """D32, D35, D36, D53, D54, D55"""
    log = {"log": str(tmp_path / "log")}
    workflow = workflow_of(
        function_task("a", sample_tasks.note, params=log),
        function_task("b", sample_tasks.note, ["a"], params=log),
        function_task("c", sample_tasks.note, ["a"], params=log),
        function_task("d", sample_tasks.see_shared, ["b", "c"]),
    )
    job_id = dispatcher.submit_workflow(workflow, name="diamond", priority=TaskPriority.HIGH, metadata={"why": "test"})
    result = dispatcher.wait_for_job(job_id, timeout=60)

    assert result.success, result.error
    assert result.get_task_result("d").output == {"a": "A", "b": "B", "c": "C"}
    assert lines(tmp_path / "log")[0].split()[0] == "a"
    assert (result.metadata["total_tasks"], result.metadata["completed_tasks"]) == (4, 4)
    assert f"{result.duration:.2f}"
    assert dispatcher.get_job_status(job_id) == "completed"
    job = dispatcher.list_jobs("completed")[0]
    assert job["job_id"] == job_id
    assert (job["name"], job["priority"], job["metadata"]) == ("diamond", 2, {"why": "test"})
    assert {"created_at", "started_at", "completed_at", "wait_time", "execution_time", "total_time", "owner"} <= set(
        job
    )


def test_what_a_task_prints_and_logs_is_in_its_attempts_log(dispatcher: Any) -> None:
    """D60"""
    job_id = dispatcher.submit_workflow(workflow_of(function_task("t", sample_tasks.speak)))
    assert dispatcher.wait_for_job(job_id, timeout=60).success
    ((task, attempt, text),) = logs_of(dispatcher.settings.runs, job_id)
    assert (task, attempt) == ("t", 1)
    assert text.startswith("t as text\nas bytes\n")
    assert text.endswith("WARNING sample_tasks: in the log\n")


def test_parallel_tasks_overlap(dispatcher: Any, tmp_path: Path) -> None:
    """D32: each of the two waits for what comes only when both have begun"""
    together = tmp_path / "together"
    log = tmp_path / "log"
    params = {"log": str(log), "until": str(together)}
    workflow = workflow_of(
        function_task("b", sample_tasks.wait_for_file, params=params),
        function_task("c", sample_tasks.wait_for_file, params=params),
        max_parallel=2,
    )
    job_id = dispatcher.submit_workflow(workflow)
    until(lambda: len(lines(log)) == 2)
    together.touch()
    assert dispatcher.wait_for_job(job_id, timeout=60).success


def test_a_task_that_fails_is_tried_again_and_its_attempts_are_counted(dispatcher: Any, tmp_path: Path) -> None:
    """D14, D16"""
    log = tmp_path / "log"
    task = function_task("flaky", sample_tasks.fail, params={"succeeds_at": 3, "log": str(log)}, max_retries=3)
    result = dispatcher.wait_for_job(dispatcher.submit_task(task), timeout=60)
    assert result.success
    assert [line.split()[1] for line in lines(log)] == ["1", "2", "3"]


def test_a_task_that_keeps_failing_runs_exactly_its_attempts(dispatcher: Any, tmp_path: Path) -> None:
    """D16, D17, D33"""
    log = tmp_path / "log"
    workflow = workflow_of(
        function_task("bad", sample_tasks.fail, params={"log": str(log)}, max_retries=2),
        function_task("after", sample_tasks.nothing, ["bad"]),
        function_task("beside", sample_tasks.nothing),
        fail_fast=False,
    )
    job_id = dispatcher.submit_workflow(workflow)
    result = dispatcher.wait_for_job(job_id, timeout=60)
    assert len(lines(log)) == 3, [event.to_text() for event in dispatcher._store.events(job_id)]
    assert dispatcher.get_job_status(job_id) == "failed"
    assert result.get_task_result("beside").success
    after = result.get_task_result("after")
    assert (after.status, after.metadata["reason"]) == ("cancelled", "dependency_failed")
    assert "bad" in str(after.metadata)
    bad = result.get_task_result("bad")
    assert "attempt 3 fails" in bad.error
    assert "sample_tasks.py" in bad.error_traceback


def test_a_timeout_kills_the_process_and_cleanup_has_run(dispatcher: Any, tmp_path: Path) -> None:
    """D22, D25"""
    pid, trace = tmp_path / "pid", tmp_path / "trace"
    deaf = function_task("deaf", sample_tasks.sleep_long, params={"pid": str(pid)}, timeout=1, max_retries=0)
    cleaning = sample_tasks.SleepingWithCleanup(
        TaskConfig(name="cleaning", timeout=1, max_retries=0), "hello", trace=str(trace)
    )
    workflow = WorkflowBuilder("timeouts").add_task(deaf).add_task(cleaning).set_fail_fast(False).build()
    result = dispatcher.wait_for_job(dispatcher.submit_workflow(workflow), timeout=30)
    assert not result.success
    for name in ("deaf", "cleaning"):
        assert result.get_task_result(name).metadata["error_class"] == "TaskTimeout"
    assert lines(trace) == ["cleaned up attempt 1"]
    until(lambda: not psutil.pid_exists(int(pid.read_text())), 10)


def test_cancelling_leaves_no_process_behind(dispatcher: Any, tmp_path: Path) -> None:
    """D18, D46"""
    from rayzyme.workflows.processes import MARKER

    pid = tmp_path / "pid"
    task = function_task("shell", sample_tasks.start_grandchildren, params={"pid": str(pid)})
    job_id = dispatcher.submit_task(task)

    def carrying() -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER, "").startswith(job_id):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    until(lambda: len(carrying()) >= 5)
    assert dispatcher.cancel_job(job_id)
    result = dispatcher.wait_for_job(job_id, timeout=20)
    assert result.status == "cancelled"
    assert carrying() == []
    assert not dispatcher.cancel_job(job_id)
    with pytest.raises(KeyError):
        dispatcher.cancel_job("job_000000000000")


def test_a_queued_job_that_is_cancelled_never_runs(dispatcher: Any, tmp_path: Path) -> None:
    """D46"""
    until_file, log = tmp_path / "until", tmp_path / "log"
    busy = [
        dispatcher.submit_task(
            function_task(
                f"busy{number}", sample_tasks.wait_for_file, params={"log": str(log), "until": str(until_file)}
            )
        )
        for number in range(2)
    ]
    waiting = dispatcher.submit_task(function_task("never", sample_tasks.note, params={"log": str(log)}))
    until(lambda: len(lines(log)) == 2)
    assert dispatcher.cancel_job(waiting)
    assert dispatcher.wait_for_job(waiting, timeout=10).status == "cancelled"
    until_file.touch()
    assert all(dispatcher.wait_for_job(job_id, timeout=30).success for job_id in busy)
    assert not any(line.startswith("never") for line in lines(log))


def test_waiting_for_too_long_does_not_end_the_job(dispatcher: Any, tmp_path: Path) -> None:
    """D54"""
    until_file = tmp_path / "until"
    task = function_task(
        "slow", sample_tasks.wait_for_file, params={"log": str(tmp_path / "log"), "until": str(until_file)}
    )
    job_id = dispatcher.submit_task(task)
    with pytest.raises(TimeoutError, match=job_id):
        dispatcher.wait_for_job(job_id, timeout=0.5)
    until_file.touch()
    assert dispatcher.wait_for_job(job_id, timeout=30).success
    with pytest.raises(KeyError):
        dispatcher.wait_for_job("job_000000000000")


def test_an_explanation_names_what_a_job_lacks_and_who_holds_it(dispatcher: Any, tmp_path: Path) -> None:
    """D51"""
    until_file, log = tmp_path / "until", tmp_path / "log"
    params = {"log": str(log), "until": str(until_file)}
    busy = [dispatcher.submit_task(function_task(f"b{n}", sample_tasks.wait_for_file, params=params)) for n in range(2)]
    waiting = dispatcher.submit_task(function_task("w", sample_tasks.nothing))
    until(lambda: len(lines(log)) == 2)
    told = until(lambda: (told := dispatcher.explain(waiting))["lacking"] and told)
    assert "slot:workflow" in str(told["lacking"])
    assert all(job_id in str(told) for job_id in busy)
    until_file.touch()
    assert dispatcher.wait_for_job(waiting, timeout=30).success


def test_an_array_that_a_task_gives_comes_back_whole(dispatcher: Any) -> None:
    """D38"""
    result = dispatcher.wait_for_job(
        dispatcher.submit_task(function_task("array", sample_tasks.large_array)), timeout=60
    )
    assert np.array_equal(result.get_task_result("array").output, np.arange(100_000, dtype=np.float32))


def test_a_file_appears_at_its_place_when_its_task_is_committed(dispatcher: Any, tmp_path: Path) -> None:
    """D20"""
    place = tmp_path / "out" / "file.txt"
    job_id = dispatcher.submit_task(function_task("writer", sample_tasks.write_file, params={"path": str(place)}))
    assert dispatcher.wait_for_job(job_id, timeout=60).success
    assert place.read_text() == "by attempt 1"


def test_what_a_failed_attempt_wrote_is_removed_and_never_seen(dispatcher: Any, tmp_path: Path) -> None:
    """D20"""
    place = tmp_path / "file.txt"
    task = function_task("failing", sample_tasks.write_and_fail, params={"path": str(place)}, max_retries=1)
    job_id = dispatcher.submit_task(task)
    assert dispatcher.wait_for_job(job_id, timeout=60).status == "failed"
    until(lambda: not list((dispatcher.settings.home / "runs" / job_id).rglob("file.txt")))
    assert not place.exists()


def test_a_task_over_its_memory_fails_and_hurts_nobody(dispatcher: Any, tmp_path: Path) -> None:
    """D26"""
    greedy = function_task("greedy", sample_tasks.take_memory, params={"megabytes": 600}, memory_mb=150, max_retries=0)
    modest = function_task("modest", sample_tasks.take_memory, params={"megabytes": 60}, memory_mb=150)
    result = dispatcher.wait_for_job(
        dispatcher.submit_workflow(workflow_of(greedy, modest, fail_fast=False)), timeout=60
    )
    assert result.get_task_result("greedy").metadata["error_class"] == "MemoryLimitExceeded"
    assert result.get_task_result("modest").output == 60


def test_a_task_that_kills_its_process_is_tried_again_without_spending_a_retry(dispatcher: Any, tmp_path: Path) -> None:
    """D17"""
    log = tmp_path / "log"
    once = function_task("once", sample_tasks.die, params={"log": str(log)}, max_retries=0)
    assert dispatcher.wait_for_job(dispatcher.submit_task(once), timeout=60).success
    assert len(lines(log)) == 2


def test_a_cached_task_is_computed_once(dispatcher: Any, tmp_path: Path) -> None:
    """D26"""
    log = tmp_path / "log"
    for _ in range(2):
        task = function_task("cached", sample_tasks.note, params={"log": str(log)}, cache_enabled=True)
        result = dispatcher.wait_for_job(dispatcher.submit_task(task), timeout=60)
        assert result.get_task_result("cached").output == "cached"
    assert result.get_task_result("cached").metadata["cached"] is True
    assert len(lines(log)) == 1


def test_callbacks_run_here_in_the_order_of_events(dispatcher: Any, tmp_path: Path) -> None:
    """D37"""
    told: list[Any] = []
    threads: set[int] = set()

    def complete(name: str, result: Any) -> None:
        told.append((name, result.output))
        threads.add(threading.get_ident())
        raise RuntimeError("a callback that fails changes nothing")

    log = {"log": str(tmp_path / "log")}
    workflow = workflow_of(
        function_task("a", sample_tasks.note, params=log),
        function_task("b", sample_tasks.note, ["a"], params=log),
        on_task_complete=complete,
        on_workflow_complete=lambda result: told.append(result.success),
    )
    assert dispatcher.wait_for_job(dispatcher.submit_workflow(workflow), timeout=60).success
    assert told == [("a", "a"), ("b", "b"), True]


def test_progress_of_a_running_job_can_be_read(dispatcher: Any, tmp_path: Path) -> None:
    """D23, D37"""
    until_file = tmp_path / "until"
    job_id = dispatcher.submit_task(function_task("p", sample_tasks.tell_progress, params={"until": str(until_file)}))

    def percent() -> float:
        from rayzyme.errors import NotFound

        try:
            return float(dispatcher.get_job_progress(job_id)["percent"])
        except NotFound:
            return 0.0

    until(lambda: percent() >= 50)
    until_file.touch()
    assert dispatcher.wait_for_job(job_id, timeout=30).success


def test_the_same_key_is_the_same_job(dispatcher: Any) -> None:
    """D13"""
    first = dispatcher.submit_task(function_task("one", sample_tasks.nothing), idempotency_key="k")
    assert dispatcher.submit_task(function_task("one", sample_tasks.nothing), idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict):
        dispatcher.submit_task(function_task("two", sample_tasks.nothing), idempotency_key="k")


def test_what_can_never_run_is_refused_with_the_clusters_figures(dispatcher: Any) -> None:
    """D27"""
    before = dispatcher.list_jobs()
    with pytest.raises(DeviceUnavailable, match=r"thinker needs 1 GPU; the cluster has 0"):
        dispatcher.submit_task(function_task("thinker", sample_tasks.nothing, gpu_required=True))
    with pytest.raises(ResourceError, match="huge"):
        dispatcher.submit_task(function_task("huge", sample_tasks.nothing, num_cpus=10_000))
    assert len(dispatcher.list_jobs()) == len(before)


def test_a_function_of_the_program_itself_runs_too(dispatcher: Any) -> None:
    """D29"""
    seven = 7
    result = dispatcher.wait_for_job(
        dispatcher.submit_task(FunctionTask("closure", lambda context: seven * context.attempt)), timeout=60
    )
    assert result.get_task_result("closure").output == 7


def test_a_task_that_cannot_be_sent_is_refused_naming_what_is_at_fault(dispatcher: Any) -> None:
    """D29"""
    lock = threading.Lock()
    with pytest.raises(TaskNotSendable, match="lock"):
        dispatcher.submit_task(FunctionTask("unsendable", lambda context: lock.locked()))


def test_a_task_class_gets_the_arguments_it_was_made_with(dispatcher: Any) -> None:
    """D22, D23, D29"""
    task = sample_tasks.Greeting(TaskConfig(name="greet", task_params={"whom": "enzyme"}), "hello")
    assert (
        dispatcher.wait_for_job(dispatcher.submit_task(task), timeout=60).get_task_result("greet").output
        == "hello, enzyme"
    )


def test_a_task_may_plan_further_ones(dispatcher: Any, tmp_path: Path) -> None:
    """D39"""
    log = {"log": str(tmp_path / "log")}
    workflow = workflow_of(
        function_task("planner", sample_tasks.plan_more, params=log),
        function_task("last", sample_tasks.note, ["planner"], params=log),
    )
    result = dispatcher.wait_for_job(dispatcher.submit_workflow(workflow), timeout=60)
    assert result.success, result.error
    assert sorted(line.split()[0] for line in lines(tmp_path / "log")[:2]) == ["more1", "more2"]
    assert lines(tmp_path / "log")[2].startswith("last")
    assert result.get_task_result("planner").output == "planned"


def test_a_workflow_over_its_time_is_stopped_with_everything_in_it(dispatcher: Any, tmp_path: Path) -> None:
    """D34"""
    pid = tmp_path / "pid"
    workflow = workflow_of(function_task("deaf", sample_tasks.sleep_long, params={"pid": str(pid)}), timeout=2)
    result = dispatcher.wait_for_job(dispatcher.submit_workflow(workflow), timeout=30)
    assert result.status == "failed"
    assert "timeout of 2 s" in result.error
    until(lambda: not psutil.pid_exists(int(pid.read_text())), 10)


def test_the_statistics_have_the_documented_shape(dispatcher: Any) -> None:
    """D56"""
    before = dispatcher.get_stats()["queue"]["completed"]
    dispatcher.wait_for_job(dispatcher.submit_task(function_task("one", sample_tasks.nothing)), timeout=60)
    stats = dispatcher.get_stats()
    assert {"running", "max_concurrent_jobs"} <= set(stats["scheduler"])
    assert stats["scheduler"]["max_concurrent_jobs"] == 2
    assert {"total_jobs", "queued", "running", "completed", "queue_size"} <= set(stats["queue"])
    assert stats["queue"]["completed"] == before + 1
    assert {"total_gpus", "allocated_tasks", "allocations", "gpu_info"} <= set(stats["resources"]["gpu"])
    memory = stats["resources"]["memory"]
    assert {"system_memory", "allocations", "available_for_allocation_mb"} <= set(memory)
    assert {"total_mb", "available_mb", "used_mb", "percent"} <= set(memory["system_memory"])
    assert {"total_allocated_mb", "task_count", "tasks"} <= set(memory["allocations"])


def test_many_jobs_of_one_submit_all_run(dispatcher: Any) -> None:
    """D13, D53"""
    job_ids = dispatcher.submit_many([workflow_of(function_task("n", sample_tasks.nothing)) for _ in range(40)])
    assert len(set(job_ids)) == 40
    results = dispatcher.wait_for_jobs(job_ids, timeout=60)
    assert list(results) == job_ids
    assert all(result.success and list(result.task_results) == ["n"] for result in results.values())
    with pytest.raises(KeyError):
        dispatcher.wait_for_jobs([*job_ids, "job_000000000000"])
