"""One scripted job, again and again: each time another process is killed just before or just after another of its commits.

Every commit of the scheduler, the runner and the program that submits which adds to the audit log is such a point; renewals of
leases are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Facts = list[dict[str, Any]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Facts:
    """What came of each case."""
    folder = tmp_path_factory.mktemp("commit-points")
    script = repository / "tests" / "support" / "commit_points.py"
    # A Ray of its own beside the session's.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts: Facts = json.loads((folder / "facts.json").read_text())
    return facts


def test_there_is_a_kill_before_and_after_each_commit(cases: Facts) -> None:
    """D19: a slow machine may gather two commits in one, so that the last of them does not come"""
    assert not cases[0]["is_killed"]
    assert [case for case in cases[1:] if not case["is_killed"] and case["commits"] >= case["number"]] == []
    # Taking the role, the start; three results, the last with the job's end; the submit.
    for who, fewest in (("scheduler", 2), ("workflow-runner", 3), ("driver", 1)):
        for when in ("before", "after"):
            killed = [case for case in cases if (case["who"], case["when"], case["is_killed"]) == (who, when, True)]
            assert len(killed) >= fewest


def test_every_accepted_job_reaches_one_final_state(cases: Facts) -> None:
    """D13, D19"""
    for case in cases:
        assert (case["jobs"], case["status"], case["ends"]) == (1, "completed", 1), case
        is_accepted = case["who"] == "driver" and case["when"] == "after"
        assert case["accepted_of_driver"] == int(is_accepted), case


def test_no_committed_task_runs_again(cases: Facts) -> None:
    """D19, D20: the one that was on its way when the runner was killed may"""
    for case in cases:
        committed = {task: (attempt, at) for task, attempt, at in case["committed"]}
        assert len(case["committed"]) == len(committed) == 3, case
        for run in case["runs"]:
            attempt, at = committed[run["task"]]
            assert run["at"] < at, case
            assert run["attempt"] <= attempt, case
        assert {(run["task"], run["attempt"]) for run in case["runs"]} >= {
            (task, one[0]) for task, one in committed.items()
        }
        assert len(case["runs"]) <= 3 + (case["who"] == "workflow-runner"), case


def test_the_file_is_published_once_as_it_was_committed(cases: Facts) -> None:
    """D19, D20: what its reader saw is what stands there in the end, and no attempt saw one before it was committed"""
    for case in cases:
        (attempt,) = [attempt for task, attempt, _ in case["committed"] if task == "write"]
        assert case["content"] == case["output"] == f"enzyme by attempt {attempt}", case
        assert {run["inode"] for run in case["runs"] if run["task"] == "read"} == {case["inode"]}, case
        assert not any(run["was_there"] for run in case["runs"] if run["task"] == "write"), case


def test_nothing_stays_held(cases: Facts) -> None:
    """D15"""
    assert all(case["leases"] == [] for case in cases)
