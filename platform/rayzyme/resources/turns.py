"""Who computes which entry of the cache, so that threads that need each other's are told instead of waiting for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final


class Turns:
    """Which threads of this process hold and await which keys, so that no threads wait for each other for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[Path, int] = {}
        self._awaited: dict[int, Path] = {}

    @contextlib.contextmanager
    def awaiting(self, path: Path, key: str) -> Iterator[None]:
        """Say that this thread waits for a key's lock file.

        Raises:
            RuntimeError: It would wait for itself, perhaps through other threads.
        """
        this = threading.get_ident()
        with self._lock:
            holder = self._holders.get(path)
            while holder is not None and holder != this:
                awaited = self._awaited.get(holder)
                holder = None if awaited is None else self._holders.get(awaited)
            if holder == this:
                raise RuntimeError(
                    f"computing the entry {key!r} needs the entry itself, or something that another thread computes which "
                    "waits for this one; let all threads ask for such entries in one order"
                )
            self._awaited[this] = path
        try:
            yield
        finally:
            with self._lock:
                del self._awaited[this]

    @contextlib.contextmanager
    def holding(self, path: Path) -> Iterator[None]:
        """Say that this thread has a key's lock file."""
        with self._lock:
            self._holders[path] = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._holders.pop(path, None)


turns: Final = Turns()
"""Those of all caches of the process: two may share a folder, and a computation may ask several."""
