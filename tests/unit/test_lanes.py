"""The two lanes: who goes first, what an error or a cancellation does."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from rayzyme_actors.lanes import LaneExecutor, Steps

WAIT = 10


def test_online_work_goes_between_two_steps_of_batch_work() -> None:
    executor, order = LaneExecutor("test"), []
    begun, may_go_on = threading.Event(), threading.Event()

    def batch() -> Steps:
        order.append("batch 1")
        begun.set()
        assert may_go_on.wait(WAIT)
        yield
        order.append("batch 2")
        yield
        return "done"

    def online(name: str) -> Steps:
        order.append(f"{name} 1")
        yield
        order.append(f"{name} 2")

    slow = executor.submit(batch, "batch")
    later = executor.submit(batch, "batch")
    assert begun.wait(WAIT)
    quick = [executor.submit(lambda name=name: online(name), "online") for name in ("x", "y")]
    may_go_on.set()
    assert slow.result(WAIT) == later.result(WAIT) == "done"
    assert all(work.done() for work in quick)
    assert order == ["batch 1", "x 1", "x 2", "y 1", "y 2", "batch 2", "batch 1", "batch 2"]


def test_an_error_reaches_its_caller_and_stops_nobody_else() -> None:
    executor = LaneExecutor("test")

    def broken() -> Steps:
        yield
        raise ValueError("broken")

    def fine() -> Steps:
        yield
        return 1

    failing, working = executor.submit(broken, "batch"), executor.submit(fine, "batch")
    with pytest.raises(ValueError, match="broken"):
        failing.result(WAIT)
    assert working.result(WAIT) == 1


def test_cancelled_work_stops_between_two_steps() -> None:
    executor, started, may_go_on, closed = LaneExecutor("test"), threading.Event(), threading.Event(), threading.Event()

    def endless() -> Steps:
        try:
            while True:
                started.set()
                assert may_go_on.wait(WAIT)
                yield
        finally:
            closed.set()

    work = executor.submit(endless, "batch")
    assert started.wait(WAIT)
    work.cancel()
    may_go_on.set()
    assert closed.wait(WAIT)
    with pytest.raises(CancelledError):
        work.result(WAIT)
    assert executor.submit(lambda: (yield from ()), "online").result(WAIT) is None
