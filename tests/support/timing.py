"""Time in tests: a clock that only moves when told to, and waiting for a condition instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """Seconds that pass when the test adds them to `now`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def wait_until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        pause.wait(0.005)
