"""What becomes of jobs when the processes that carry them are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError
from tests.ray.dispatching import (
    IMPORTABLE,
    dispatcher_of_its_own,
    function_task,
    lines,
    sample_tasks,
    until,
    workflow_of,
)

from rayzyme.errors import QuotaExceeded
from rayzyme.settings import use_settings
from rayzyme.workflows import FunctionTask, TaskConfig
from rayzyme_actors import DispatcherAPI, Submission
from rayzyme_actors.scheduler_settings import runner_name, scheduler_name


@pytest.fixture
def dispatcher() -> Iterator[Any]:
    with dispatcher_of_its_own() as dispatcher:
        yield dispatcher


def pid_of(dispatcher: Any, actor: str) -> int:
    """Process id of the scheduler or the runner, once it answers."""

    def ask() -> int:
        try:
            name = {"scheduler": scheduler_name, "workflow-runner": runner_name}[actor](dispatcher.settings)
            handle = ray.get_actor(name, dispatcher.settings.ray.namespace)
            return int(ray.get(handle.describe.remote(), timeout=10)["pid"])
        except (RayError, ValueError):
            return 0

    return int(until(ask))


def killed(dispatcher: Any, actor: str) -> int:
    """Kill it; the process id of what Ray starts in its place."""
    before = pid_of(dispatcher, actor)
    os.kill(before, signal.SIGKILL)
    return int(until(lambda: (now := pid_of(dispatcher, actor)) != before and now))


def five_tasks(tmp_path: Path) -> tuple[Any, Path, Path]:
    """A chain of five, of which the third waits for a file."""
    log, until_file = tmp_path / "log", tmp_path / "until"
    params = {"log": str(log), "until": str(until_file)}
    functions = [
        sample_tasks.note,
        sample_tasks.note,
        sample_tasks.wait_for_file,
        sample_tasks.note,
        sample_tasks.see_shared,
    ]
    tasks = [
        function_task(str(number), function, [str(number - 1)] if number > 1 else [], params=params)
        for number, function in enumerate(functions, start=1)
    ]
    return workflow_of(*tasks), log, until_file


@pytest.mark.parametrize("actors", [["workflow-runner"], ["scheduler"], ["scheduler", "workflow-runner"]])
def test_finished_tasks_are_kept_when_the_processes_around_them_are_killed(
    dispatcher: Any, tmp_path: Path, actors: list[str]
) -> None:
    """D19, D38"""
    workflow, log, until_file = five_tasks(tmp_path)
    job_id = dispatcher.submit_workflow(workflow)
    until(lambda: any(line.startswith("3 ") for line in lines(log)))
    for actor in actors:
        killed(dispatcher, actor)
    until_file.touch()
    result = dispatcher.wait_for_job(job_id, timeout=60)
    assert result.success, result.error
    runs = [line.split()[0] for line in lines(log)]
    assert [runs.count(task) for task in "124"] == [1, 1, 1]
    assert result.get_task_result("5").output == {name: name for name in "1234"}


def test_a_scheduler_that_is_killed_comes_back_and_takes_new_jobs(dispatcher: Any) -> None:
    """D40, D54"""
    killed(dispatcher, "scheduler")
    job_id = dispatcher.submit_task(function_task("after", sample_tasks.nothing))
    assert dispatcher.wait_for_job(job_id, timeout=60).success


def test_what_a_scheduler_was_told_holds_after_it_was_killed(dispatcher: Any) -> None:
    """D19, D40, D50: for other programs, whose own quotas are laxer, as well"""
    told = {
        "ray": {"namespace": dispatcher.settings.ray.namespace},
        "scheduler": {"max_concurrent_jobs": 1, "priority_strategy": "sjf"},
        "quotas": {"users": {"ada": {"queued": 1}}},
    }
    DispatcherAPI(config=told).stop(wait=False)
    use_settings(dispatcher.settings)
    killed(dispatcher, "scheduler")
    described = until(lambda: (answer := ray.get(dispatcher._scheduler.describe.remote()))["leads"] and answer)
    assert (described["strategy"], described["max_concurrent_jobs"]) == ("sjf", 1)
    with pytest.raises(QuotaExceeded, match="ada has 0 queued jobs and may have 1: 2 more"):
        dispatcher.submit_many([Submission(workflow_of(function_task("a", sample_tasks.nothing)), owner="ada")] * 2)


def test_a_job_whose_program_was_killed_right_after_the_answer_runs(dispatcher: Any, tmp_path: Path) -> None:
    """D13, D37, D52"""
    program = f"""
import os, sys
sys.path.insert(0, {str(IMPORTABLE)!r})
import sample_tasks
from rayzyme.workflows import FunctionTask, TaskConfig
from rayzyme_actors.scheduler_settings import runner_name, scheduler_name
from rayzyme_actors import DispatcherAPI
dispatcher = DispatcherAPI(auto_start=False)
task = FunctionTask("orphan", sample_tasks.note, TaskConfig(name="orphan", task_params={{"log": {str(tmp_path / "log")!r}}}))
print(dispatcher.submit_task(task), flush=True)
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = dispatcher.wait_for_job(done.stdout.strip(), timeout=60)
    assert result.success, result.error
    assert len(lines(tmp_path / "log")) == 1


def test_a_task_that_only_memory_held_ends_failed_with_the_reason_when_that_is_lost(
    dispatcher: Any, tmp_path: Path
) -> None:
    """D29"""
    log, until_file = tmp_path / "log", tmp_path / "until"
    params = {"log": str(log), "until": str(until_file)}
    for number in range(2):
        dispatcher.submit_task(function_task(f"busy{number}", sample_tasks.wait_for_file, params=params))
    until(lambda: len(lines(log)) == 2)
    job_id = dispatcher.submit_task(FunctionTask("local", lambda context: 1, TaskConfig(name="local")))
    killed(dispatcher, "scheduler")
    until_file.touch()
    result = dispatcher.wait_for_job(job_id, timeout=60)
    assert result.status == "failed"
    assert "cannot be imported by other processes" in result.error


def test_a_result_that_comes_too_late_is_refused_and_its_file_is_never_seen(dispatcher: Any, tmp_path: Path) -> None:
    """D20: a runner that was stopped for longer than its lease wakes up when another has taken its job over"""
    log, until_file = tmp_path / "log", tmp_path / "until"
    task = function_task("slow", sample_tasks.wait_for_file, params={"log": str(log), "until": str(until_file)})
    job_id = dispatcher.submit_task(task)
    until(lambda: lines(log))
    runner = pid_of(dispatcher, "workflow-runner")
    os.kill(runner, signal.SIGSTOP)
    try:
        until(lambda: dispatcher._store.job(job_id).attempt > 1 or dispatcher._store.job(job_id).site_faults, 90)
    finally:
        os.kill(runner, signal.SIGCONT)
    until_file.touch()
    assert dispatcher.wait_for_job(job_id, timeout=90).success
    (final,) = [event for event in dispatcher._store.events(job_id) if event.to_state == "completed"]
    assert final is not None
