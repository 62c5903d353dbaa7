"""Writing so that a kill, or a full disk, leaves the old content or the new."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayzyme.errors import InsufficientSpace
from rayzyme.storage.disk import TEMPORARY_PREFIX, atomic_file, atomic_write, remove_leftovers


def test_the_name_holds_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    """C5"""
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with atomic_file(path) as sink:
        sink.write(b"new")
        sink.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as sink:
            sink.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_and_cleaned_up(small_disk: Path) -> None:
    atomic_write(small_disk / "state", b"old")
    with pytest.raises(InsufficientSpace, match="the disk is full: writing state"):
        atomic_write(small_disk / "state", bytes(2**20))
    assert (small_disk / "state").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["state"]


def test_leftovers_of_the_dead_go_and_those_being_written_stay(tmp_path: Path) -> None:
    """C5"""
    script = """
import os, signal, sys
from pathlib import Path
from rayzyme.storage.disk import atomic_file
with atomic_file(Path(sys.argv[1]) / "state") as sink:
    sink.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    (tmp_path / f"{TEMPORARY_PREFIX}{'0a' * 16}").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}mine").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}notes").write_text("mine")
    with atomic_file(tmp_path / "other") as sink:
        assert len(list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))) == 5
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))) == 3
        sink.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"other", ".tmp-mine", ".tmp-notes"}
