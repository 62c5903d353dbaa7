"""The commands on jobs, each as if in a process of its own: what they show, what they change, what they end with."""

from __future__ import annotations

import json
import re
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
from rayzyme.jobs.role import SETTINGS, ProcessIdentity
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    with closing(open_database()) as database:
        yield JobStore(database)


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
    assert "number 1 of 1 waiting jobs" in err
    ended(store, job_id)
    assert "completed" in run("jobs", "explain", job_id)[2]


@pytest.mark.parametrize(
    "command", [("jobs", "show"), ("jobs", "explain"), ("jobs", "wait"), ("jobs", "retry"), ("cancel",), ("status",)]
)
def test_what_is_asked_of_several_jobs_is_answered_in_one_document(
    store: JobStore, run: Any, command: tuple[str, ...]
) -> None:
    """D60"""
    first, second = submitted(store, "one", "two")
    ended(store, first)
    ended(store, second)
    jobs = ["1-2"] if command == ("status",) else [first, second]
    answer = json.loads(run("--output", "json", *command, *jobs)[1])
    assert answer["schema_version"] == "rayzyme.jobs/1"
    told = answer["cancelled" if command == ("cancel",) else "jobs"]
    ids = list(told) if isinstance(told, dict) else [job.get("retry_of") or job["job_id"] for job in told]
    assert ids == [first, second]


def test_a_retry_that_is_refused_hides_none_of_those_before_it(store: JobStore, run: Any) -> None:
    """D60"""
    over, waiting = submitted(store, "over", "waiting")
    ended(store, over)
    code, out, err = run("--output", "json", "jobs", "retry", over, waiting)
    (again,) = json.loads(out)["jobs"]
    assert (code, again["retry_of"]) == (2, over)
    assert store.record(again["job_id"]).retry_of == over
    assert waiting in err


def test_a_scheduler_that_cannot_be_asked_from_here_is_named_and_no_ray_is_started(
    store: JobStore, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D51, D58: it lives on another machine; what its database tells is told, by its settings"""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a Ray was started"))
    first, second, third = (submitted(store, name)[0] for name in ("first", "second", "third"))
    settings = {"scheduler": {"priority_strategy": "lifo", "max_concurrent_jobs": 1}}
    info = {"host": "north", "pid": 7, "address": "10.1.2.3:6379", "namespace": "rayzyme", SETTINGS: settings}
    store.take_role(ProcessIdentity("another boot", 1, 7, 1, "north"), info, lambda _: False)
    began = Change(third, 0, frozenset({JobState.QUEUED}), "started", "test", to=JobState.RUNNING, new_attempt=1)
    store.apply([began])
    code, _, err = run("jobs", "explain", first)
    told = " ".join(err.split())
    assert code == 0
    assert "number 2 of 2 waiting jobs, by the strategy lifo" in told
    assert f"held by {third}" in told
    assert "The scheduler itself, process 7 on north, cannot be asked from here" in told
    assert "RAY_ADDRESS=10.1.2.3:6379" in told
    assert "No scheduler is running" not in told
    assert "number 1 of 2" in " ".join(run("jobs", "explain", second)[2].split())


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


@pytest.fixture
def lived(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Jobs in every stage, one slot for them, and a GPU; their ids, and the names that stand for these."""
    monkeypatch.setenv("RAYZYME_SCHEDULER__MAX_CONCURRENT_JOBS", "1")
    monkeypatch.setenv("RAYZYME_RESOURCES__GPU__SIMULATED_MB", "[20000]")
    completed, failed, running = submitted(store, "completed", "failed", "running")
    ended(store, completed)
    ended(store, failed, JobState.FAILED, error_class="ValueError", error_message="it did not work")
    acquire: dict[str, Any] = {"acquire": {"slot:workflow": 1.0}, "lease_owner": "runner:1"}
    queued = frozenset({JobState.QUEUED})
    begins = Change(running, 0, queued, "started", "test", to=JobState.RUNNING, new_attempt=1, **acquire)
    assert all(applied.accepted for applied in store.apply([begins], capacity={"slot:workflow": 1.0}))
    again = store.submit_again(failed)
    return {completed: "job_completed", failed: "job_failed", running: "job_running", again: "job_again"}


@pytest.mark.parametrize("command", ["status", "list-jobs", "jobs show 1-4 --events", "jobs explain 1-4", "stats"])
def test_what_programs_read_is_as_it_was_written_down(
    run: Any, lived: dict[str, str], repository: Path, command: str
) -> None:
    """D56, D60: a change of `tests/goldens` changes what others rely on, so it needs another `schema_version`."""
    code, out, _ = run("--output", "json", *command.split())
    words = [word for word in command.split() if word.isalpha() or word == "list-jobs"]
    golden = repository / "tests" / "goldens" / f"{'-'.join(words)}.json"
    assert code == 0
    assert json.dumps(_lasting(json.loads(out), lived), indent=1) + "\n" == golden.read_text()


def _lasting(value: Any, ids: dict[str, str], key: str = "") -> Any:
    """What does not depend on when and where it was said; of the rest, its form."""
    if key.endswith("_time") or key in ("time", "expires_at", "host", "pid", "process", "memory"):
        return _form(value)
    if isinstance(value, dict):
        # Those of everything that this process did before are among them.
        return "<metrics>" if key == "metrics" and value else {name: _lasting(value[name], ids, name) for name in value}
    if isinstance(value, list):
        return [_lasting(item, ids) for item in value]
    if isinstance(value, str):
        value = re.sub(r"job_[0-9a-f]{12}", lambda found: ids[found[0]], value)
        value = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>", value)
        return re.sub(r"^[^ @]+@[^ @]+$", "<user>@<host>", value)
    return value


def _form(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _form(item) for name, item in value.items()}
    return None if value is None else f"<{type(value).__name__}>"
