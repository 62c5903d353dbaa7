"""The four components in one pipeline that is killed and goes on, and what they need to be loaded at all."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

COMPONENTS = "from rayzyme.resources import GPUManager; from rayzyme.storage import CheckpointManager, DataHandler; \
from rayzyme.monitoring import ProgressTracker"

PIPELINE = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from rayzyme.monitoring import ProgressTracker
from rayzyme.resources import FakeGPUs, GPUManager
from rayzyme.storage import CheckpointManager, DataHandler

killed_at = int(sys.argv[1])
gpus = GPUManager(provider=FakeGPUs([38000, 15000, 40000]))
while not (chosen := gpus.allocate_gpus("prediction")):
    time.sleep(0.1)  # the leases of those that were killed have to lapse first
while (batch := gpus.get_optimal_batch_size("prediction", chosen)) < 2:
    time.sleep(0.1)
store = DataHandler("data")
checkpoints = CheckpointManager("checkpoints", max_checkpoints=3)
tracker = ProgressTracker(checkpoint_dir="progress", auto_checkpoint=False)
newest = checkpoints.latest("analysis")
if newest is None:
    keys, percents = [], []
    tracker.start_task("protein1", "Protein analysis", total_steps=3)
    for stage in ("prediction", "dynamics", "analysis"):
        tracker.start_task(stage, stage, total_steps=4, parent_task="protein1")
else:
    state = checkpoints.load_checkpoint(newest)
    keys, percents = state["structure"]["keys"], state["analysis"]["percents"]
    tracker.load_checkpoint(state["progress"]["file"])
    print(json.dumps({"restored": tracker.get_progress()["percent"]}))
for number in range(len(keys), 12):
    with Path("computed").open("a") as log:
        log.write(f"{number}\\n")
    positions = np.full((10, 3), number, np.float32)
    keys.append(store.store_structure({"positions": positions}, f"structure-{number}"))
    tracker.update_task(("prediction", "dynamics", "analysis")[number // 4], 1, f"structure {number}")
    percents.append(tracker.get_progress()["percent"])
    saved = tracker.save_checkpoint()
    states = {"structure": {"keys": keys}, "dynamics": {"last": positions}, "analysis": {"percents": percents},
              "progress": {"file": saved}}
    checkpoints.create_checkpoint("analysis", states)
    if number == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({"gpus": chosen, "batch": batch, "percents": percents,
                  "found": [float(store.load_data(key)["positions"][0, 0]) for key in keys]}))
"""


def test_a_pipeline_that_is_killed_goes_on_and_computes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C14, C61"""
    monkeypatch.setenv("RAYZYME_LEASES__TTL", "1")
    monkeypatch.setenv("RAYZYME_LEASES__RENEW", "0.3")

    def run(killed_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PIPELINE, str(killed_at)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert [run(killed_at).returncode for killed_at in (2, 7)] == [-9, -9]
    last = run(99)
    assert last.returncode == 0, last.stderr
    restored, result = map(json.loads, last.stdout.splitlines())
    assert (tmp_path / "computed").read_text().split() == [str(number) for number in range(12)]
    assert result["found"] == list(range(12))
    assert (result["gpus"], result["batch"]) == ([2, 0], 2)
    assert restored["restored"] == result["percents"][7]
    assert result["percents"] == sorted(result["percents"])
    assert (result["percents"][3], result["percents"][7], result["percents"][11]) == (33.33, 66.67, 100.0)


def test_they_load_where_there_is_nothing_but_numpy(tmp_path: Path, repository: Path) -> None:
    """C1"""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("numpy", "numpy.libs"):
        installed = Path(np.__file__).parent.parent / name
        if installed.exists():
            (site / name).symlink_to(installed)
    paths = [
        sysconfig.get_path("stdlib"),
        sysconfig.get_config_var("DESTSHARED"),
        str(site),
        str(repository / "platform"),
    ]
    code = f"import sys; sys.path[:] = {paths!r}; {COMPONENTS}; print(sorted(m for m in sys.modules if m in ('torch', 'ray')))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_loading_them_loads_no_framework_and_no_ray() -> None:
    """C1"""
    heavy = (
        "{'torch', 'tensorflow', 'jax', 'ray', 'sqlalchemy', 'pydantic', 'numcodecs', 'diskcache', 'pynvml', 'psutil'}"
    )
    code = f"import sys; {COMPONENTS}; print(sorted({{*sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
