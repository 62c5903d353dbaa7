"""`rayzyme data`, `checkpoints`, `gpus` and `stats`: what they show, what they end with, what they record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from rayzyme.database import open_database, record_event
from rayzyme.database.tables import JobEvent
from rayzyme.errors import CheckpointError, DamagedFile, NotFound
from rayzyme.resources import GPUManager
from rayzyme.storage import CheckpointManager, DataHandler
from rayzyme_serve.cli.audit import audited
from rayzyme_serve.cli.main import app


def run(*arguments: str) -> Any:
    """The JSON document that a command prints."""
    done = CliRunner().invoke(app, ["--output", "json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> BaseException:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exception is not None
    return done.exception


@pytest.fixture
def keys(home: Path) -> dict[str, str]:
    with DataHandler() as store:
        return {
            "protein1": store.store_structure({"positions": np.ones((500, 3))}, "protein1", {"resolution": "high"}),
            "md": store.store_trajectory({"frames": np.ones((5, 4, 3))}, "md", intermediate=True),
        }


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def events() -> list[tuple[str, str]]:
    database = open_database()
    with database.read() as connection:
        found = [(row.subject, row.reason) for row in connection.execute(select(JobEvent).order_by(JobEvent.id))]
    database.close()
    return found


def test_data_are_listed(keys: dict[str, str]) -> None:
    """C63"""
    document = run("data", "list")
    assert document["schema"] == "rayzyme.data.list/1"
    assert [entry["key"] for entry in document["entries"]] == list(keys.values())
    assert [entry["data_id"] for entry in run("data", "list", "--kind", "trajectory")["entries"]] == ["md"]
    table = CliRunner().invoke(app, ["data", "list"]).output
    assert "2 entries" in table
    assert "protein1" in table


def test_damaged_data_are_found_and_recorded(keys: dict[str, str], home: Path) -> None:
    """C63"""
    assert run("data", "verify")["bad"] == []
    key = keys["protein1"]
    flip_a_bit(home / "data" / "entries" / key[:2] / key)
    error = refused("data", "verify")
    assert isinstance(error, DamagedFile)
    assert f"1 of 2 entries are gone or damaged: {key}" in str(error)
    assert events() == [(f"data:{key}", "data verify: gone, or damaged and set aside")]


def test_cleaning_says_why_and_records_who_asked(keys: dict[str, str], home: Path) -> None:
    """C37, C63"""
    would = run("data", "clean", "--dry-run")["removed"]
    assert [(row["data_id"], row["reason"]) for row in would] == [("md", "an intermediate that nobody needs any more")]
    assert not (home / "rayzyme.db").exists()
    assert [row["data_id"] for row in run("data", "clean", "--max-age-days", "0")["removed"]] == ["md", "protein1"]
    assert run("data", "list")["entries"] == []
    recorded = events()
    assert recorded[0] == (f"data:{keys['md']}", "data clean: an intermediate that nobody needs any more")
    assert recorded[1][0] == f"data:{keys['protein1']}"
    database = open_database()
    with database.read() as connection:
        assert all("@" in actor for actor in connection.execute(select(JobEvent.actor)).scalars())
    database.close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    manager = CheckpointManager(str(tmp_path / "states"))
    states = {"structure": {"positions": np.ones((100_000,))}, "progress": {"step": 7}}
    return Path(manager.create_checkpoint("analysis_1", states))


def test_saved_states_are_listed_shown_and_verified(saved: Path) -> None:
    """C63"""
    assert [item["path"] for item in run("checkpoints", "list", str(saved.parent))["checkpoints"]] == [str(saved)]
    shown = run("checkpoints", "show", str(saved))
    assert (shown["checkpoint_id"], shown["components"]) == ("analysis_1", ["structure", "progress"])
    assert run("checkpoints", "verify", str(saved.parent))["checkpoints"] == {str(saved): True}
    flip_a_bit(max(saved.rglob("*.npy"), key=lambda path: path.stat().st_size))
    error = refused("checkpoints", "verify", str(saved))
    assert isinstance(error, CheckpointError)
    assert "1 of 1 checkpoint(s) are damaged" in str(error)


def test_what_is_no_saved_state_is_refused(tmp_path: Path) -> None:
    assert isinstance(refused("checkpoints", "show", str(tmp_path)), NotFound)
    assert isinstance(refused("checkpoints", "list", str(tmp_path / "absent")), NotFound)
    assert not (tmp_path / "absent").exists()


def test_checkpoints_without_a_folder_are_model_weights() -> None:
    assert "baseline" in [item["name"] for item in run("checkpoints", "list")["checkpoints"]]


def test_gpus_are_listed_with_what_they_have_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """C63"""
    assert run("gpus") == {"schema": "rayzyme.gpus/1", "gpus": [], "leases": []}
    monkeypatch.setenv("RAYZYME_RESOURCES__GPU__SIMULATED_MB", "[40000, 8500]")
    first, second = run("gpus")["gpus"]
    assert (first["memory_total"], second["memory_free"]) == (40_000, 8_500)
    assert "7,500" in second["tasks"]["dynamics"], "1,000 MB stay free"
    with GPUManager.from_settings({"simulation": 30_000}) as manager:
        manager.allocate_gpus("simulation")
        (lease,) = run("gpus")["leases"]
        assert (lease["amount"], lease["purpose"], lease["pid"]) == (30_000, "simulation", os.getpid())
        assert [held["purpose"] for held in run("stats")["leases"]] == ["simulation"]
        assert "holds 30,000 MB" in CliRunner().invoke(app, ["gpus"]).output


def test_stats_show_the_metrics_of_the_components(keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """C62"""
    monkeypatch.setenv("RAYZYME_RESOURCES__GPU__SIMULATED_MB", "[40000]")
    report = run("stats")
    assert report["schema"] == "rayzyme.status/1"
    assert report["data"]["num_entries"] == 2
    assert report["metrics"]["rayzyme_data_entries"] == 2
    assert report["metrics"]["rayzyme_data_bytes"] > 0
    assert any(name.startswith("rayzyme_gpu_memory_free_mb") for name in report["metrics"])
    assert "num_entries" in CliRunner().invoke(app, ["stats"]).output


def test_a_long_command_does_not_keep_others_from_the_database(home: Path) -> None:
    """C63, D15"""
    with audited() as record:
        record("data:1", "deleted", {})
        database = open_database()
        with database.begin() as connection:
            record_event(connection, "data:2", "meanwhile")
        database.close()
    assert events() == [("data:2", "meanwhile"), ("data:1", "deleted")]


def test_what_was_deleted_before_an_error_is_recorded(home: Path) -> None:
    """C63"""

    def break_off() -> None:
        with audited() as record:
            record("data:1", "deleted", {})
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        break_off()
    assert events() == [("data:1", "deleted")]
