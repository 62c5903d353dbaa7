"""Calling back whoever wants to hear of progress: in order, one call at a time, and never while anything is locked."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

Callback = Callable[[float, str | None], object]
"""Called with the percentage so far and the message of the update, if it had one."""

MOST_WAITING: Final = 1000
_FAILURES: Final = 3


class Announcements:
    """A callback and the calls it is still to get.

    The thread that finds nobody calling makes the calls, those of other threads included, so nobody waits for a slow
    callback. When it falls 1,000 calls behind, the oldest are left out: the newest tell how far the run is. Updates that
    a callback itself makes are not announced: it would never come to an end.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback: Callback | None = callback
        self._waiting: deque[tuple[float, str | None]] = deque(maxlen=MOST_WAITING)
        self._calling = threading.Lock()
        self._caller: int | None = None
        self._failures = 0
        self._is_behind, self._has_warned = False, False

    def add(self, percent: float, message: str | None) -> None:
        """Have a call wait; called in the order in which the calls are to be made."""
        if self._callback is not None and self._caller != threading.get_ident():
            self._is_behind = self._is_behind or len(self._waiting) == MOST_WAITING
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
        if self._is_behind and not self._has_warned:
            self._has_warned = True
            logger.warning("the progress callback is slower than the updates; the oldest calls are left out")
        try:
            self._callback(percent, message)
        except Exception:
            self._failures += 1
            dropped = self._failures == _FAILURES
            if dropped:
                self._callback = None
            consequence = "it is not called again" if dropped else "it is called again"
            logger.exception("the progress callback failed (%d of %d); %s", self._failures, _FAILURES, consequence)
