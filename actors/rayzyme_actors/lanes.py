"""Two lanes, each with a thread: online work goes before batch work, and batch work goes in short steps.

Work is a generator that yields between its steps and returns its result. No step of batch work begins while online work is there.
One that has begun goes on beside it, at the lowest priority that the system's scheduler knows, so that on a CPU it takes what the
online work leaves; a device that knows no priorities makes online work wait for that one step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from rayzyme_actors.thread_priority import step_back

Lane = Literal["online", "batch"]
Steps = Generator[None, None, Any]

_LOWEST_PRIORITY: Final = 19


@dataclass(slots=True)
class _Work:
    start: Callable[[], Steps]
    result: Future[Any]
    steps: Steps | None = None


class LaneExecutor:
    """The lanes and their threads.

    Attributes:
        longest_batch_step: Seconds of the longest step of batch work so far.
    """

    def __init__(self, name: str, prepare: Callable[[], None] | None = None) -> None:
        """Start the threads; `prepare` runs in each of them first (thread-bound library settings)."""
        self._lanes: dict[Lane, deque[_Work]] = {"online": deque(), "batch": deque()}
        self._changed = threading.Condition()
        self.longest_batch_step = 0.0
        for lane in self._lanes:
            threading.Thread(target=self._run, args=(lane, prepare), name=f"{name}-{lane}", daemon=True).start()

    def submit(self, start: Callable[[], Steps], lane: Lane) -> Future[Any]:
        """Queue work; `start` makes the generator, in the lane's thread. Cancelling the future stops it between two steps."""
        work = _Work(start, Future())
        with self._changed:
            self._lanes[lane].append(work)
            self._changed.notify_all()
        return work.result

    def waiting(self) -> dict[Lane, int]:
        """How many works each lane holds, the one in progress included."""
        return {lane: len(works) for lane, works in self._lanes.items()}

    def _run(self, lane: Lane, prepare: Callable[[], None] | None) -> None:
        if lane == "batch":
            step_back(_LOWEST_PRIORITY)
        if prepare is not None:
            prepare()
        works, online = self._lanes[lane], self._lanes["online"]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: works and (lane == "online" or not online))
                work = works[0]
            # Only this thread takes works out of its lane, so the first one stays first while it is stepped.
            begin = time.perf_counter()
            has_ended = _step(work)
            if lane == "batch":
                self.longest_batch_step = max(self.longest_batch_step, time.perf_counter() - begin)
            if has_ended:
                with self._changed:
                    works.popleft()
                    self._changed.notify_all()


def _step(work: _Work) -> bool:
    """Do one step; True when the work has ended."""
    try:
        if work.result.cancelled():
            if work.steps is not None:
                work.steps.close()
            return True
        if work.steps is None:
            work.steps = work.start()
        next(work.steps)
    except StopIteration as done:
        # The caller may cancel between the check above and here.
        with suppress(InvalidStateError):
            work.result.set_result(done.value)
        return True
    except BaseException as error:
        with suppress(InvalidStateError):
            work.result.set_exception(error)
        return True
    return False
