"""Tasks that ask for GPUs, on a Ray that counts two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


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
