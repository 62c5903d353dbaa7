"""Checkpoints under what goes wrong: damage, writers that are killed, a full disk, several processes at once."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.values import same

from rayzyme.errors import CheckpointError, InsufficientSpace
from rayzyme.storage.checkpoint_folder import read_metadata
from rayzyme.storage.checkpoints import CheckpointManager

STATES = {"a": {"large": np.arange(20_000.0), "small": np.arange(5), "text": "é"}, "b": [1, (2, None)]}
WAIT = 60


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "checkpoints")


@pytest.fixture
def path(manager: CheckpointManager) -> Path:
    return Path(manager.create_checkpoint("run", STATES))


def flipped(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_every_single_bit_of_the_metadata_is_protected(manager: CheckpointManager) -> None:
    """C58"""
    path = Path(manager.create_checkpoint("run", {"a": 1}))
    metadata = path / "metadata.json"
    content = metadata.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            metadata.write_bytes(flipped(content, position, bit))
            with pytest.raises(CheckpointError, match=r"metadata\.json"):
                read_metadata(path)
    for other in (content + b"\n", content.replace(b"\n", b" "), b" " + content):
        metadata.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"metadata\.json"):
            read_metadata(path)
    metadata.write_bytes(content)
    assert read_metadata(path)["checkpoint_id"] == "run"


@pytest.mark.parametrize("file", ["a/state.bundle", "b/state.bundle", "a/*.npy", "metadata.json"])
def test_a_flipped_bit_is_found_and_its_file_named(manager: CheckpointManager, path: Path, file: str) -> None:
    """C54 C58"""
    (damaged,) = path.glob(file)
    content = damaged.read_bytes()
    for position in {*range(0, len(content), max(1, len(content) // 60)), len(content) - 1}:
        damaged.write_bytes(flipped(content, position, position % 8))
        assert manager.verify_checkpoint(path) is False
        with pytest.raises(CheckpointError, match=damaged.name):
            manager.load_checkpoint(path)
    damaged.write_bytes(content)
    assert manager.verify_checkpoint(path) is True
    assert same(manager.load_checkpoint(path), STATES)


@pytest.mark.parametrize("file", ["a/state.bundle", "a/*.npy", "metadata.json"])
@pytest.mark.parametrize("left", [0, 0.5, None], ids=["emptied", "torn", "missing"])
def test_a_torn_or_missing_file_is_named(manager: CheckpointManager, path: Path, file: str, left: float | None) -> None:
    """C54 C58"""
    (damaged,) = path.glob(file)
    if left is None:
        damaged.unlink()
    else:
        os.truncate(damaged, int(damaged.stat().st_size * left))
    assert manager.verify_checkpoint(path) is False
    with pytest.raises(CheckpointError, match=damaged.name):
        manager.load_checkpoint(path)


def _file(path: Path) -> None:
    path.write_bytes(b"")


def _link_instead(path: Path) -> None:
    """A link to the same bytes, as long as they are."""
    size = path.stat().st_size
    moved = path.replace(path.parents[2] / ("x" if size % 2 else "xy"))
    path.symlink_to("./" * ((size - 6) // 2) + "../../" + moved.name)


@pytest.mark.parametrize(
    "add",
    [
        lambda path: _file(path / "a" / ".hidden"),
        lambda path: _file(path / "more"),
        lambda path: (path / "c").mkdir(),
        lambda path: (path / "a" / "link").symlink_to(path / "metadata.json"),
        lambda path: _link_instead(path / "b" / "state.bundle"),
        lambda path: shutil.copy(path / "a" / "state.bundle", path / "b" / "state.bundle"),
    ],
    ids=["file", "file on top", "folder", "link", "link in place of a file", "another's file"],
)
def test_what_does_not_belong_there_makes_it_invalid(
    manager: CheckpointManager, path: Path, add: Callable[[Path], object]
) -> None:
    """C58"""
    add(path)
    assert manager.verify_checkpoint(path) is False


def test_a_folder_that_is_not_there_is_not_found(manager: CheckpointManager, tmp_path: Path) -> None:
    """C54"""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        manager.load_checkpoint(tmp_path / "nowhere")
    assert manager.verify_checkpoint(tmp_path / "nowhere") is False
    with pytest.raises(CheckpointError, match=r"metadata\.json is missing"):
        manager.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("replaced", "by", "named"),
    [
        ("a/*.npy", Path.mkdir, r"\.npy cannot be read"),
        ("a/state.bundle", Path.mkdir, r"a/state\.bundle cannot be read"),
        ("a", _file, r"a/state\.bundle cannot be read"),
        ("metadata.json", Path.mkdir, r"metadata\.json cannot be read"),
    ],
)
def test_a_folder_in_place_of_a_file_or_a_file_of_a_folder_is_named(
    manager: CheckpointManager, path: Path, replaced: str, by: Callable[[Path], None], named: str
) -> None:
    """C54"""
    (place,) = path.glob(replaced)
    place.rename(path.parent / "moved")
    by(place)
    with pytest.raises(CheckpointError, match=named):
        manager.load_checkpoint(path)
    assert manager.verify_checkpoint(path) is False


def test_a_disk_that_fails_while_reading_is_named(
    manager: CheckpointManager, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C54"""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(CheckpointError, match=r"a/.* cannot be read \(Input/output error\)"):
        manager.load_checkpoint(path, ["a"])


