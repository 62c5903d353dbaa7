"""Two lanes to one thread: online work goes before batch work, and batch work goes in short steps.

Work is a generator that yields between its steps and returns its result. The thread takes whole online works first and
otherwise one step of the oldest batch work, so an online request waits for one step at most.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

Lane = Literal["online", "batch"]
Steps = Generator[None, None, Any]


@dataclass(slots=True)
class _Work:
    start: Callable[[], Steps]
    result: Future[Any]
    steps: Steps | None = None


class LaneExecutor:
    """The thread and its two lanes.

    Attributes:
        longest_batch_step: Seconds of the longest step of batch work so far: how long an online request may have waited.
    """

    def __init__(self, name: str, prepare: Callable[[], None] | None = None) -> None:
        """Start the thread; `prepare` runs in it first (thread-bound library settings)."""
        self._lanes: dict[Lane, deque[_Work]] = {"online": deque(), "batch": deque()}
        self._wakened = threading.Condition()
        self.longest_batch_step = 0.0
        threading.Thread(target=self._run, args=(prepare,), name=name, daemon=True).start()

    def submit(self, start: Callable[[], Steps], lane: Lane) -> Future[Any]:
        """Queue work; `start` makes the generator, in the thread. Cancelling the future stops the work between two steps."""
        work = _Work(start, Future())
        with self._wakened:
            self._lanes[lane].append(work)
            self._wakened.notify()
        return work.result

    def waiting(self) -> dict[Lane, int]:
        """How many works each lane holds, the one in progress included."""
        return {lane: len(works) for lane, works in self._lanes.items()}

    def _run(self, prepare: Callable[[], None] | None) -> None:
        if prepare is not None:
            prepare()
        while True:
            with self._wakened:
                self._wakened.wait_for(lambda: any(self._lanes.values()))
                lane: Lane = "online" if self._lanes["online"] else "batch"
                work = self._lanes[lane][0]
            # Only this thread takes works out, so the first one stays first while it is stepped.
            begin = time.perf_counter()
            while not self._step(work):
                if lane == "batch":
                    self._note_batch_step(time.perf_counter() - begin)
                    begin = time.perf_counter()
                    if self._lanes["online"]:
                        break
            else:
                self._lanes[lane].popleft()

    def _note_batch_step(self, seconds: float) -> None:
        self.longest_batch_step = max(self.longest_batch_step, seconds)

    def _step(self, work: _Work) -> bool:
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
