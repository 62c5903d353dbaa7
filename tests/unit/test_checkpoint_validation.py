"""Checkpoints that are altered, cut, hostile or of another model: what is said, and that nothing of them is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.broken_http_server import BrokenServer
from tests.support.checkpoint_samples import WEIGHTS, packed, registry_of, saved

from rayzyme.errors import CheckpointError
from rayzyme.models import load_checkpoint
from rayzyme.models.checkpoints import CheckpointRegistry


@pytest.fixture
def clipzyme(shared: Path) -> Path:
    """The small checkpoint in CLIPZyme's published format."""
    return shared / "fixtures" / "clipzyme" / "checkpoint.ckpt"


def _reasons(registry: CheckpointRegistry, name_or_path: str | Path) -> dict[str, tuple[bool, str]]:
    return {check.name: (check.ok, check.reason) for check in registry.validate(name_or_path).checks}


@pytest.mark.shared
def test_a_fetched_clipzyme_checkpoint_passes_every_check_and_opens_under_its_name(
    home: Path, server: BrokenServer, clipzyme: Path
) -> None:
    server.serve_record(11187895, {"clipzyme_model.zip": packed({"clipzyme_model.ckpt": clipzyme.read_bytes()})})
    registry = registry_of(home, server)
    registry.fetch("clipzyme_v1")
    report = registry.validate("clipzyme_v1")
    assert [check.name for check in report.checks] == [
        "digest",
        "format",
        "parameters",
        "finite values",
        "forward pass",
    ]
    assert report.ok, report
    report.raise_for_failure()
    encoder = load_checkpoint("clipzyme_v1", "cpu", registry)
    assert encoder.name == "clipzyme_v1"
    assert encoder.digest == hashlib.sha256(clipzyme.read_bytes()).hexdigest()
    assert registry.identify("clipzyme_v1") == (encoder.name, encoder.digest)
    assert encoder.dimension == 32


def test_the_bundled_baseline_passes_every_check(home: Path) -> None:
    registry = CheckpointRegistry(home)
    report = registry.validate("baseline")
    assert report.ok, report
    encoder = load_checkpoint("baseline")
    assert encoder.name == "baseline"
    assert encoder.digest == registry.list()[0].sha256
    assert registry.identify("baseline") == ("baseline", encoder.digest)
    rows = encoder.encode_reactions(["CCO>>CC=O"])
    assert rows.shape == (1, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.shared
def test_a_path_opens_under_its_stem(home: Path, clipzyme: Path) -> None:
    assert load_checkpoint(clipzyme, "cpu").name == "checkpoint"
    assert load_checkpoint(str(clipzyme), "cpu").name == "checkpoint"


@pytest.mark.shared
def test_an_altered_checkpoint_is_named_and_never_opened(home: Path, server: BrokenServer, clipzyme: Path) -> None:
    registry = registry_of(home, server, mine=server.serve("/mine.ckpt", clipzyme.read_bytes()))
    path = registry.fetch("mine")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    checks = _reasons(registry, "mine")
    found, recorded = hashlib.sha256(content).hexdigest(), hashlib.sha256(clipzyme.read_bytes()).hexdigest()
    assert checks["digest"] == (
        False,
        f"{path} has SHA-256 {found}, recorded is {recorded}: it was altered or damaged, "
        "and nothing of it is loaded; run: rayzyme checkpoints fetch mine --force",
    )
    assert checks["parameters"] == (False, "not tried, because digest failed")
    with pytest.raises(CheckpointError, match="it was altered or damaged, and nothing of it is loaded"):
        load_checkpoint("mine", "cpu", registry)
    with pytest.raises(CheckpointError, match="failed check 'digest'"):
        registry.validate("mine").raise_for_failure()


@pytest.mark.shared
def test_a_parameter_of_another_shape_is_named(home: Path, clipzyme: Path, tmp_path: Path) -> None:
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        content = torch.load(clipzyme, weights_only=True)
    content["state_dict"]["model.ln_final.weight"] = torch.ones(7)
    torch.save(content, tmp_path / "odd.ckpt")
    ok, reason = _reasons(CheckpointRegistry(home), tmp_path / "odd.ckpt")["parameters"]
    assert not ok
    assert "ln_final.weight" in reason


@pytest.mark.shared
def test_parameters_that_are_not_finite_are_named(home: Path, clipzyme: Path, tmp_path: Path) -> None:
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        content = torch.load(clipzyme, weights_only=True)
    content["state_dict"]["model.ln_final.weight"][0] = torch.nan
    torch.save(content, tmp_path / "odd.ckpt")
    checks = _reasons(CheckpointRegistry(home), tmp_path / "odd.ckpt")
    reasons = [reason for ok, reason in checks.values() if not ok]
    assert "ln_final.weight" in reasons[0]
    assert "NaN" in reasons[0] or "finite" in reasons[0]


def test_a_truncated_checkpoint_fails_its_check_with_its_size(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.ckpt").write_bytes(WEIGHTS[:300])
    ok, reason = _reasons(CheckpointRegistry(home), tmp_path / "cut.ckpt")["parameters"]
    assert not ok
    assert "truncated or corrupt (300 bytes)" in reason


def test_a_hostile_checkpoint_fails_its_check_and_does_not_run(home: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(tmp_path / "it-ran"), "w")

    (tmp_path / "bad.ckpt").write_bytes(saved({"state_dict": Hostile()}))
    ok, reason = _reasons(CheckpointRegistry(home), tmp_path / "bad.ckpt")["parameters"]
    assert not ok
    assert "asks for io.open" in reason or "asks for __builtin__.open" in reason
    with pytest.raises(CheckpointError, match="nothing in it has run"):
        load_checkpoint(tmp_path / "bad.ckpt", "cpu")
    assert not (tmp_path / "it-ran").exists()


def test_safetensors_of_another_model_are_refused(home: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "other.safetensors")
