"""Fixtures shared by unit tests: jobs in a database, commands, a server that misbehaves as told, patience that costs no time,
small disks.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.support.broken_http_server import BrokenServer
from tests.support.timing import Clock

from rayzyme.database import open_database
from rayzyme.jobs.store import JobStore
from rayzyme.models.download import Retries


@pytest.fixture
def clock() -> Clock:
    """The time of `store`."""
    return Clock(1_800_000_000.0)


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[JobStore]:
    """Jobs in a database of their own, once on SQLite and once on PostgreSQL."""
    with closing(open_database(database_url)) as database:
        yield JobStore(database, clock=clock)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of `rayzyme`; gives its exit code, standard output and standard error."""
    from rayzyme_serve.cli import main

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayzyme", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


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
    with _mounted(tmp_path / "small", "256k") as folder:
        yield folder


@pytest.fixture
def disk_of_20_mb(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    with _mounted(tmp_path / "disk", "20m") as folder:
        yield folder


@contextmanager
def _mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount tmpfs: not root")
    yield folder
    # Arrays that are mapped from it keep it busy.
    gc.collect()
    subprocess.run(["umount", str(folder)], check=True)
