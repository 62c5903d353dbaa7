"""The two-level cache between processes, under kills, and over files that were tampered with."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.values import same

from rayzyme.errors import DamagedFile, DatabaseError
from rayzyme.monitoring import get_metrics_collector
from rayzyme.resources import TwoLevelCache
from rayzyme.resources.disk_level import DiskLevel, PlainDisk, digest_of

LARGE = np.arange(20_000)
SHARING = """
import sys
import numpy as np
from pathlib import Path
from rayzyme.resources import TwoLevelCache
cache = TwoLevelCache(cache_dir=sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Iterator[TwoLevelCache]:
    with TwoLevelCache(cache_dir=folder) as cache:
        yield cache


@contextlib.contextmanager
def process(folder: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `code` with an open `cache`, killed at the end of the block."""
    child = subprocess.Popen(
        [sys.executable, "-c", SHARING + code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], text: str = "") -> None:
    assert child.stdin is not None
    child.stdin.write(f"{text}\n")
    child.stdin.flush()


def rows(folder: Path, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        return connection.execute(statement, parameters).fetchall()


def value_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/??/*") if path.is_file()]


def test_what_one_process_sets_deletes_or_clears_another_sees_at_its_next_look(
    folder: Path, cache: TwoLevelCache
) -> None:
    """D70"""
    for key in ("a", "b", "c"):
        cache.set(key, "old")
        assert cache.get(key) == "old"
    code = """
for line in sys.stdin:
    exec(line)
    print(flush=True)
"""
    with process(folder, code) as other:
        for change, expected in [
            ("cache.set('a', 'new')", ["new", "old", "old"]),
            ("cache.delete('b')", ["new", None, "old"]),
            ("cache.clear()", [None, None, None]),
            ("cache.set('c', [cache.get('a'), 1])", [None, None, [None, 1]]),
        ]:
            tell(other, change)
            said(other)
            assert [cache.get(key) for key in ("a", "b", "c")] == expected


def is_waited_for(file: Path) -> bool:
    """Whether somebody waits for a lock on a file."""
    end = f":{file.stat().st_ino}"
    waiting = (line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line)
    return any(word.endswith(end) for words in waiting for word in words)


@pytest.mark.parametrize("change", ["set", "delete", "clear"])
@pytest.mark.parametrize("moment", ["once the disk has it", "when all is written"])
def test_who_is_overtaken_while_setting_does_not_keep_what_is_gone(
    folder: Path, cache: TwoLevelCache, monkeypatch: pytest.MonkeyPatch, change: str, moment: str
) -> None:
    """D70"""
    changes: list[Future[Any]] = []
    level = cache._disk
    # The innermost step that stores an entry, or the whole of it.
    target, step = (level._store, "set") if moment == "once the disk has it" else (level, "write")
    write = getattr(target, step)
    with TwoLevelCache(cache_dir=folder) as other, ThreadPoolExecutor(1) as pool:
        overtake = {
            "set": lambda: other.set("key", "two"), "delete": lambda: other.delete("key"), "clear": other.clear,
        }[change]  # fmt: skip

        def be_overtaken(*arguments: Any, **named: Any) -> Any:
            written = write(*arguments, **named)
            changes.append(pool.submit(overtake))
            while not (changes[0].done() or is_waited_for(folder / "stamps")):
                pass
            return written

        monkeypatch.setattr(target, step, be_overtaken)
        cache.set("key", "one")
        changes[0].result(20)
        with TwoLevelCache(cache_dir=folder) as third:
            assert [user.get("key") for user in (cache, other, third)] == ["two" if change == "set" else None] * 3


def test_a_writer_killed_before_it_tells_others_leaves_none_of_them_with_the_old_value(
    folder: Path, cache: TwoLevelCache
) -> None:
    """D70, C64"""
    code = """
import os, signal
write = cache._disk._store.set
def write_and_die(*arguments, **named):
    write(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
cache._disk._store.set = write_and_die
cache.set("key", "new")
"""
    cache.set("key", "old")
    assert cache.get("key") == "old"
    with process(folder, code) as writer:
        assert writer.wait(20) == -signal.SIGKILL
    assert [cache.get("key"), cache.get("key")] == ["new", "new"]
    cache.set("key", "newest")
    hits = cache.get_stats()["l1_memory"]["hits"]
    assert cache.get("key") == "newest"
    assert cache.get_stats()["l1_memory"]["hits"] == hits + 1


def test_an_entry_that_others_left_alone_is_read_from_memory(folder: Path, cache: TwoLevelCache) -> None:
    with TwoLevelCache(cache_dir=folder) as other:
        cache.set("mine", 1)
        other.set("theirs", 2)
        assert (cache.get("mine"), cache.get_stats()["l1_memory"]["hits"]) == (1, 1)


def test_threads_that_miss_together_compute_once(cache: TwoLevelCache) -> None:
    """D70"""
    together, computed = threading.Barrier(8), []

    def compute() -> Any:
        computed.append(1)
        return LARGE

    def ask(_: int) -> Any:
        together.wait(10)
        return cache.get_or_compute("key", compute)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(computed) == 1
    assert all(same(answer, LARGE) for answer in answers)


def test_processes_that_miss_together_compute_once(folder: Path, tmp_path: Path) -> None:
    """D70"""
    log = tmp_path / "computed"
    code = f"""
def compute():
    with open({str(log)!r}, "a") as file:
        file.write("x")
    return np.arange(20_000)

print("ready", flush=True)
sys.stdin.readline()
print(int(cache.get_or_compute("key", compute).sum()), flush=True)
"""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(folder, code)) for _ in range(3)]
        assert [said(child) for child in children] == ["ready"] * 3
        for child in children:
            tell(child)
        assert [said(child) for child in children] == [str(LARGE.sum())] * 3
    assert log.read_text() == "x"


def test_a_killed_computer_lets_the_next_one_compute(folder: Path, cache: TwoLevelCache) -> None:
    """D70"""
    code = """
def compute():
    print("computing", flush=True)
    sys.stdin.readline()

cache.get_or_compute("key", compute)
"""
    with process(folder, code) as other, ThreadPoolExecutor(1) as pool:
        assert said(other) == "computing"
        answer = pool.submit(cache.get_or_compute, "key", lambda: "mine")
        other.kill()
        assert answer.result(20) == "mine"
    assert list((folder / "computing").iterdir()) == []


def test_an_error_reaches_its_caller_and_the_next_one_computes(cache: TwoLevelCache) -> None:
    with pytest.raises(KeyError, match="gone"):
        cache.get_or_compute("key", lambda: {}["gone"])
    assert cache.get_or_compute("key", lambda: 1) == 1
    assert cache.get_or_compute("key", lambda: 2) == 1


def test_computing_may_ask_for_other_keys_and_not_for_its_own(cache: TwoLevelCache) -> None:
    assert cache.get_or_compute("a", lambda: cache.get_or_compute("b", lambda: 1) + 1) == 2
    with pytest.raises(RuntimeError, match="'c' needs the entry itself"):
        cache.get_or_compute("c", lambda: cache.get_or_compute("c", lambda: 1))
    assert cache.get_or_compute("c", lambda: 3) == 3


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_need_each_others_keys_are_told_so(folder: Path, threads: int) -> None:
    """D70"""
    all_compute = threading.Barrier(threads)

    def compute(number: int, caches: list[TwoLevelCache]) -> str:
        def need_the_next() -> Any:
            all_compute.wait(20)
            following = (number + 1) % threads
            return caches[following].get_or_compute(str(following), lambda: "computed alone")

        try:
            return str(caches[number].get_or_compute(str(number), need_the_next))
        except RuntimeError as error:
            return str(error)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        caches = [stack.enter_context(TwoLevelCache(cache_dir=folder)) for _ in range(threads)]
        answers = list(pool.map(compute, range(threads), [caches] * threads))
    refused = [answer for answer in answers if "another thread computes which waits for this one" in answer]
    assert len(refused) == 1
    assert [answer for answer in answers if answer not in refused] == ["computed alone"] * (threads - 1)


def test_threads_that_wait_for_one_key_only_are_left_to_wait(folder: Path, cache: TwoLevelCache) -> None:
    asked = threading.Barrier(2)

    def compute_a() -> int:
        asked.wait(20)
        while not is_waited_for(folder / "computing" / digest_of("a")):
            pass
        return int(cache.get_or_compute("b", lambda: 1)) + 1

    def ask_as_well() -> Any:
        asked.wait(20)
        return cache.get_or_compute("a", lambda: -1)

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(cache.get_or_compute, "a", compute_a), pool.submit(ask_as_well)]
        assert [answer.result(20) for answer in answers] == [2, 2]


def test_a_computed_entry_ends_with_its_time(folder: Path) -> None:
    now = [1000.0]
    with TwoLevelCache(cache_dir=folder, clock=lambda: now[0]) as cache:
        assert cache.get_or_compute("key", lambda: None, ttl=10) is None
        assert cache.get_or_compute("key", lambda: 1, ttl=10) is None
        now[0] += 10
        assert cache.get_or_compute("key", lambda: 2, ttl=10) == 2


@pytest.mark.parametrize("value", [LARGE, "small"], ids=["in a file", "in the index"])
@pytest.mark.parametrize("damage", ["one bit", "torn", "empty", "file gone", "nonsense"])
def test_a_torn_or_altered_entry_is_a_miss_and_counted(
    folder: Path, value: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """D70"""
    with TwoLevelCache(cache_dir=folder) as cache:
        cache.set("key", value)
        cache.set("other", 1)
    files = value_files(folder)
    content = files[0].read_bytes() if files else rows(folder, "SELECT value FROM Cache WHERE value IS NOT NULL")[0][0]
    middle = len(content) // 2
    altered = {
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "torn": content[:middle],
        "empty": b"",
        "file gone": b"",
        "nonsense": b"\0" * 500,
    }[damage]
    if files and damage == "file gone":
        files[0].unlink()
    elif files:
        files[0].write_bytes(altered)
    else:
        rows(folder, "UPDATE Cache SET value = ? WHERE key = ?", altered, digest_of("key"))

    metrics = get_metrics_collector()
    metrics.reset()
    with TwoLevelCache(cache_dir=folder) as cache:
        assert cache.get("key", "missing") == "missing"
        assert cache.get("key", "missing") == "missing"
        assert cache.get("other") == 1
        assert cache.get_stats()["l2_disk"]["corrupt"] == 1
        assert cache.get_stats()["l2_disk"]["entries"] == 1
        cache.set("key", value)
    assert metrics.get_counter("rayzyme_cache_corrupt_total") == 1
    assert metrics.get_counter("rayzyme_cache_misses_total") == 2
    assert "removed a damaged entry" in caplog.text
    with TwoLevelCache(cache_dir=folder) as cache:
        assert same(cache.get("key"), value)


def test_an_entry_moved_to_another_key_is_a_miss(folder: Path) -> None:
    with TwoLevelCache(cache_dir=folder) as cache:
        cache.set("mine", 1)
    rows(folder, "UPDATE Cache SET key = ?", digest_of("yours"))
    with TwoLevelCache(cache_dir=folder) as cache:
        assert cache.get("yours") is None
        assert cache.get_stats()["l2_disk"]["corrupt"] == 1


@pytest.mark.parametrize("place", ["in the index", "in a file"])
def test_a_planted_pickle_is_never_read(folder: Path, tmp_path: Path, place: str) -> None:
    """C4"""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    with TwoLevelCache(cache_dir=folder) as cache:
        cache.set("key", LARGE)
        cache.set("hostile key", 1)
    hostile = pickle.dumps(Hostile())
    (file,) = value_files(folder)
    if place == "in a file":
        file.write_bytes(hostile)
        rows(folder, "UPDATE Cache SET mode = 4 WHERE filename IS NOT NULL")
    else:
        rows(folder, "UPDATE Cache SET mode = 4, filename = NULL, value = ? WHERE filename IS NOT NULL", hostile)
    rows(folder, "UPDATE Cache SET key = ?, raw = 0 WHERE key = ?", hostile, digest_of("hostile key"))

    with TwoLevelCache(cache_dir=folder) as cache:
        assert cache.get("key") is None
        assert cache.get("hostile key") is None
        assert cache.get_stats()["l2_disk"]["corrupt"] == 1
        cache.cleanup_expired()
        cache.clear()
    assert not (tmp_path / "ran").exists()


def test_neither_a_pickled_key_nor_a_value_that_would_be_pickled_passes(folder: Path) -> None:
    """C4"""
    disk = PlainDisk(str(folder))
    with pytest.raises(DamagedFile, match="never read"):
        disk.get(pickle.dumps(1), raw=False)
    with pytest.raises(TypeError, match="must be text"):
        disk.put(("a", "tuple"))
    with pytest.raises(TypeError, match="must be bytes"):
        disk.store(["a list"], read=False)


@pytest.mark.parametrize("damage", ["before it is opened", "while it is open"])
def test_over_a_damaged_index_the_cache_begins_anew(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil() -> None:
        for path in folder.glob("cache.db*"):
            path.write_bytes(b"spoilt!!" * (path.stat().st_size // 8))

    with TwoLevelCache(cache_dir=folder) as cache:
        cache.set("key", LARGE)
    reader = TwoLevelCache(cache_dir=folder) if damage == "while it is open" else None
    spoil()
    with reader or TwoLevelCache(cache_dir=folder) as cache:
        assert cache.get("key") is None
        assert value_files(folder) == []
        assert cache.set("key", "new")
        assert cache.get("key") == "new"
    assert "begins anew" in caplog.text
    with TwoLevelCache(cache_dir=folder) as cache:
        assert cache.get("key") == "new"


def test_killed_writers_leave_whole_entries_and_nothing_else(folder: Path) -> None:
    """C5, C64"""
    code = """
number = 0
while True:
    for key in range(6):
        cache.set(str(key), np.full(20_000, key))
        number += 1
        if number == 6:
            print("writing", flush=True)
"""
    for seed in range(4):
        with process(folder, code) as writer:
            assert said(writer) == "writing"
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(random.Random(seed).uniform(0.0, 0.08))
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(10)
        with TwoLevelCache(cache_dir=folder) as cache:
            assert [bool((cache.get(str(key)) == key).all()) for key in range(6)] == [True] * 6
            known = {name for (name,) in rows(folder, "SELECT filename FROM Cache")}
            assert {path.relative_to(folder).as_posix() for path in value_files(folder)} == known


def test_a_file_whose_row_is_still_to_come_is_no_leftover(folder: Path) -> None:
    """C5"""
    content = bytes(100_000)
    with contextlib.closing(DiskLevel(folder, 2**30)) as level, contextlib.closing(DiskLevel(folder, 2**30)) as other:
        with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(1) as pool:
                writing = pool.submit(level.write, "ab" * 32, content, None)
                while not any(path.suffix == ".val" for path in value_files(folder)):
                    assert not writing.done()
                other.remove_leftovers()
                blocker.execute("COMMIT")
                assert writing.result(20)
        assert other.read("ab" * 32) == content


def test_leftovers_of_killed_processes_are_removed_and_files_of_others_stay(folder: Path) -> None:
    """C5"""
    with TwoLevelCache(cache_dir=folder) as cache:
        cache.set("key", LARGE)
    (kept,) = value_files(folder)
    left = [kept.parent / f".tmp-{'0' * 32}", kept.parent / f"{'0' * 28}.val", folder / "computing" / "0"]
    others = [kept.parent / "notes.txt", folder / "esm" / "data", folder / "ab" / "cd" / "ef.val"]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with TwoLevelCache(cache_dir=folder) as cache:
        assert [path.exists() for path in left] == [False] * 3
        cache.clear()
    assert [path.exists() for path in others] == [True] * 3


@pytest.fixture
def disk_of_2_mb(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False).returncode
    ):
        pytest.skip("cannot mount tmpfs: not root")
    yield folder
    gc.collect()
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_the_disk_level_only(disk_of_2_mb: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C64"""
    large = np.zeros(3 * 2**20, np.uint8)
    with TwoLevelCache(cache_dir=disk_of_2_mb) as cache:
        assert cache.set("small", LARGE)
        assert cache.set("small", large) is False
        assert same(cache.get("small"), large)
        assert cache.get_stats()["l2_disk"]["failures"] == 1
        assert value_files(disk_of_2_mb) == []
        (disk_of_2_mb / "filler").write_bytes(bytes(disk_free(disk_of_2_mb)))
        assert cache.set("other", "x" * 30_000) is False
        assert cache.get_or_compute("computed", lambda: 5) == 5
        assert cache.get("computed") == 5
        cache.clear()
    assert "going on without it" in caplog.text


def disk_free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def test_a_disk_too_full_to_open_a_cache_is_named(disk_of_2_mb: Path) -> None:
    (disk_of_2_mb / "filler").write_bytes(bytes(disk_free(disk_of_2_mb) - 50_000))
    with pytest.raises(DatabaseError, match="free its disk"):
        TwoLevelCache(cache_dir=disk_of_2_mb)
