"""The two example programs, run to their end with the bundled model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from rayzyme.settings import load_settings
from rayzyme.workflows.result import TaskStatus
from rayzyme_actors.demos import HYDROLYSES, demo_advanced, demo_simple
from rayzyme_actors.scheduler import stop_scheduler


@pytest.fixture(autouse=True)
def own_scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scheduler of this test's own: that of another test works on another database."""
    monkeypatch.setenv("RAYZYME_RAY__NAMESPACE", f"test-{uuid4().hex[:8]}")
    yield
    stop_scheduler(load_settings())


def test_the_simple_demo_screens_two_reactions(tmp_path: Path) -> None:
    """D68"""
    lines: list[str] = []
    result = demo_simple(tmp_path / "out", lines.append)
    assert result.success, result.error
    written = json.loads((tmp_path / "out" / "screening_results.json").read_text())
    assert [len(found["hits"]) for found in written["results"]] == [10, 10]
    assert [found["reaction_id"] for found in written["results"]] == list(HYDROLYSES)
    assert lines[0].startswith("job_")
    assert any(line.startswith("demo_simple: completed after") for line in lines)


def test_the_advanced_demo_runs_two_jobs_at_once_and_tells_of_them(tmp_path: Path) -> None:
    """D68"""
    lines: list[str] = []
    results = demo_advanced(tmp_path / "out", lines.append)
    assert {name: result.success for name, result in results.items()} == {"urgent": True, "other": True}
    starts, ends = ([getattr(result, moment) for result in results.values()] for moment in ("start_time", "end_time"))
    assert max(starts) < min(ends), "the jobs ran one after the other"
    assert "0 queued, 0 running (at most 2), 2 completed" in lines
    for name, result in results.items():
        screening = result.get_task_result("run_screening")
        assert screening is not None
        assert screening.status is TaskStatus.COMPLETED
        assert (tmp_path / "out" / name / "screening_results.csv").is_file()


def test_the_command_runs_the_advanced_demo_on_two_cpus(tmp_path: Path) -> None:
    """D68"""
    command = [sys.executable, "-m", "rayzyme_serve.cli", "--output", "json", "demo", "advanced"]
    environment = {**os.environ, "RAYZYME_RAY__NUM_CPUS": "2"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    jobs = {job["name"]: job["status"] for job in json.loads(ended.stdout)["jobs"]}
    assert jobs == {"urgent": "completed", "other": "completed"}
    assert (tmp_path / "results" / "demo_advanced" / "urgent" / "screening_results.json").is_file()
