"""Writing down what changes, in the background: soon after a change, and never more often than once per interval."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable

logger = logging.getLogger(__name__)

_CHANGED, _STOP = True, False


class DelayedWriter:
    """A daemon thread that starts with the first change and writes `interval_s` after it, and so on.

    It ends at `close()`, or when the object that it writes for is gone: it does not keep that one alive.
    """

    def __init__(self, name: str, write: Callable[[], None], interval_s: float) -> None:
        """Nothing is started yet.

        Args:
            name: The thread's.
            write: A bound method that writes all there is now; what it raises is logged, and it is called again later.
            interval_s: Seconds between a change and its being written at most, and between two writes at least.
        """
        self._name = name
        self._interval_s = interval_s
        # A simple queue may be put to from anywhere, also from the garbage collector in the middle of another put.
        self._signals: queue.SimpleQueue[bool] = queue.SimpleQueue()
        signals = self._signals
        self._write = weakref.WeakMethod(write, lambda _gone: signals.put(_STOP))
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.is_pending = False

    def changed(self) -> None:
        """Note that there is something to write; the caller sees to it that one thread at a time calls."""
        if self.is_pending or self._is_closed:
            return
        self.is_pending = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._signals.put(_CHANGED)

    def close(self) -> None:
        """End the thread, then write what is pending."""
        self._is_closed = True
        self._signals.put(_STOP)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self.is_pending:
            self._write_now()

    def _run(self) -> None:
        while self._signals.get() is _CHANGED and self._pause():
            self._write_now()

    def _pause(self) -> bool:
        """Wait for the interval to pass; False when the thread is to end instead."""
        end = time.monotonic() + self._interval_s
        while (left := end - time.monotonic()) > 0:
            try:
                if self._signals.get(timeout=left) is _STOP:
                    return False
            except queue.Empty:
                break
        return True

    def _write_now(self) -> None:
        write = self._write()
        if write is None:
            return
        # Before the write, so that a change in the middle of it is written by the next one.
        self.is_pending = False
        try:
            write()
        except Exception:
            logger.exception("%s: writing failed; it is tried again in %g s", self._name, self._interval_s)
            self.is_pending = True
            self._signals.put(_CHANGED)
