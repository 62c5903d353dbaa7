"""Fixtures shared by unit tests: a server that misbehaves as told, patience that costs no time, a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.broken_http_server import BrokenServer

from rayzyme.models.download import Retries


@pytest.fixture
def server() -> Iterator[BrokenServer]:
    with BrokenServer() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that `retries` was asked for, in seconds."""
    return []


@pytest.fixture
def retries(pauses: list[float]) -> Retries:
    """Patience that records its pauses instead of waiting."""
    return Retries(attempts=3, sleep=pauses.append)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=False).returncode
    ):
        pytest.skip("cannot mount a small file system (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)
