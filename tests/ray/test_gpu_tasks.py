"""Tasks that ask for GPUs, on a Ray that counts two."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from rayzyme.settings import get_settings
from rayzyme.workflows import FunctionTask, TaskConfig
from rayzyme.workflows.specs import planned_task, task_document
from rayzyme_actors.running_job import shape_of


def test_tasks_get_the_gpus_that_they_ask_for_and_lease_their_memory(
    tmp_path: Path, home: Path, repository: Path
) -> None:
    """D15, D23, D27, D75"""
    home.mkdir()
    settings = {"resources": {"gpu": {"simulated_mb": [20_000, 20_000]}}, "ray": {"namespace": "rayzyme"}}
    (home / "config.yaml").write_text(json.dumps(settings))
    script = repository / "tests" / "support" / "gpu_tasks.py"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert sorted(told["two"]) == [0, 1]
    assert told["none"] == []
    assert told["leased_mb"] == [9000.0]
    assert told["allocations"] == 1
    assert told["holder"] == "completed"
    assert told["three"] == "task three needs 3 GPUs; the cluster has 2"


def test_other_jobs_of_a_runner_go_on_while_ray_is_asked_for_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """D27"""
    went_on = threading.Event()

    def nodes() -> list[dict[str, Any]]:
        assert went_on.wait(10), "nothing else could run meanwhile"
        return [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}]

    async def start() -> float:
        asyncio.get_running_loop().call_soon(went_on.set)
        planned = planned_task(task_document(FunctionTask("t", json.dumps, TaskConfig("t", gpu_required=True))))
        return (await shape_of(planned, get_settings())).gpus

    monkeypatch.setattr(ray, "nodes", nodes)
    assert asyncio.run(start()) == 1.0
