"""Many threads on one tracker: exact sums, callbacks that may do anything, and nothing left behind."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.fake_nvml import FakeGpu, FakeNvml

from rayzyme.database import open_database
from rayzyme.monitoring.announcements import MOST_WAITING
from rayzyme.monitoring.progress import ProgressTracker

THREADS = 8


def in_threads(work: Callable[[int], object], threads: int = THREADS) -> None:
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def test_a_hundred_thousand_updates_from_eight_threads_are_exact(switching: None) -> None:
    """C49"""
    tracker = ProgressTracker(100_000)
    tracker.start_task("all", "All", 3)
    for name, steps in (("one", 100_000), ("two", 50_001)):
        tracker.start_task(name, name, steps, "all")

    def work(_number: int) -> None:
        for step in range(12_500):
            tracker.update_task("one")
            if step % 2:
                tracker.update_task("two")
                tracker.update()

    in_threads(work)
    progress = tracker.get_progress()
    assert progress["current_step"] == 50_000
    assert [tracker.get_task_progress(name)["current_step"] for name in ("one", "two")] == [100_000, 50_000]
    assert progress["task_progress"] == {
        "all": pytest.approx((1 + 50_000 / 50_001) / 3, rel=1e-15), "one": 1.0, "two": 50_000 / 50_001,
    }  # fmt: skip
    assert tracker.history["one"]["count"] == 100_000


def test_an_answer_shows_one_moment(switching: None) -> None:
    """C44"""
    tracker = ProgressTracker()
    tracker.start_task("all", "All", THREADS)
    for number in range(THREADS):
        tracker.start_task(str(number), "Part", 2000, "all")
    done = threading.Event()
    torn: list[dict[str, Any]] = []

    def read() -> None:
        while not done.is_set():
            progress = tracker.get_progress()
            fractions = dict(progress["task_progress"])
            whole = fractions.pop("all")
            if (
                abs(whole - sum(fractions.values()) / THREADS) > 1e-9
                or abs(100 * whole - progress["raw_percent"]) > 0.0051
            ):
                torn.append(progress)

    reader = threading.Thread(target=read)
    reader.start()
    in_threads(lambda number: [tracker.update_task(str(number)) for _ in range(2000)])
    done.set()
    reader.join()
    assert torn == []
    assert tracker.get_progress()["percent"] == 100.0


def test_a_callback_hears_of_every_update() -> None:
    """C46"""
    heard: list[tuple[float, str | None]] = []
    tracker = ProgressTracker(4, callback=lambda percent, message: heard.append((percent, message)))
    tracker.update(1, "one")
    tracker.update(2)
    tracker.start_task("a", "A", 4)
    tracker.update_task("a", 2, "two")
    tracker.complete_task("a", "end")
    assert heard == [(25.0, "one"), (75.0, None), (75.0, "two"), (100.0, "end")]


def test_a_callback_may_use_the_tracker() -> None:
    """C46"""
    heard: list[float] = []

    def callback(percent: float, _message: str | None) -> None:
        assert tracker.get_progress()["percent"] == percent
        tracker.update_task("a", 1)
        heard.append(percent)

    tracker = ProgressTracker(callback=callback)
    tracker.start_task("a", "A", 10)
    tracker.update_task("a", 1)
    tracker.update_task("a", 1)
    assert heard == [10.0, 30.0]
    assert tracker.get_progress()["percent"] == 40.0


def test_a_callback_may_wait_for_another_thread_that_updates() -> None:
    """C46"""
    heard: list[float] = []

    def callback(percent: float, _message: str | None) -> None:
        heard.append(percent)
        if len(heard) == 1:
            in_threads(lambda _number: tracker.update(1), threads=3)

    tracker = ProgressTracker(callback=callback)
    tracker.update(1)
    assert heard == [1.0, 2.0, 3.0, 4.0]


def test_callbacks_of_many_threads_come_in_order_and_one_at_a_time(switching: None) -> None:
    """C46"""
    heard: list[float] = []
    inside = threading.Lock()

    def callback(percent: float, _message: str | None) -> None:
        assert inside.acquire(blocking=False)
        heard.append(percent)
        inside.release()

    tracker = ProgressTracker(THREADS * 500, callback=callback)
    in_threads(lambda _number: [tracker.update() for _ in range(500)])
    assert heard[-1] == 100.0
    assert heard == sorted(heard)


def test_a_slow_callback_is_told_the_newest_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    """C46"""
    heard: list[float] = []
    is_called, may_return = threading.Event(), threading.Event()

    def callback(percent: float, _message: str | None) -> None:
        heard.append(percent)
        is_called.set()
        assert may_return.wait(20)

    tracker = ProgressTracker(10 * MOST_WAITING, callback=callback)
    first = threading.Thread(target=tracker.update)
    first.start()
    assert is_called.wait(20)
    for _ in range(5 * MOST_WAITING - 1):
        tracker.update()
    with caplog.at_level(logging.WARNING):
        may_return.set()
        first.join()
    assert len(heard) == 1 + MOST_WAITING
    assert (heard[1], heard[-1]) == (40.01, 50.0)
    assert [record.getMessage() for record in caplog.records] == [
        "the progress callback is slower than the updates; the oldest calls are left out"
    ]


def test_a_callback_that_fails_is_dropped_after_three_times(caplog: pytest.LogCaptureFixture) -> None:
    """C46"""
    calls: list[float] = []

    def callback(percent: float, _message: str | None) -> None:
        calls.append(percent)
        if percent != 2.0:
            raise RuntimeError("broken callback")

    tracker = ProgressTracker(callback=callback)
    with caplog.at_level(logging.ERROR):
        for _ in range(10):
            tracker.update()
    assert calls == [1.0, 2.0, 3.0, 4.0]
    assert len(caplog.records) == 3
    assert "it is not called again" in caplog.records[-1].getMessage()
    assert tracker.get_progress()["percent"] == 10.0


def test_what_running_costs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """C38"""
    now = [0.0]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    tracker = ProgressTracker(clock=lambda: now[0])
    nothing = {"mean": None, "max": None}
    assert tracker.get_performance_metrics() | {"memory_usage": nothing} == {
        "step_times": nothing, "memory_usage": nothing, "gpu_utilization": nothing,
    }  # fmt: skip
    for seconds, steps, utilization in ((2.0, 1, 40.0), (8.0, 4, 80.0), (5.0, 1, 90.0)):
        now[0] += seconds
        tracker.update(steps, performance_metrics={"gpu_utilization": utilization, "temperature": 60})
    figures = tracker.get_performance_metrics()
    assert figures["step_times"] == {"mean": 2.5, "max": 5.0}
    assert figures["gpu_utilization"] == {"mean": 70.0, "max": 90.0}
    assert figures["temperature"] == {"mean": 60.0, "max": 60.0}
    memory = figures["memory_usage"]
    assert memory["mean"] is not None
    assert memory["max"] is not None
    assert 5 < memory["mean"] <= memory["max"] < 100_000


def test_gpus_are_asked_where_nobody_passed_their_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    """C38"""
    driver = FakeNvml(FakeGpu("a"), FakeGpu("b"))
    shares = iter([30, 60])
    monkeypatch.setattr(
        driver, "nvmlDeviceGetUtilizationRates", lambda _gpu: SimpleNamespace(gpu=next(shares)), raising=False
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    tracker = ProgressTracker()
    assert tracker.get_performance_metrics()["gpu_utilization"] == {"mean": 45.0, "max": 45.0}
    assert driver.opened == 0
    driver.broken["nvmlInit"] = driver.NVMLError_DriverNotLoaded()
    assert tracker.get_performance_metrics()["gpu_utilization"] == {"mean": None, "max": None}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would open one more


@pytest.mark.parametrize("end", ["close", "garbage collection"])
def test_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    """C3"""
    database = open_database(f"sqlite:///{tmp_path / 'rayzyme.db'}")

    def use() -> weakref.ref[ProgressTracker]:
        tracker = ProgressTracker(checkpoint_dir=tmp_path / "files", checkpoint_interval=0.01)
        tracker.publish("job_1", database=database)
        tracker.update()
        writers = [thread for thread in threading.enumerate() if thread.name.startswith("progress-")]
        assert len(writers) == 2
        assert all(thread.daemon for thread in writers)
        if end == "close":
            tracker.close()
        return weakref.ref(tracker)

    use()  # what is opened once stays: the connection pool of the database
    wait_for_writers_to_end()
    files = open_files()
    for _ in range(5):
        tracker = use()
        wait_for_writers_to_end()
        assert tracker() is None
        assert open_files() == files
    database.close()


@pytest.mark.parametrize("end", ["close", "garbage collection"])
def test_its_own_database_is_not_left_open(home: Path, end: str) -> None:
    """C3"""
    open_database().close()

    def use() -> None:
        tracker = ProgressTracker()
        tracker.publish("job_1")
        tracker.update()
        if end == "close":
            tracker.close()
            assert open_files() == files

    files = open_files()
    for _ in range(5):
        use()
        wait_for_writers_to_end()
        assert open_files() == files


def wait_for_writers_to_end() -> None:
    gc.collect()
    end = time.monotonic() + 20
    for thread in threading.enumerate():
        if thread.name.startswith("progress-"):
            thread.join(max(0.0, end - time.monotonic()))
            assert not thread.is_alive()
