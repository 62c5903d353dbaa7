"""Writing down what changes, in the background: soon after a change, and never more often than once per interval."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_CHANGED, _STOP = True, False


class DelayedWriter:
    """A daemon thread that starts with the first change and writes `interval_s` after it, and so on until it is stopped.

    It keeps alive what it writes, until everything is written.
    """

    def __init__(self, name: str, write: Callable[[], None], interval_s: float) -> None:
        """Nothing is started yet.

        Args:
            name: The thread's.
            write: Writes all there is now; what it raises is logged, and it is called again later.
            interval_s: Seconds between a change and its being written at most, and between two writes at least; but for
                the last write, which comes when the writer is stopped.
        """
        self._name = name
        self._interval_s = min(interval_s, threading.TIMEOUT_MAX)
        # A simple queue may be put to from anywhere, also from the garbage collector in the middle of another put.
        self._signals: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._write: Callable[[], None] | None = write
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self.is_pending = False

    def changed(self) -> None:
        """Note that there is something to write; the caller sees to it that one thread at a time calls."""
        if self.is_pending or self._is_stopped:
            return
        self.is_pending = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._signals.put(_CHANGED)

    def stop(self) -> None:
        """Have the thread, if there is one, write what is pending and end, without waiting for it."""
        self._is_stopped = True
        if self._thread is None:
            self._write = None
        self._signals.put(_STOP)

    def close(self) -> None:
        """Write what is pending; the thread has ended then."""
        if self._thread is None:
            self._write_pending()
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while self._signals.get() is _CHANGED and self._pause():
            self._write_pending()
        self._write_pending()
        self._write = None

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

    def _write_pending(self) -> None:
        if self._write is None or not self.is_pending:
            return
        # Before the write, so that a change in the middle of it is written by the next one.
        self.is_pending = False
        try:
            self._write()
        except Exception:
            consequence = (
                "that was the last time" if self._is_stopped else f"it is tried again in {self._interval_s:g} s"
            )
            logger.exception("%s: writing failed; %s", self._name, consequence)
            self.is_pending = True
            self._signals.put(_CHANGED)
