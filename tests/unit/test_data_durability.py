"""The data handler under a size limit, kills, damage, a full disk and several writers."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.killing import survives_step
from tests.support.values import same

from rayzyme.errors import CacheEntryLost, CacheTooSmall, DatabaseError, InsufficientSpace
from rayzyme.storage import DataHandler, data_index
from rayzyme.storage.data_index import Entry
from rayzyme.storage.eviction import candidates, unneeded

KILOBYTE = 1e-6  # in GB


class Clock:
    """Time that passes by a second with every look."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def positions(kilobytes: float, seed: int = 0) -> dict[str, Any]:
    return {"positions": np.random.default_rng(seed).integers(0, 255, (int(kilobytes * 1000 / 3), 3)).astype(np.uint8)}


def names(handler: DataHandler) -> list[str]:
    return sorted(entry["data_id"] for entry in handler.list_entries())


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "entries").rglob("*") if path.is_file())


def assert_sizes_agree(handler: DataHandler) -> None:
    stats = handler.get_cache_stats()
    assert stats["total_size_gb"] * 1e9 == pytest.approx(bytes_on_disk(handler.cache_dir), rel=0.01)


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[DataHandler]:
    with DataHandler(tmp_path / "data", 50 * KILOBYTE, enable_compression=False, clock=Clock()) as opened:
        yield opened


def test_the_longest_unused_goes_first(handler: DataHandler) -> None:
    """C30"""
    keys = {name: handler.store_structure(positions(15), name) for name in "abc"}
    handler.load_data(keys["a"])
    handler.store_structure(positions(15), "d")
    assert names(handler) == ["a", "c", "d"]
    assert handler.get_cache_stats()["evictions"] == 1
    assert_sizes_agree(handler)


def test_the_new_entry_stays_though_all_others_go(handler: DataHandler) -> None:
    """C30"""
    for name in "abc":
        handler.store_structure(positions(15), name)
    handler.store_structure(positions(45), "d")
    assert names(handler) == ["d"]


def test_an_entry_larger_than_the_store_evicts_nothing(handler: DataHandler) -> None:
    """C30"""
    handler.store_structure(positions(15), "a")
    with pytest.raises(CacheTooSmall, match="'large' takes more than the store's whole limit of 50,000 bytes"):
        handler.store_structure(positions(60), "large")
    assert names(handler) == ["a"]
    assert_sizes_agree(handler)


def test_replacing_an_entry_counts_it_once(handler: DataHandler) -> None:
    """C23, C30"""
    for seed in range(6):
        handler.store_structure(positions(30, seed), "a")
    assert names(handler) == ["a"]
    assert handler.get_cache_stats()["evictions"] == 0
    assert_sizes_agree(handler)


def test_what_is_being_read_stays_until_its_arrays_are_gone(handler: DataHandler) -> None:
    """C30"""
    read = handler.load_data(handler.store_structure(positions(15), "read"))
    for name in "abc":
        handler.store_structure(positions(15), name)
    assert names(handler) == ["b", "c", "read"]
    del read
    gc.collect()
    handler.store_structure(positions(15), "d")
    handler.store_structure(positions(15), "e")
    assert names(handler) == ["c", "d", "e"]


def test_frames_that_are_streamed_stay(handler: DataHandler) -> None:
    """C30"""
    frames = np.zeros((100, 50, 3), np.uint8)
    stream = handler.iter_frames(handler.store_trajectory({"frames": frames}, "md"), 10)
    next(stream)
    for name in "abcd":
        handler.store_structure(positions(15), name)
    assert "md" in names(handler)
    assert len(np.concatenate(list(stream))) == 90


