"""A node of a real cluster is killed under a task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_task_whose_node_dies_runs_on_another_and_spends_no_retry(tmp_path: Path, repository: Path) -> None:
    """D17, D27, D75"""
    script = repository / "tests" / "support" / "node_loss.py"
    # A Ray of its own beside the session's.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONSAFEPATH": "1"}
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
    # Two nodes of one CPU each do not make a process of two.
    assert told.pop("refused") == "task wide needs 2 cpu; its largest node has 1"
    assert told == {"status": "completed", "attempt": 2, "site_faults": 1}
