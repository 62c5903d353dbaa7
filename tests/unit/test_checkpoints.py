"""Checkpoints by name: what is known, what is present, and which one is meant."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.broken_http_server import BrokenServer
from tests.support.checkpoint_samples import WEIGHTS, registry_of

from rayzyme.errors import CheckpointError, NotFound
from rayzyme.models import load_checkpoint
from rayzyme.models.checkpoints import CheckpointFormat, CheckpointRegistry, checkpoint_format, default_registry
from rayzyme.settings import use_settings


def test_built_in_names_are_there_with_an_empty_home(home: Path) -> None:
    listed = {info.name: info for info in CheckpointRegistry(home).list()}
    assert list(listed) == ["baseline", "clipzyme_official_v1", "clipzyme_v1"]
    assert listed["clipzyme_v1"].source == "https://zenodo.org/records/11187895"
    assert not listed["clipzyme_v1"].present
    assert listed["clipzyme_v1"].path is None
    assert listed["clipzyme_v1"].format is CheckpointFormat.TORCH
    assert listed["baseline"].format is CheckpointFormat.SAFETENSORS


def test_an_unknown_name_is_answered_with_near_and_known_ones(home: Path) -> None:
    with pytest.raises(NotFound) as failure:
        CheckpointRegistry(home).resolve("clipzyme_v2")
    assert str(failure.value) == (
        "There is no checkpoint named 'clipzyme_v2' and no file of that path. Did you mean 'clipzyme_v1' or "
        "'clipzyme_official_v1'? Known names: baseline, clipzyme_official_v1, clipzyme_v1; add your own in the settings "
        "under checkpoints.sources."
    )
    with pytest.raises(NotFound, match="There is no checkpoint named 'clipzyme_v2'"):
        CheckpointRegistry(home).fetch("clipzyme_v2")


def test_a_known_name_that_is_not_fetched_says_how_to_fetch_it(home: Path) -> None:
    with pytest.raises(NotFound, match=r"not fetched yet\. Run: rayzyme checkpoints fetch clipzyme_v1"):
        load_checkpoint("clipzyme_v1")


def test_the_default_registry_reads_the_settings(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.ckpt").write_bytes(WEIGHTS)
    home.mkdir()
    (home / "config.yaml").write_text(f"checkpoints:\n  sources:\n    mine: {tmp_path / 'mine.ckpt'}\n")
    use_settings(None)
    assert default_registry().resolve("mine") == tmp_path / "mine.ckpt"


def test_a_local_path_is_used_where_it_is(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    registry = registry_of(home, mine=str(folder))
    with pytest.raises(NotFound, match=f"'mine' should be at {folder}, where nothing is"):
        registry.fetch("mine")
    folder.mkdir()
    (folder / "model.ckpt").write_bytes(WEIGHTS)
    (folder / "notes.txt").write_text("notes")
    assert registry.fetch("mine") == registry.resolve("mine") == folder / "model.ckpt"
    assert registry.resolve(folder) == folder / "model.ckpt"
    assert registry.list()[-1].present


def test_safetensors_are_told_by_content_and_a_short_header_is_not(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.ones(3, np.float32)}, tmp_path / "w.bin")
    assert checkpoint_format(tmp_path / "w.bin") is CheckpointFormat.SAFETENSORS
    (tmp_path / "cut.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"is not a checkpoint \(20 bytes"):
        checkpoint_format(tmp_path / "cut.bin")


def test_importing_the_models_does_not_load_torch(repository: Path) -> None:
    script = "import sys, rayzyme.models, rayzyme.models.checkpoints; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(repository / "platform")})


def test_a_file_is_identified_by_its_stem_and_content(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.ckpt").write_bytes(b"never opened, so it need not be a checkpoint")
    digest = hashlib.sha256((tmp_path / "mine.ckpt").read_bytes()).hexdigest()
    registry = registry_of(home, ours=str(tmp_path / "mine.ckpt"))
    assert registry.identify(tmp_path / "mine.ckpt") == ("mine", digest)
    assert registry.identify(str(tmp_path / "mine.ckpt")) == ("mine", digest)
    assert registry.identify("ours") == ("ours", digest)


def test_a_fetched_checkpoint_is_identified_by_the_digest_recorded_when_it_arrived(
    home: Path, server: BrokenServer
) -> None:
    registry = registry_of(home, server, mine=server.serve("/mine.ckpt", WEIGHTS))
    registry.fetch("mine").write_bytes(b"altered since")
    assert registry.identify("mine") == ("mine", hashlib.sha256(WEIGHTS).hexdigest())


def test_a_known_name_that_is_not_present_is_identified_by_its_name_alone(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    registry = registry_of(home, server, mine=url, absent=str(home / "absent.ckpt"))
    assert registry.identify("clipzyme_v1") == ("clipzyme_v1", "")
    assert registry.identify("absent") == ("absent", "")
    registry.fetch("mine").unlink()
    assert registry.identify("mine") == ("mine", "")
    registry.fetch("mine")
    assert registry_of(home, server, mine=url + "?v=2").identify("mine") == ("mine", "")


def test_a_name_that_is_neither_known_nor_a_file_cannot_be_identified(home: Path) -> None:
    with pytest.raises(NotFound, match=r"no checkpoint named 'clipzyme_v2' .* Did you mean 'clipzyme_v1'"):
        CheckpointRegistry(home).identify("clipzyme_v2")