@pytest.mark.parametrize("lost", [".npy", ".bundle", ".json"])
def test_what_is_read_back_must_be_what_was_given(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """C58"""
    older = manager.create_checkpoint("run", {"a": 1})
    synced = os.fsync

    def lose_a_bit(descriptor: int) -> None:
        synced(descriptor)
        written = Path(f"/proc/self/fd/{descriptor}").resolve()
        if written.suffix == lost:
            written.write_bytes(flipped(written.read_bytes(), 100, 3))

    monkeypatch.setattr(os, "fsync", lose_a_bit)
    with pytest.raises(CheckpointError, match=r"read back|metadata\.json is torn"):
        manager.create_checkpoint("run", STATES)
    assert [item["path"] for item in manager.list_checkpoints()] == [older]
    assert not list(Path(older).parent.glob(".tmp-*"))
    unverified = manager.create_checkpoint("run", STATES, verify=False)
    assert manager.latest() == older
    assert manager.verify_checkpoint(unverified) is False


def test_every_file_and_folder_is_on_the_disk_before_the_name_is_given(
    manager: CheckpointManager, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5 C55"""
    synced, renamed, steps = os.fsync, os.rename, list[Path]()

    def sync(descriptor: int) -> None:
        synced(descriptor)
        steps.append(Path(f"/proc/self/fd/{descriptor}").resolve())

    def rename(source: Path, target: Path) -> None:
        renamed(source, target)
        steps.append(Path(target))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    made = Path(manager.create_checkpoint("run", {"a": np.arange(30_000), "b": 2}))
    temporary, named = steps[-3], steps.index(made)
    assert steps[named:] == [made, path.parent]
    assert {step.relative_to(temporary) for step in steps[:named]} == {
        item.relative_to(made) for item in (made, *made.rglob("*"))
    }


AT_EVERY_STEP = """
import itertools, os, shutil, signal, sys, threading
from pathlib import Path
import numpy as np
from rayzyme.storage.checkpoints import CheckpointManager

def states(number):
    return {"a": {"same": np.arange(100_000.0), "new": np.full(100_000, number)}, "b": {"number": number}}

root, deed = Path(sys.argv[1]), sys.argv[2]
original = root / "original"
CheckpointManager(original, 2).create_checkpoint("run", states(0))
CheckpointManager(original, 2).create_checkpoint("run", states(1))
# What changes names, or opens a file or folder; a file that is being written by another thread is torn there.
steps = {"open", "os.scandir", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}

def create(base, last):
    counter, counting = itertools.count(1), threading.Lock()
    def watch(event, arguments):
        if event in steps:
            with counting:
                number = next(counter)
            if number == last and deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == last:
                raise OSError(5, "Input/output error")
    sys.addaudithook(watch)
    try:
        CheckpointManager(base, 2).create_checkpoint("run", states(2))
    except OSError:
        os._exit(1)
    os._exit(0 if next(counter) <= last else 2)

for last in itertools.count(1):
    base = root / f"{last:03d}"
    shutil.copytree(original, base)
    child = os.fork()
    if child == 0:
        create(base, last)
    outcome = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(base, {-9: "killed", 0: "undisturbed", 1: "raised", 2: "went on"}[outcome])
    if outcome == 0:
        break
"""


def at_every_step(folder: Path, deed: str) -> list[tuple[Path, str]]:
    """Folders with checkpoints 1 and 0 in which the creation of 2 was disturbed, each at another step; the last was not."""
    script = [sys.executable, "-c", AT_EVERY_STEP, str(folder), deed]
    lines = subprocess.run(script, check=True, timeout=WAIT, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) > 30
    return [(Path(base), outcome) for base, outcome in (line.split(maxsplit=1) for line in lines)]


def loaded_numbers(manager: CheckpointManager) -> list[int]:
    """What the checkpoints that are listed hold; each must be whole."""
    listed = manager.list_checkpoints()
    assert all(manager.verify_checkpoint(item["path"]) for item in listed)
    return [manager.load_checkpoint(item["path"])["b"]["number"] for item in listed]


def test_a_writer_killed_at_any_step_leaves_the_older_ones_and_nothing_half(tmp_path: Path) -> None:
    """C3 C5 C55 C64"""
    seen = set()
    for base, outcome in at_every_step(tmp_path, "kill"):
        left_something = bool(list(base.glob(".tmp-*")))
        manager = CheckpointManager(base, 2)
        assert not list(base.glob(".tmp-*"))
        found = loaded_numbers(manager)
        seen.add((outcome, left_something, tuple(found)))
        manager.create_checkpoint("next", {})
        assert len(manager.list_checkpoints()) == 2
    written, removing = ("killed", True, (1, 0)), ("killed", True, (2, 1))
    assert {written, removing, ("killed", False, (2, 1, 0)), ("undisturbed", False, (2, 1))} <= seen
    assert {found for _, _, found in seen} == {(1, 0), (2, 1, 0), (2, 1)}


def test_an_error_at_any_step_leaves_the_older_ones_and_nothing_half(tmp_path: Path) -> None:
    """C55 C57"""
    seen = set()
    for base, outcome in at_every_step(tmp_path, "fail"):
        found = loaded_numbers(CheckpointManager(base, 2)) if outcome == "went on" else None
        if outcome == "raised":
            assert not list(base.glob(".tmp-*"))
            assert loaded_numbers(CheckpointManager(base, 2)) == [1, 0]
        elif found is not None:
            # The array that could not be linked was written, or the oldest could not be removed.
            assert found in ([2, 1], [2, 1, 0])
        seen.add(outcome)
    assert seen == {"raised", "went on", "undisturbed"}


HALFWAY = """
import sys
import numpy as np
from rayzyme.storage.checkpoints import CheckpointManager
manager = CheckpointManager(sys.argv[1])
while True:
    manager.create_checkpoint("big", {"a": np.random.default_rng().random(2_000_000)}, verify=False)
"""


def test_a_writer_killed_amid_a_large_file_leaves_nothing_half(manager: CheckpointManager, path: Path) -> None:
    """C5 C55 C64"""
    base = path.parent
    with subprocess.Popen([sys.executable, "-c", HALFWAY, str(base)]) as writer:
        try:
            while not list(base.glob(".tmp-*/a/*.npy")):
                assert writer.poll() is None
        finally:
            writer.kill()
    reopened = CheckpointManager(base)
    assert not list(base.glob(".tmp-*"))
    assert all(reopened.verify_checkpoint(item["path"]) for item in reopened.list_checkpoints())
    assert reopened.latest() is not None


def test_a_writer_at_work_is_not_taken_for_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5"""
    synced = os.fsync
    opened = []

    def open_another(descriptor: int) -> None:
        opened.append(CheckpointManager(tmp_path))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", open_another)
    manager = CheckpointManager(tmp_path)
    assert manager.verify_checkpoint(manager.create_checkpoint("run", STATES))
    assert opened


def test_a_full_disk_is_said_and_cleaned_up(disk_of_20_mb: Path) -> None:
    """C55 C64"""
    manager = CheckpointManager(disk_of_20_mb / "checkpoints")
    large = np.arange(1_000_000.0)
    older = manager.create_checkpoint("run", {"a": large})
    with pytest.raises(InsufficientSpace, match="the disk is full: checkpoint run needs"):
        manager.create_checkpoint("run", {"a": large, "b": [large + 1, large + 2]})
    assert {item.name for item in Path(older).parent.iterdir()} <= {Path(older).name, ".checkpoints.lock"}
    assert same(manager.load_checkpoint(older), {"a": large})
    # There is room for what was linked, and for 8 MB more.
    newer = manager.create_checkpoint("run", {"a": large, "b": large + 1})
    assert manager.latest() == newer


CREATOR = """
import sys
import numpy as np
from rayzyme.storage.checkpoints import CheckpointManager
base, name, keep = sys.argv[1:]
manager = CheckpointManager(base, int(keep))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    arrays = {"same": np.arange(20_000), "new": np.arange(9_000) + number}
    path = manager.create_checkpoint(name, {"number": number, "arrays": arrays})
    print(path, flush=True)
"""


@pytest.mark.parametrize("keep", [100, 3])
def test_two_processes_that_create_at_once_lose_nothing(tmp_path: Path, keep: int) -> None:
    """C3 C57"""
    base = tmp_path / "checkpoints"
    creators = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(base), name, str(keep)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("x", "y")
    ]  # fmt: skip
    for creator in creators:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("go\n")
        creator.stdin.flush()
    outcomes = [creator.communicate(timeout=WAIT) for creator in creators]
    assert [creator.returncode for creator in creators] == [0, 0]
    assert [errors for _, errors in outcomes] == ["", ""]
    made = [path for output, _ in outcomes for path in output.split()]
    assert len(made) == 40
    manager = CheckpointManager(base, keep)
    listed = manager.list_checkpoints()
    assert {item["path"] for item in listed} <= set(made)
    assert len(listed) == min(keep, 40)
    assert len({item["timestamp"] for item in listed}) == len(listed)
    assert all(manager.verify_checkpoint(item["path"]) for item in listed)
    for name in ("x", "y"):
        mine = [manager.load_checkpoint(item["path"])["number"] for item in listed if item["checkpoint_id"] == name]
        assert mine == list(range(19, 19 - len(mine), -1))
