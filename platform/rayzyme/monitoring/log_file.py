"""One log file that threads and processes share: no line is torn or lost, also while it is rotated."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path


class SharedLogFile(logging.Handler):
    """Appends lines to a file, and moves it to `<name>.1` and so on when the next line would make it too large.

    The standard library's rotation is for one process: others go on writing into the file that was moved away. Here the
    file is opened for each line, in turns of all processes, so nothing is held between two lines.
    """

    def __init__(self, path: Path, largest: int = 10_000_000, kept: int = 5) -> None:
        """Make the folder.

        Args:
            path: The file.
            largest: Bytes that it may have; a longer line gets a file of its own.
            kept: Files that are kept besides it.
        """
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._largest, self._kept = path, largest, kept

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; what hinders it is said on standard error."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
            with self._turn():
                self._make_room(len(line))
                self._append(line)
        except Exception:
            self.handleError(record)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        # A lock of its own, since the log file's would move away with it.
        descriptor = os.open(self._sibling("lock"), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Closing does not let go where another thread forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _make_room(self, length: int) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size == 0 or size + length <= self._largest:
            return
        for number in range(self._kept, 0, -1):
            source = self._sibling(number - 1) if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                source.replace(self._sibling(number))

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)

    def _sibling(self, ending: object) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")
