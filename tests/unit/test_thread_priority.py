"""Threads that step back, and those that they start."""

from __future__ import annotations

import os
import threading

from rayzyme_actors.lanes import LaneExecutor, Steps


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_batch_work_and_what_it_computes_with_has_the_lowest_priority_and_online_work_that_of_the_process() -> None:
    seen: list[int] = []

    def note() -> Steps:
        yield
        other = threading.Thread(target=lambda: seen.append(priority()))
        other.start()
        other.join()
        return priority()

    executor = LaneExecutor("test")
    assert executor.submit(note, "online").result(10) == priority()
    assert executor.submit(note, "batch").result(10) == 19
    assert seen == [priority(), 19]


def test_online_work_does_not_wait_for_the_step_that_batch_work_is_in() -> None:
    executor, may_end = LaneExecutor("test"), threading.Event()

    def slow() -> Steps:
        assert may_end.wait(10)
        yield

    def quick() -> Steps:
        yield
        return "answer"

    batch = executor.submit(slow, "batch")
    assert executor.submit(quick, "online").result(10) == "answer"
    assert not batch.done()
    may_end.set()
    batch.result(10)
