"""The commands on jobs, each as if in a process of its own: what they show, what they change, what they end with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rayzyme.database import open_database
from rayzyme.jobs.changes import Change, TaskChange
from rayzyme.jobs.job import JobRequest, TaskPriority
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme_serve.cli import main


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    with closing(open_database()) as database:
        yield JobStore(database)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; gives its exit code, standard output and standard error."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayzyme", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def submitted(store: JobStore, *names: str) -> list[str]:
    spec = {"format": 1, "config": {"name": "w"}, "tasks": []}
    common: dict[str, Any] = {"job_type": "w", "priority": TaskPriority.HIGH, "needs": {"slot:workflow": 1.0}}
    return store.submit([JobRequest(name, "alice", spec, **common) for name in names])


def ended(store: JobStore, job_id: str, state: JobState = JobState.COMPLETED, **values: Any) -> None:
    """Have a job run and end."""
    started = Change(job_id, 0, frozenset({JobState.QUEUED}), "started", "test", to=JobState.RUNNING, new_attempt=1)
    task = TaskChange("only", 1, state, hops={"started": 1.0, "computed": 2.0})
    finished = Change(
        job_id, 1, frozenset({JobState.RUNNING}), "over", "test", to=state, values=values, tasks=(task,), release=True
    )
    assert all(applied.accepted for change in (started, finished) for applied in store.apply([change]))


def test_an_empty_list_says_so(run: Any) -> None:
    """D57"""
    code, _, err = run("list-jobs")
    assert code == 0
    assert "No jobs found" in err


def test_jobs_are_listed_by_state_the_newest_first(store: JobStore, run: Any) -> None:
    """D57, D60"""
    first, second = submitted(store, "one", "two")
    ended(store, first)
    _, out, _ = run("list-jobs")
    assert all(column in out for column in ("Job ID", "Name", "Status", "Created"))
    assert out.index(second) < out.index(first)
    _, out, _ = run("list-jobs", "--status", "completed", "--json")
    document = json.loads(out)
    assert document["schema_version"] == "rayzyme.jobs/1"
    assert [job["job_id"] for job in document["jobs"]] == [first]
    assert set(document["jobs"][0]) == {
        "job_id", "name", "priority", "status", "created_at", "started_at", "completed_at", "wait_time", "execution_time",
        "total_time", "metadata", "owner",
    }  # fmt: skip
    code, _, err = run("list-jobs", "--status", "done")
    assert code == 2
    assert "completed" in err


def test_jobs_are_named_by_id_beginning_number_range_or_last(store: JobStore, run: Any) -> None:
    """D60"""
    ids = submitted(store, "one", "two", "three")

    def named(*arguments: str) -> list[str]:
        _, out, _ = run("--output", "json", "jobs", "show", *arguments)
        return [job["job_id"] for job in json.loads(out)["jobs"]]

    assert named("last") == [ids[2]]
    assert named(ids[1]) == [ids[1]]
    assert named(ids[1][:12]) == [ids[1]]
    assert named("2") == [ids[1]]
    assert named("1-2", "last") == [ids[0], ids[1], ids[2]]


@pytest.mark.parametrize(
    "command", [("status",), ("cancel",), ("jobs", "show"), ("jobs", "wait"), ("jobs", "explain"), ("jobs", "retry")]
)
def test_an_unknown_job_is_told_on_standard_error(run: Any, command: tuple[str, ...]) -> None:
    """D57"""
    code, out, err = run(*command, "job_000000000000")
    assert (code, out) == (1, "")
    assert "there is no job 'job_000000000000'" in err


def test_wrong_usage_ends_with_2() -> None:
    """D57"""
    done = subprocess.run(
        [sys.executable, "-m", "rayzyme_serve.cli", "list-jobs", "--bogus"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2


def test_cancelling_is_refused_where_a_job_has_ended(store: JobStore, run: Any) -> None:
    """D46, D57"""
    waiting, over = submitted(store, "waiting", "over")
    ended(store, over)
    assert run("cancel", waiting)[0] == 0
    assert store.job(waiting).cancel_requested
    code, _, err = run("cancel", over)
    assert code == 1
    assert "completed" in err


def test_a_job_is_held_and_released(store: JobStore, run: Any) -> None:
    """D60"""
    (job_id,) = submitted(store, "one")
    assert run("jobs", "hold", job_id)[0] == 0
    assert store.job(job_id).is_held
    assert run("jobs", "release", "last")[0] == 0
    assert not store.job(job_id).is_held


def test_a_failed_job_is_tried_again_as_a_new_one(store: JobStore, run: Any) -> None:
    """D60"""
    (job_id,) = submitted(store, "one")
    code, _, err = run("jobs", "retry", job_id)
    assert code == 2
    assert "queued" in err
    ended(store, job_id, JobState.FAILED, error_class="ValueError", error_message="it did not work")
    code, out, _ = run("--output", "quiet", "jobs", "retry", job_id)
    assert code == 0
    again = store.record(out.strip())
    assert (again.retry_of, again.job.name, again.job.priority, again.job.state) == (job_id, "one", 2, JobState.QUEUED)


def test_the_story_of_a_job_is_told_from_the_audit_log(store: JobStore, run: Any) -> None:
    """D60"""
    (job_id,) = submitted(store, "one")
    ended(store, job_id, JobState.FAILED, error_class="ValueError", error_message="it did not work")
    _, out, _ = run("jobs", "show", "last", "--events", "--json")
    (job,) = json.loads(out)["jobs"]
    assert [event["to_state"] for event in job["events"]] == ["queued", "running", "failed"]
    assert job["error"] == "it did not work"
    assert [task["name"] for task in job["tasks"]] == ["only"]


def test_an_explanation_without_a_scheduler_says_so(store: JobStore, run: Any) -> None:
    """D51"""
    (job_id,) = submitted(store, "one")
    code, _, err = run("jobs", "explain", job_id)
    assert code == 0
    assert "No scheduler is running" in err
    ended(store, job_id)
    assert "completed" in run("jobs", "explain", job_id)[2]


def test_waiting_tells_the_final_states(store: JobStore, run: Any) -> None:
    """D60"""
    good, bad = submitted(store, "good", "bad")
    ended(store, good)
    ended(store, bad, JobState.FAILED)
    assert run("--output", "quiet", "jobs", "wait", good)[:2] == (0, "completed\n")
    assert run("--output", "quiet", "jobs", "wait", good, bad)[:2] == (1, "completed\nfailed\n")
    (waiting,) = submitted(store, "waiting")
    code, _, err = run("jobs", "wait", waiting, "--timeout", "0.1")
    assert code == 1
    assert "goes on" in err


def test_what_a_task_printed_is_shown(store: JobStore, home: Path, run: Any) -> None:
    """D60"""
    from rayzyme_actors.task_log import log_file

    (job_id,) = submitted(store, "one")
    file = log_file(home / "runs", job_id, "a task/odd", 2)
    file.parent.mkdir(parents=True)
    file.write_text("hello\n")
    assert run("jobs", "logs", job_id)[1] == "--- a task/odd, attempt 2\nhello\n"


def test_the_platform_and_the_statistics_are_told_without_a_scheduler(store: JobStore, run: Any) -> None:
    """D56, D57, D59"""
    submitted(store, "one")
    code, out, _ = run("status", "--json")
    document = json.loads(out)
    assert (document["scheduler"]["running"], document["queue"]["queued"]) == (False, 1)
    assert "DISPATCHER STATUS" in run("stats")[1]
    _, out, _ = run("stats", "--json")
    assert {"scheduler", "queue", "resources"} <= set(json.loads(out))
    assert "no scheduler is running" in run("stop")[2]
    assert code == 0