def test_another_process_that_reads_keeps_an_entry(handler: DataHandler) -> None:
    """C3, C30"""
    script = """
import sys
from rayzyme.storage import DataHandler
with DataHandler(sys.argv[1], enable_compression=False) as handler:
    data = handler.load_data(sys.argv[2])
print("reading", flush=True)
sys.stdin.read()
"""
    key = handler.store_structure(positions(15), "read")
    command = [sys.executable, "-c", script, str(handler.cache_dir), key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        for name in "abcd":
            handler.store_structure(positions(15), name)
        assert "read" in names(handler)
        reader.kill()
    handler.store_structure(positions(45), "large")
    assert names(handler) == ["large"]


def test_a_pinned_entry_stays_until_its_lease_ends(handler: DataHandler) -> None:
    """C37"""
    key = handler.store_structure(positions(15), "input")
    handler.pin(key, "job_1", ttl=1000)
    handler.pin(key, "job_2", ttl=1000)
    for name in "abc":
        handler.store_structure(positions(15), name)
    assert handler.unpin(key, "job_1") is True
    assert handler.unpin(key, "job_1") is False
    handler.store_structure(positions(15), "d")
    assert "input" in names(handler)
    assert [entry["pinned"] for entry in handler.list_entries() if entry["data_id"] == "input"] == [True]
    assert isinstance(handler._clock, Clock)
    handler._clock.now += 2000
    handler.store_structure(positions(15), "e")
    handler.store_structure(positions(15), "f")
    assert "input" not in names(handler)
    with pytest.raises(KeyError, match="no entry has the key"):
        handler.pin(key, "job_3")


def test_intermediates_that_nobody_needs_go_first(handler: DataHandler) -> None:
    """C37"""
    handler.store_structure(positions(10), "old")
    needed = handler.store_structure(positions(10), "needed", intermediate=True)
    handler.pin(needed, "job_1", ttl=10_000)
    handler.store_structure(positions(10), "over", intermediate=True)
    handler.store_structure(positions(10), "new")
    handler.store_structure(positions(15), "newest")
    assert names(handler) == ["needed", "new", "newest", "old"]


def test_a_cleanup_says_what_would_go_and_why(handler: DataHandler) -> None:
    """C35, C37"""
    assert isinstance(handler._clock, Clock)
    handler.store_structure(positions(5), "old")
    handler._clock.now += 10 * 86_400
    handler.store_structure(positions(5), "new")
    handler.store_structure(positions(5), "over", intermediate=True)
    would = handler.cleanup(max_age_days=7, dry_run=True)
    assert [(row["data_id"], row["reason"]) for row in would] == [
        ("over", "an intermediate that nobody needs any more"), ("old", "not used for 10.0 days"),
    ]  # fmt: skip
    assert names(handler) == ["new", "old", "over"]
    assert [row["data_id"] for row in handler.cleanup(max_age_days=7)] == ["over", "old"]
    assert names(handler) == ["new"]


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.booleans()), max_size=8), st.none() | st.floats(0, 100))
def test_no_plan_takes_what_is_pinned(entries: list[tuple[float, bool, bool]], days: float | None) -> None:
    """C30, C37"""
    made = [Entry(str(n), "structure", "x", {}, 1, 0, -used, own, held) for n, (used, own, held) in enumerate(entries)]
    for plan in (list(candidates(made)), unneeded(made, 0, days)):
        assert not any(departure.entry.pinned for departure in plan)
        first_kept = [departure.entry.intermediate for departure in plan]
        assert first_kept == sorted(first_kept, reverse=True)


