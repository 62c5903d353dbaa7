"""The two-level cache: what comes back, what goes first, and nobody changes what others get."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tests.support.values import same, values

from rayzyme.errors import ValidationError
from rayzyme.monitoring import get_metrics_collector
from rayzyme.resources import TwoLevelCache

MB = 2**20
KB_100 = np.zeros(100_000, np.uint8)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., TwoLevelCache]]:
    """Opens caches on one folder."""
    caches: list[TwoLevelCache] = []

    def open_cache(**arguments: Any) -> TwoLevelCache:
        caches.append(TwoLevelCache(**{"cache_dir": tmp_path / "cache", "clock": clock} | arguments))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


@pytest.fixture
def cache(opened: Callable[..., TwoLevelCache]) -> TwoLevelCache:
    return opened()


def level_hits(cache: TwoLevelCache) -> tuple[int, int]:
    stats = cache.get_stats()
    return int(stats["l1_memory"]["hits"]), int(stats["l2_disk"]["hits"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values())
def test_a_value_comes_back_as_it_went_in_from_either_level(opened: Callable[..., TwoLevelCache], value: Any) -> None:
    """D70, C66"""
    with opened() as first:
        first.set("key", value)
        assert same(first.get("key"), value)
        assert level_hits(first) == (1, 0)
    with opened() as second:
        assert same(second.get("key"), value)
        assert same(second.get("key"), value)
        assert level_hits(second) == (1, 1)


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}])
def test_a_falsy_value_is_a_hit(opened: Callable[..., TwoLevelCache], value: Any) -> None:
    """D70"""
    missing = object()
    opened().set("key", value)
    other = opened()
    assert same(other.get("key", missing), value)
    assert same(other.get("key", missing), value)
    assert other.get("unknown", missing) is missing
    assert other.get("unknown") is None


def test_the_longest_unused_leaves_memory_first_and_stays_on_disk(opened: Callable[..., TwoLevelCache]) -> None:
    """D70"""
    cache = opened(memory_size_mb=0.25)
    cache.set("a", KB_100)
    cache.set("b", KB_100)
    cache.get("a")
    cache.set("c", KB_100)
    before = level_hits(cache)
    cache.get("a")
    cache.get("c")
    assert level_hits(cache) == (before[0] + 2, before[1])
    assert same(cache.get("b"), KB_100)
    assert level_hits(cache) == (before[0] + 2, before[1] + 1)
    stats = cache.get_stats()["l1_memory"]
    assert stats["evictions"] == 2
    assert (stats["entries"], stats["size_mb"] <= 0.25) == (2, True)


def test_a_value_larger_than_memory_is_on_disk_only(opened: Callable[..., TwoLevelCache]) -> None:
    """D70"""
    cache = opened(memory_size_mb=0.05)
    cache.set("small", 1)
    assert cache.set("large", KB_100)
    assert same(cache.get("large"), KB_100)
    assert same(cache.get("large"), KB_100)
    assert level_hits(cache) == (0, 2)
    cache.get("small")
    assert level_hits(cache) == (1, 2)


def test_a_value_larger_than_the_disk_level_is_not_kept_and_that_is_said(
    opened: Callable[..., TwoLevelCache], caplog: pytest.LogCaptureFixture
) -> None:
    """D70"""
    cache = opened(disk_size_mb=0.05)
    cache.set("key", "old")
    with caplog.at_level(logging.WARNING):
        assert cache.set("key", KB_100) is False
    assert "raise disk_size_mb" in caplog.text
    assert cache.get("key", "gone") == "gone"
    assert opened(disk_size_mb=0.05).get("key", "gone") == "gone"
    assert same(cache.get_or_compute("key", lambda: KB_100), KB_100)


def test_the_longest_unused_leaves_the_disk_first(opened: Callable[..., TwoLevelCache]) -> None:
    cache = opened(memory_size_mb=0.01, disk_size_mb=0.5)
    for key in ("a", "b", "c", "d"):
        cache.set(key, KB_100)
    cache.get("a")
    cache.set("e", KB_100)
    kept = [key for key in ("a", "b", "c", "d", "e") if cache.get(key) is not None]
    assert kept == ["a", "c", "d", "e"]
    stats = cache.get_stats()["l2_disk"]
    assert (stats["evictions"], stats["entries"], stats["size_mb"] <= 0.5) == (1, 4, True)


@pytest.mark.parametrize("seen_by", ["the one that evicts", "another process, once it is closed"])
def test_what_memory_answers_counts_as_used_on_disk(opened: Callable[..., TwoLevelCache], seen_by: str) -> None:
    """D70"""
    cache = opened(disk_size_mb=0.5)
    for key in ("hot", "b", "c", "d"):
        cache.set(key, KB_100)
    cache.get("hot")
    assert level_hits(cache) == (1, 0)
    if seen_by != "the one that evicts":
        cache.close()
        cache = opened(disk_size_mb=0.5)
    cache.set("e", KB_100)
    cache.set("f", KB_100)
    again = opened(disk_size_mb=0.5)
    assert [key for key in ("hot", "b", "c", "d", "e", "f") if again.get(key) is not None] == ["hot", "d", "e", "f"]


def test_what_memory_answers_is_told_to_other_processes_once_a_minute(
    opened: Callable[..., TwoLevelCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """D70"""
    start = time.time()
    cache, other = opened(disk_size_mb=0.5), opened(disk_size_mb=0.5)

    def evicted(later: float) -> list[str]:
        """What `other` evicts for one more, after `cache` used the oldest at that time."""
        for key in ("a", "b", "c", "d"):
            cache.set(key, KB_100)
        monkeypatch.setattr(time, "time", lambda: start + later)
        cache.get("a")
        monkeypatch.undo()
        other.set("e", KB_100)
        gone = [key for key in ("a", "b", "c", "d") if opened().get(key) is None]
        other.clear()
        return gone

    assert evicted(30) == ["a"]
    assert evicted(61) == ["b"]


def test_an_entry_ends_with_its_time_and_a_promoted_one_keeps_what_is_left_of_it(
    opened: Callable[..., TwoLevelCache], clock: Clock
) -> None:
    """D70"""
    cache = opened()
    cache.set("short", 1, ttl=10)
    cache.set("long", 2)
    later = opened()
    clock.now += 6
    assert (later.get("short"), later.get("short")) == (1, 1)
    clock.now += 3.9
    assert level_hits(later) == (1, 1)
    assert (later.get("short"), cache.get("short")) == (1, 1)
    clock.now += 0.1
    assert (later.get("short"), cache.get("short"), cache.get("long")) == (None, None, 2)
    cache.set("short", 3, ttl=10)
    assert later.get("short") == 3


def test_expired_entries_are_cleaned_up_in_both_levels(opened: Callable[..., TwoLevelCache], clock: Clock) -> None:
    """D70"""
    cache = opened()
    for number in range(3):
        cache.set(f"short {number}", KB_100, ttl=10)
    cache.set("long", 1, ttl=30)
    cache.set("endless", 2)
    assert cache.cleanup_expired() == 0
    clock.now += 20
    assert cache.cleanup_expired() == 3
    stats = cache.get_stats()
    assert (stats["l1_memory"]["entries"], stats["l2_disk"]["entries"]) == (2, 2)
    assert stats["l2_disk"]["size_mb"] < 0.1
    assert (cache.get("long"), cache.get("endless")) == (1, 2)


def test_a_key_is_deleted_and_all_are_cleared_in_both_levels(opened: Callable[..., TwoLevelCache]) -> None:
    """D70"""
    cache = opened()
    for key in ("a", "b"):
        cache.set(key, 1)
    assert (cache.delete("a"), cache.delete("a"), cache.get("a")) == (True, False, None)
    cache.clear()
    assert cache.get("b") is None
    assert opened().get("b") is None


def test_arrays_come_back_read_only_and_apart_from_what_was_given(cache: TwoLevelCache) -> None:
    given_array = np.arange(4)
    view = np.arange(8)[2:]
    view.flags.writeable = False
    cache.set("key", [given_array, view])
    given_array[0] = 99
    assert view.base is not None
    view.base[2] = 99
    for _ in range(2):
        first, second = cache.get("key")
        assert (first[0], second[0]) == (0, 2)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1


def test_arrays_from_disk_are_read_only_in_any_memory_order(opened: Callable[..., TwoLevelCache]) -> None:
    opened().set("key", np.asfortranarray(np.ones((3, 4))))
    array = opened().get("key")
    assert array.flags.f_contiguous
    assert not array.flags.writeable


def test_an_array_that_nobody_can_change_is_not_copied(cache: TwoLevelCache) -> None:
    array = np.frombuffer(bytes(32), np.int64)
    cache.set("key", array)
    assert np.shares_memory(cache.get("key"), array)


@pytest.mark.parametrize("level", ["memory", "disk"])
@pytest.mark.parametrize("given", ["plain", "compressible", "in columns", "made read-only by its giver"])
def test_nobody_can_make_an_array_writeable_or_change_what_others_see_in_it(
    opened: Callable[..., TwoLevelCache], given: str, level: str
) -> None:
    array = np.zeros((30, 40)) if given == "compressible" else np.random.default_rng(1).random((30, 40))
    if given == "in columns":
        array = np.asfortranarray(array)
    array.flags.writeable = given != "made read-only by its giver"
    expected = array.copy()
    cache = opened()
    cache.set("key", array)
    array.flags.writeable = True
    array[0, 0] = 99
    asked = cache if level == "memory" else opened()
    for _ in range(2):
        found = asked.get("key")
        assert same(found, expected)
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
            found.flags.writeable = True
        found.dtype = np.int64
    computed = asked.get_or_compute("computed", lambda: expected)
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        computed.flags.writeable = True


def test_what_one_caller_does_to_containers_and_tensors_no_other_sees(opened: Callable[..., TwoLevelCache]) -> None:
    value = {"list": [1, [2]], "set": {3}, "tuple": ([4],), "tensor": torch.arange(3)}
    cache = opened()
    cache.set("key", value)
    other = opened()
    for asked in (cache, cache, other, other):
        found = asked.get("key")
        assert same({**found, "tensor": found["tensor"].numpy()}, {**EXPECTED, "tensor": np.arange(3)})
        for changed in (found, value):
            changed["list"][1].append(5)
            changed["set"].add(6)
            changed["tuple"][0].append(7)
            changed["tensor"][0] = 8
            changed.pop("new", changed.update(new=9))


EXPECTED = {"list": [1, [2]], "set": {3}, "tuple": ([4],), "tensor": None}


def test_what_cannot_be_stored_is_refused_by_its_place_and_what_was_there_stays(cache: TwoLevelCache) -> None:
    """C4"""
    cache.set("key", "old")
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\]"):
        cache.set("key", {"a": [1, object()]})
    assert cache.get("key") == "old"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("memory_size_mb", 0), ("memory_size_mb", True), ("memory_size_mb", "512"), ("memory_size_mb", float("inf")),
        ("disk_size_mb", -1), ("disk_size_mb", None), ("cache_dir", 3), ("cache_dir", ""), ("clock", 5),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(tmp_path: Path, argument: str, value: Any) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=argument):
        TwoLevelCache(**{"cache_dir": tmp_path, argument: value})


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """C2"""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValidationError, match="cache_dir"):
        TwoLevelCache(cache_dir=tmp_path / "file")


@pytest.mark.parametrize("ttl", [0, -1, True, "10"])
def test_a_wrong_time_to_live_is_refused(cache: TwoLevelCache, ttl: Any) -> None:
    with pytest.raises(ValidationError, match="ttl"):
        cache.set("key", 1, ttl=ttl)


@pytest.mark.parametrize("key", [None, 3, b"x", ("a",)])
def test_a_key_that_is_no_text_is_refused(cache: TwoLevelCache, key: Any) -> None:
    for use in (cache.get, cache.delete, lambda key: cache.set(key, 1), lambda key: cache.get_or_compute(key, int)):
        with pytest.raises(ValidationError, match="key"):
            use(key)


@pytest.mark.parametrize("key", ["", "../../x", "a\0b", "ä" * 10_000, "\udc80"])
def test_any_text_can_be_a_key(opened: Callable[..., TwoLevelCache], key: str) -> None:
    opened().set(key, 1)
    assert opened().get(key) == 1


def test_the_folder_is_the_cache_folder_of_the_home(home: Path) -> None:
    """D70"""
    with TwoLevelCache() as cache:
        cache.set("key", 1)
        assert {name: stats["max_size_mb"] for name, stats in cache.get_stats().items()} == {
            "l1_memory": 512, "l2_disk": 10240,
        }  # fmt: skip
    with TwoLevelCache(cache_dir=home / "cache") as cache:
        assert cache.get("key") == 1


def test_hits_and_misses_are_published(opened: Callable[..., TwoLevelCache]) -> None:
    """D70, C62"""
    metrics = get_metrics_collector()
    metrics.reset()
    opened().set("key", 1)
    cache = opened()
    for key in ("key", "key", "key", "unknown"):
        cache.get(key)
    assert metrics.get_counter("rayzyme_cache_hits_total", {"level": "disk"}) == 1
    assert metrics.get_counter("rayzyme_cache_hits_total", {"level": "memory"}) == 2
    assert metrics.get_counter("rayzyme_cache_misses_total") == 1
    assert cache.get_stats()["l1_memory"]["misses"] == 2
    assert cache.get_stats()["l2_disk"]["misses"] == 1


def test_a_closed_cache_says_so(cache: TwoLevelCache) -> None:
    cache.close()
    cache.close()
    for use in (lambda: cache.get("key"), lambda: cache.set("key", 1), cache.clear, cache.get_stats):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize("ended", ["by closing it", "by forgetting it"])
def test_no_file_and_no_thread_is_left_when_it_ends(tmp_path: Path, ended: str) -> None:
    """C3"""

    def open_files() -> list[str]:
        paths = (path for path in Path("/proc/self/fd").iterdir() if path.exists())
        return [str(target) for path in paths if str(target := path.resolve()).startswith(str(tmp_path))]

    threads = threading.active_count()
    cache = TwoLevelCache(cache_dir=tmp_path)
    may_end = threading.Event()

    def use() -> None:
        cache_of_thread.set("other", KB_100)
        used.set()
        assert may_end.wait(10)

    cache_of_thread, used = cache, threading.Event()
    worker = threading.Thread(target=use)
    worker.start()
    assert used.wait(10)
    cache.get("other")
    assert open_files()
    if ended == "by closing it":
        cache.close()
        assert open_files() == []
        may_end.set()
        worker.join()
    else:
        may_end.set()
        worker.join()
        del cache, cache_of_thread
        gc.collect()
        assert open_files() == []
    assert threading.active_count() == threads
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_threads_share_a_cache(opened: Callable[..., TwoLevelCache]) -> None:
    """C3"""
    cache = opened(memory_size_mb=0.02, disk_size_mb=0.3)

    def work(seed: int) -> int:
        random = np.random.default_rng(seed)
        wrong = 0
        for _ in range(60):
            number = int(random.integers(12))
            match int(random.integers(8)):
                case 0:
                    cache.delete(str(number))
                case 1:
                    cache.get_or_compute(str(number), lambda number=number: np.full(3_000, number))
                case 2 | 3 | 4:
                    cache.set(str(number), np.full(3_000, number))
                case _:
                    found = cache.get(str(number))
                    wrong += found is not None and not (found == number).all()
        return wrong

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 0
    stats = cache.get_stats()["l2_disk"]
    assert (stats["corrupt"], stats["failures"]) == (0, 0)
    assert stats["size_mb"] <= 0.3


def test_importing_it_needs_no_library_but_numpy() -> None:
    """C1"""
    code = (
        "import sys; from rayzyme.resources import TwoLevelCache; "
        "print([name for name in ('diskcache', 'torch', 'pydantic', 'sqlalchemy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
