"""The document that describes the dispatcher: its code runs as it stands with our import lines, its commands as processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import yaml
from tests.ray.dispatching import until
from tests.support.document import code_blocks, with_our_imports

from rayzyme.models.baseline import encoder as baseline
from rayzyme.monitoring import configure_logging
from rayzyme.settings import use_settings

MODULES = {
    "dispatcher.DispatcherAPI": "rayzyme_actors",
    "dispatcher.TaskPriority": "rayzyme.jobs",
    "dispatcher": "rayzyme.workflows",
    "dispatcher.tasks": "rayzyme.workflows",
    "dispatcher.workflows": "rayzyme.workflows",
    "dispatcher.resources": "rayzyme.resources",
    "dispatcher.monitoring": "rayzyme.monitoring",
}
PROTEINS = {
    "P00330": "SIPETQKGVIFYESHGKLEYKDIPVPKPKANELLINVKYSGVCHTDLHAWHGDWPLPVKLPLVGGHEGAGVVVGMGENVKGWKIGDYAGIKWLNGSCMA",
    "P00698": "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVS",
    "P04637": "MEEPQSDPSVEPPLSQETFSDLWKLLPENNVLSPLPSQAMDDLMLSPDDIEQWFTEDPGPDEAPRMPEAAPPVAPAPAAPTPAAPAPAPSWPLSSSVPSQ",
}
COMMANDS = ("start", "screen", "list-jobs", "stats")


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the files that the document names, and its checkpoints' names pointing to the bundled model."""
    weights = str(Path(baseline.__file__).parent / "data" / "weights.safetensors")
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "checkpoints": {"sources": {"clipzyme_official_v1": weights, "clipzyme_v1": weights}},
                # One of the document's tasks asks for a GPU.
                "resources": {"gpu": {"on_missing": "cpu"}},
                "ray": {"namespace": f"test-{uuid4().hex[:8]}"},
            }
        )
    )
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    rows = [f"{protein},{sequence}" for protein, sequence in PROTEINS.items()]
    (work / "data" / "proteins.csv").write_text("protein_id,sequence\n" + "\n".join(rows) + "\n")
    (work / "data" / "ground_truth.csv").write_text(
        "reaction_id,reaction_smiles,known_enzymes\n1,CC(=O)O>>CCO,P00330\n"
    )
    (work / "reactions.txt").write_text("CC(=O)O>>CCO\n\nCC(C)CC(N)C(=O)O>>CC(C)CC(=O)C(=O)O\n")
    monkeypatch.chdir(work)
    use_settings(None)
    yield work
    configure_logging("WARNING")


def test_every_python_block_runs(shared: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D77, and the names of D30, D31, D52, D53, D61 to D63, D69, D70, D71, D72, D73"""
    from rayzyme_actors.scheduler import stop_scheduler

    document = shared / "documents" / "1-dispatcher.md"
    (settings_file,) = (block for block in code_blocks(document, "yaml") if "l2_size_mb" in block)
    (folder / "dispatcher_config.yaml").write_text(settings_file)
    names: dict[str, Any] = {
        "logging": logging,
        "reaction_list": ["CC(=O)O>>CCO"],
        "reactions": ["CC(=O)O>>CCO"],
        "embeddings": np.eye(3, dtype=np.float32),
    }
    blocks = code_blocks(document)
    for block in blocks:
        exec(with_our_imports(block, MODULES), names)
    printed = capsys.readouterr().out
    assert "Status: completed" in printed
    assert "Duration: " in printed
    assert "Average: 45.20s" in printed
    assert names["result"].success
    assert (folder / "results" / "screening" / "screening_results.csv").exists()
    assert np.array_equal(names["cache"].get("protein_embeddings"), np.eye(3, dtype=np.float32))
    # The last block but one submits the newest `workflow` with high priority.
    assert names["dispatcher"].list_jobs()[0]["priority"] == 2
    dispatcher = names["dispatcher"]
    dispatcher.stop(wait=False)
    stop_scheduler(dispatcher.settings)
    assert len(blocks) == 14


def test_our_own_guide_runs(repository: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rayzyme.settings import get_settings
    from rayzyme_actors.scheduler import stop_scheduler

    names: dict[str, Any] = {}
    for block in code_blocks(repository / "docs" / "jobs.md"):
        exec(block, names)
    assert capsys.readouterr().out == "completed P2\n"
    stop_scheduler(get_settings())


def test_the_four_commands_see_one_job(shared: Path, folder: Path) -> None:
    """D57, D58, D59, D77: `start` in one process, the others in processes of their own"""
    (block,) = (
        code for code in code_blocks(shared / "documents" / "1-dispatcher.md", "bash") if "api.cli start" in code
    )
    joined = block.replace("\\\n", " ")
    commands = [line.split() for line in joined.splitlines() if line.startswith("python -m dispatcher.api.cli")]
    assert tuple(command[3] for command in commands) == COMMANDS
    environment = os.environ | {"PYTHONSAFEPATH": "1", "RAYZYME_RAY__NUM_CPUS": "2"}

    def arguments(command: list[str]) -> list[str]:
        return [sys.executable, "-m", "rayzyme_serve.cli", *command[3:]]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rayzyme_serve.cli", *command],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    start, screen, listing, stats = commands
    with (folder / "start.log").open("w") as log:
        scheduler = subprocess.Popen(arguments(start), env=environment, stdout=log, stderr=log)
    try:
        until(lambda: "running" in run("--output", "quiet", "status").stdout, 60)
        submitted = run(*screen[3:])
        assert submitted.returncode == 0, submitted.stderr
        job_id = next(word for word in submitted.stdout.split() if word.startswith("job_"))
        assert job_id in run(*listing[3:]).stdout
        assert run("jobs", "wait", job_id, "--timeout", "120").returncode == 0, (folder / "start.log").read_text()
        listed = run(*listing[3:]).stdout
        assert "screening-clipzyme_v1" in listed
        assert "completed" in listed
        assert "DISPATCHER STATUS" in run(*stats[3:]).stdout
        assert (folder / "results" / "screening_results.csv").exists()
        stopped = run("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert scheduler.wait(30) == 0
    finally:
        scheduler.kill()