def test_a_file_that_cannot_be_removed_is_skipped(
    handler: DataHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """C30"""
    stuck = handler.store_structure(positions(15), "stuck")
    for name in "ab":
        handler.store_structure(positions(15), name)
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == stuck:
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with caplog.at_level(logging.WARNING, "rayzyme"):
        handler.store_structure(positions(15), "c")
    assert f"entry {stuck} cannot be removed" in caplog.text
    assert names(handler) == ["b", "c", "stuck"]
    assert_sizes_agree(handler)


def test_an_empty_store_uses_nothing(handler: DataHandler) -> None:
    """C31"""
    stats = handler.get_cache_stats()
    assert f"{stats['usage_percent']}%" == "0.0%"
    assert stats == {
        "total_size_gb": 0.0, "max_size_gb": 5e-5, "num_entries": 0, "usage_percent": 0.0, "hits": 0, "misses": 0,
        "evictions": 0,
    }  # fmt: skip


def test_hits_and_misses_are_counted(handler: DataHandler) -> None:
    """C31"""
    key = handler.store_structure(positions(25), "a")
    handler.load_data(key)
    with pytest.raises(KeyError):
        handler.load_data("0" * 64)
    stats = handler.get_cache_stats()
    assert (stats["hits"], stats["misses"]) == (1, 1)
    assert stats["usage_percent"] == pytest.approx(50, abs=5)


def test_a_writer_killed_at_any_step_leaves_the_old_entry_or_the_new(tmp_path: Path) -> None:
    """C5, C31, C64"""
    folder = tmp_path / "data"
    old, new, other = positions(15, 1), positions(15, 2), positions(15, 3)
    with DataHandler(folder, 40 * KILOBYTE, enable_compression=False) as handler:
        key = handler.store_structure(old, "replaced")
        evicted = handler.store_structure(other, "evicted")
        handler.load_data(key)

    def replace_and_evict() -> None:
        with DataHandler(folder, 40 * KILOBYTE, enable_compression=False) as writer:
            writer.store_structure(new, "replaced")
            writer.store_structure(positions(15, 4), "added")

    step = 0
    while not survives_step(replace_and_evict, step):
        step += 1
        with DataHandler(folder, 40 * KILOBYTE, enable_compression=False) as handler:
            found = handler.load_data(key)["positions"]
            assert same(np.asarray(found), old["positions"]) or same(np.asarray(found), new["positions"])
            assert handler.verify() == []
            assert_sizes_agree(handler)
            assert not list(folder.rglob(".tmp-*"))
            handler.store_structure(old, "replaced")
            handler.store_structure(other, "evicted")
    assert step > 15
    with DataHandler(folder, 40 * KILOBYTE, enable_compression=False) as handler:
        assert names(handler) == ["added", "replaced"]
        assert evicted not in [entry["key"] for entry in handler.list_entries()]


@pytest.mark.parametrize("harm", ["deleted", "damaged", "emptied"])
def test_an_index_that_is_lost_is_made_again_from_the_entries(tmp_path: Path, handler: DataHandler, harm: str) -> None:
    """C32"""
    key = handler.store_structure(positions(15), "a", {"resolution": "high"})
    row = handler.list_entries()[0]
    handler.close()
    index = handler.cache_dir / "index.sqlite"
    if harm == "deleted":
        index.unlink()
    else:
        index.write_bytes(b"" if harm == "emptied" else b"not a database" * 100)
        for rest in ("-wal", "-shm"):
            index.with_name(index.name + rest).unlink(missing_ok=True)
    with DataHandler(handler.cache_dir, enable_compression=False) as again:
        found = again.list_entries()[0]
        assert {name: found[name] for name in ("key", "kind", "data_id", "metadata", "size")} == {
            name: row[name] for name in ("key", "kind", "data_id", "metadata", "size")
        }
        assert same(np.asarray(again.load_data(key)["positions"]), positions(15)["positions"])


def test_an_index_deleted_under_an_open_handler_is_made_again(handler: DataHandler) -> None:
    """C32"""
    key = handler.store_structure(positions(15), "a")
    for path in handler.cache_dir.glob("index.sqlite*"):
        path.unlink()
    assert same(np.asarray(handler.load_data(key)["positions"]), positions(15)["positions"])
    assert names(handler) == ["a"]


def test_a_damaged_entry_does_not_stop_the_rebuilding(handler: DataHandler) -> None:
    """C32"""
    keys = [handler.store_structure(positions(5), name) for name in "ab"]
    handler.close()
    (handler.cache_dir / "index.sqlite").unlink()
    torn = handler.cache_dir / "entries" / keys[0][:2] / keys[0]
    torn.write_bytes(torn.read_bytes()[:-10])
    with DataHandler(handler.cache_dir) as again:
        assert names(again) == ["b"]
        assert len(list((handler.cache_dir / "bad").iterdir())) == 1


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    """C21, C31"""
    script = """
import sys
import numpy as np
from rayzyme.storage import DataHandler
folder, writer = sys.argv[1], int(sys.argv[2])
with DataHandler(folder, 200e-6, enable_compression=False) as handler:
    for number in range(20):
        mine = np.full((3000, 3), writer, np.uint8)
        key = handler.store_structure({"positions": mine}, f"shared-{number % 5}")
        handler.store_structure({"positions": mine}, f"{writer}-{number}")
        try:
            found = handler.load_data(key)["positions"]
        except KeyError:
            continue  # evicted by the other one
        assert len(np.unique(found)) == 1, "a mixture of two writers"
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with DataHandler(tmp_path, 200e-6) as handler:
        assert handler.verify() == []
        assert_sizes_agree(handler)
        assert bytes_on_disk(tmp_path) <= 200_000


def test_several_threads_may_share_a_handler(handler: DataHandler) -> None:
    """C3"""
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                data = positions(3, number)
                found = handler.load_data(handler.store_structure(data, str(number)))
                assert same(np.asarray(found["positions"]), data["positions"])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(names(handler)) == 8


def test_a_full_disk_is_said_and_everything_older_stays(disk_of_20_mb: Path) -> None:
    """C64"""
    with DataHandler(disk_of_20_mb / "data", enable_compression=False) as handler:
        key = handler.store_structure(positions(12_000), "first")
        with pytest.raises(InsufficientSpace, match="the disk is full: storing 'second'"):
            handler.store_structure(positions(12_000), "second")
        assert names(handler) == ["first"]
        assert handler.verify() == []
        assert_sizes_agree(handler)
        handler.delete(key)
        handler.store_structure(positions(12_000), "second")
        assert names(handler) == ["second"]


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """C3"""
    before = set(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    for close in (True, False):
        handler = DataHandler(tmp_path, enable_compression=False)
        data = handler.load_data(handler.store_structure(positions(5), "a"))
        if close:
            handler.close()
        del handler, data
        gc.collect()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before  # noqa: PTH208


def test_a_handler_goes_on_after_a_fork(handler: DataHandler) -> None:
    """C3"""
    key = handler.store_structure(positions(5), "a")
    assert survives_step(lambda: handler.load_data(key), 10**9)
    assert same(np.asarray(handler.load_data(key)["positions"]), positions(5)["positions"])


def test_a_trajectory_is_streamed_in_memory_that_does_not_grow_with_it(tmp_path: Path) -> None:
    """C27, C28"""
    script = """
import resource, sys
import numpy as np
from rayzyme.storage import DataHandler
block = np.random.default_rng(0).normal(size=(50, 3_000, 3)).astype(np.float32)
with DataHandler(sys.argv[1]) as handler:
    for blocks in (20, 120):
        key = handler.store_trajectory({"frames": (block + number for number in range(blocks))}, "md")
        assert sum(len(frames) for frames in handler.iter_frames(key, 50)) == 50 * blocks
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    # The long one is 216 MB, and 180 MB longer.
    assert long - short < 60


def test_an_intermediate_may_be_pinned_from_the_first_moment(handler: DataHandler) -> None:
    """C37"""
    handler.store_structure(positions(15), "needed", intermediate=True, pinned_by="job_1")
    for name in "abcd":
        handler.store_structure(positions(15), name)
    assert "needed" in names(handler)
    assert handler.cleanup() == []


def test_a_reader_that_finds_damage_leaves_what_was_stored_meanwhile(handler: DataHandler) -> None:
    """C26"""
    frames = np.random.default_rng(0).integers(0, 255, (1000, 4, 3)).astype(np.uint8)
    key = handler.store_trajectory({"frames": frames}, "md")
    file = handler.cache_dir / "entries" / key[:2] / key
    content = bytearray(file.read_bytes())
    content[11_000] ^= 1
    file.write_bytes(content)
    stream = handler.iter_frames(key, 64)
    next(stream)
    handler.store_trajectory({"frames": frames}, "md")
    with pytest.raises(CacheEntryLost, match="is damaged"):
        list(stream)
    assert same(np.asarray(handler.load_data(key)["frames"]), frames)


def test_an_index_that_is_damaged_while_open_is_made_again(handler: DataHandler) -> None:
    """C32"""
    key = handler.store_structure(positions(5), "a")
    index = handler.cache_dir / "index.sqlite"
    with closing(sqlite3.connect(index)) as connection:
        # Else SQLite would heal itself from its journal.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.write_bytes(b"no database at all" * 400)
    with DataHandler(handler.cache_dir, enable_compression=False) as other:
        for store in (handler, other):
            assert same(np.asarray(store.load_data(key)["positions"]), positions(5)["positions"])
            assert names(store) == ["a"]
    assert index.with_name("index.sqlite.damaged").exists()


def test_an_index_that_is_only_locked_is_not_thrown_away(handler: DataHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """C32, C37"""
    monkeypatch.setattr(data_index, "_BUSY_TIMEOUT_S", 0.1)
    handler.pin(handler.store_structure(positions(5), "a"), "job_1")
    with closing(sqlite3.connect(handler.cache_dir / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with DataHandler(handler.cache_dir) as second:
            assert names(second) == ["a"]
            with pytest.raises(DatabaseError, match="cannot be used now: database is locked; try again"):
                second.store_structure(positions(5), "b")
        other.execute("ROLLBACK")
    assert handler.list_entries()[0]["pinned"] is True


def test_an_index_deleted_while_threads_work_stops_nobody(handler: DataHandler) -> None:
    """C3, C32"""
    stop = threading.Event()

    def store() -> None:
        while not stop.is_set():
            handler.store_structure(positions(3), "a")

    def look() -> None:
        while not stop.is_set():
            handler.get_cache_stats()

    threads = [threading.Thread(target=work, daemon=True) for work in (store, look)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        for path in handler.cache_dir.glob("index.sqlite*"):
            path.unlink(missing_ok=True)
        assert handler.list_entries() is not None
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


def test_a_full_disk_keeps_nobody_from_reading_and_freeing(disk_of_20_mb: Path) -> None:
    """C35, C64"""
    with DataHandler(disk_of_20_mb / "data", enable_compression=False) as handler:
        key = handler.store_structure(positions(5_000), "a")
        other = handler.store_structure(positions(5_000), "b")
        free = shutil.disk_usage(disk_of_20_mb).free
        (disk_of_20_mb / "filler").write_bytes(bytes(free))
        assert same(np.asarray(handler.load_data(key)["positions"]), positions(5_000)["positions"])
        gc.collect()
        assert handler.delete(key) is True
        assert names(handler) == ["b"]
        handler.pin(other, "job_1")
        assert handler.clear_cache() == 1


def test_a_child_that_was_forked_while_threads_worked_goes_on(handler: DataHandler) -> None:
    """C3"""
    key = handler.store_structure(positions(5), "a")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            handler.get_cache_stats()

    threads = [threading.Thread(target=look, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert survives_step(lambda: handler.load_data(key), 10**9)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_only_the_newest_damaged_files_are_kept(handler: DataHandler) -> None:
    """C35"""
    for number in range(25):
        key = handler.store_structure(positions(1, number), str(number))
        file = handler.cache_dir / "entries" / key[:2] / key
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CacheEntryLost):
            handler.load_data(key)
    assert len(list((handler.cache_dir / "bad").iterdir())) == 20
