"""Calling back whoever wants to hear of progress: in order, one call at a time, and never while anything is locked."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

Callback = Callable[[float, str | None], object]
"""Called with the percentage so far and the message of the update, if it had one."""

_FAILURES = 3


class Announcements:
    """A callback and the calls it is still to get.

    The thread that finds nobody calling makes the calls, those of other threads included, so nobody waits for a slow
    callback. Updates that a callback itself makes are not announced: it would never come to an end.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback: Callback | None = callback
        self._waiting: deque[tuple[float, str | None]] = deque()
        self._calling = threading.Lock()
        self._caller: int | None = None
        self._failures = 0

    def add(self, percent: float, message: str | None) -> None:
        """Have a call wait; called in the order in which the calls are to be made."""
        if self._callback is not None and self._caller != threading.get_ident():
            self._waiting.append((percent, message))

    def deliver(self) -> None:
        """Make the calls that wait, unless another thread is at it and will."""
        while self._waiting and self._calling.acquire(blocking=False):
            self._caller = threading.get_ident()
            try:
                while self._waiting:
                    self._call(*self._waiting.popleft())
            finally:
                self._caller = None
                self._calling.release()

    def _call(self, percent: float, message: str | None) -> None:
        if self._callback is None:
            return
        try:
            self._callback(percent, message)
        except Exception:
            self._failures += 1
            dropped = self._failures == _FAILURES
            if dropped:
                self._callback = None
            consequence = "it is not called again" if dropped else "it is called again"
            logger.exception("the progress callback failed (%d of %d); %s", self._failures, _FAILURES, consequence)
