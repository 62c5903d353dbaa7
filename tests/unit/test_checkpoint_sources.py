"""Sources of checkpoints that users name in their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayzyme.errors import InvalidInput
from rayzyme.models.checkpoint_sources import CheckpointSource
from rayzyme.models.checkpoints import CheckpointRegistry


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("../escape", "file:///x", "a checkpoint's name is made of letters, digits"),
        ("baseline", "file:///x", "'baseline' is the bundled model; use another name"),
        ("mine", "http://example.org/x.ckpt", "is plain http, which anyone on the way can alter; use https"),
        ("mine", "s3://bucket/x.ckpt", "cannot be fetched; use an https:// or file:// address"),
        ("mine", {"sha256": "0" * 64}, "checkpoints.sources.mine: url is missing"),
        ("mine", {"url": "file:///x", "sha": "0"}, "unknown key 'sha'; known: url, sha256, md5, size, description"),
        ("mine", {"url": "file:///x", "md5": "zz"}, "md5 must be 32 hexadecimal digits, not 'zz'"),
        ("mine", {"url": "file:///x", "size": "2 GB"}, "size must be a number of bytes, not '2 GB'"),
    ],
)
def test_a_source_that_cannot_hold_is_refused_at_once(name: str, setting: object, words: str) -> None:
    with pytest.raises(InvalidInput) as failure:
        CheckpointSource.from_setting(name, setting)  # type: ignore[arg-type]
    assert words in str(failure.value)


def test_digests_are_taken_as_people_write_them() -> None:
    # YAML reads a number where a digest has no letters and no quotes.
    source = CheckpointSource.from_setting("mine", {"url": "file:///x", "sha256": "AB" * 32, "md5": int("12" * 16)})
    assert source.sha256 == "ab" * 32
    assert source.md5 == "12" * 16


def test_a_registry_reads_every_source_when_it_is_made(home: Path) -> None:
    with pytest.raises(InvalidInput, match=r"checkpoints\.sources\.mine: url is missing"):
        CheckpointRegistry(home, {"fine": "file:///x", "mine": {}})
