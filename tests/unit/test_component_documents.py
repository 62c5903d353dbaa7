"""The documents that describe the components: their code runs as it stands, with our import lines."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from tests.support.document import code_blocks, with_our_imports

from rayzyme.monitoring import configure_logging
from rayzyme.settings import load_settings

MODULES = {
    "models.optimization.GPUManager": "rayzyme.resources",
    "models.optimization.DataHandler": "rayzyme.storage",
    "models.optimization.CheckpointManager": "rayzyme.storage",
    "models.optimization.ProgressTracker": "rayzyme.monitoring",
    "dispatcher.resources": "rayzyme.resources",
    "dispatcher.monitoring": "rayzyme.monitoring",
}
COMPONENTS = ["GPUManager", "DataHandler", "ProgressTracker", "CheckpointManager"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    configure_logging("WARNING")


@pytest.fixture(scope="module")
def blocks(shared: Path) -> list[str]:
    return code_blocks(shared / "documents" / "2-components.md")


def given_names(shared: Path) -> dict[str, Any]:
    """What the document uses without defining it: here from a real structure."""
    import gemmi

    chain = gemmi.read_structure(str(shared / "data" / "AF-P69905-F1-model_v4.cif"))[0][0]
    coordinates = np.array([[atom.pos.tolist() for atom in residue if atom.name == "CA"] for residue in chain])
    plddt = np.array([residue[0].b_iso for residue in chain])
    return {
        "coordinates": coordinates,
        "confidence_scores": plddt,
        "trajectory_frames": np.repeat(coordinates[None, :, 0], 20, axis=0).astype(np.float32),
        "time_steps": [2.0 * number for number in range(20)],
        "structure_state": {"coordinates": coordinates, "plddt": plddt},
        "dynamics_state": {"step": 7, "velocities": np.zeros((142, 3))},
        "analysis_state": {"done": {"rmsd"}, "pending": ("rmsf",)},
        "progress_state": None,
    }


@pytest.mark.parametrize("component", COMPONENTS)
def test_signatures_are_those_of_the_document(blocks: list[str], component: str) -> None:
    """C6, C21, C38, C52"""
    (code,) = (block for block in blocks if f"class {component}:" in block)
    documented: dict[str, Any] = {"Dict": dict, "List": list, "Optional": Optional, "Any": Any}
    exec(with_our_imports(code, MODULES), documented)
    ours = getattr(importlib.import_module(MODULES[f"models.optimization.{component}"]), component)
    for name, method in inspect.getmembers(documented[component], inspect.isfunction):
        theirs = list(inspect.signature(method).parameters.values())
        mine = list(inspect.signature(getattr(ours, name)).parameters.values())
        assert [(parameter.name, parameter.default) for parameter in mine[: len(theirs)]] == [
            (parameter.name, parameter.default) for parameter in theirs
        ]
        assert all(parameter.default is not inspect.Parameter.empty for parameter in mine[len(theirs) :])


@pytest.mark.parametrize("component", COMPONENTS)
def test_usage_examples_run(
    blocks: list[str], component: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C11, C24, C31, C42, C54"""
    (code,) = (block for block in blocks if f" = {component}(" in block)
    names = given_names(shared)
    exec(f"from {MODULES[f'models.optimization.{component}']} import {component}\n{code}", names)
    printed = capsys.readouterr().out
    match component:
        case "GPUManager":
            assert "Optimal batch size: " in printed
            names["gpu_manager"].close()
        case "DataHandler":
            assert "Cache usage: 0.0%" in printed
            assert np.array_equal(names["structure"]["positions"], names["coordinates"])
            assert names["trajectory"]["time"] == names["time_steps"]
            names["data_handler"].close()
        case "ProgressTracker":
            assert "Overall progress: 3.33%" in printed
            names["tracker"].close()
        case "CheckpointManager":
            assert list(names["states"]) == ["structure", "dynamics", "analysis", "progress"]
            assert names["states"]["analysis"] == {"done": {"rmsd"}, "pending": ("rmsf",)}


def test_every_block_was_run(blocks: list[str]) -> None:
    run = [block for name in COMPONENTS for block in blocks if f"class {name}:" in block or f" = {name}(" in block]
    assert sorted(run) == sorted(blocks)


def dispatcher_block(shared: Path, containing: str, language: str = "python") -> str:
    (block,) = (code for code in code_blocks(shared / "documents" / "1-dispatcher.md", language) if containing in code)
    return with_our_imports(block, MODULES)


def test_the_memory_example_runs(shared: Path) -> None:
    """D69"""
    names: dict[str, Any] = {}
    exec(dispatcher_block(shared, "get_memory_manager"), names)
    assert 1 <= names["batch_size"] <= 64


def test_the_cache_example_runs(shared: Path) -> None:
    """D70"""
    names: dict[str, Any] = {"embeddings": np.ones((3, 4), np.float32)}
    exec(dispatcher_block(shared, "TwoLevelCache"), names)
    assert np.array_equal(names["embeddings"], np.ones((3, 4)))
    names["cache"].close()


def test_the_metrics_example_runs(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D71"""
    exec(dispatcher_block(shared, "get_metrics_collector"), {})
    assert capsys.readouterr().out == "Average: 45.20s\n"


def test_the_logging_example_runs(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D72"""
    exec(dispatcher_block(shared, "configure_logging"), {"logging": logging})
    logging.getLogger("rayzyme.test").info("ready")
    assert json.loads(capsys.readouterr().err)["message"] == "ready"


def test_the_settings_example_loads_as_it_stands(shared: Path, tmp_path: Path) -> None:
    """D73"""
    for number, text in enumerate(code_blocks(shared / "documents" / "1-dispatcher.md", "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        load_settings(str(file))
    settings = load_settings(tmp_path / "0.yaml")
    assert settings.scheduler.max_workers_per_job == 4
    assert settings.resources.gpu.min_free_memory_mb == 1000
    assert settings.resources.cache.l2_size_mb == 10240
    assert settings.logging.file is True


def test_our_own_guide_runs(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in code_blocks(repository / "docs" / "components.md"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "of the trajectory's bytes saved" in printed
    assert "33.33 %" in printed
