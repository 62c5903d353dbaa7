"""What a task prints and logs, in a file of its attempt: `$RAYZYME_HOME/runs/JOB/logs/TASK.ATTEMPT.log`.

The file is made with its first line, so that tasks that say nothing leave none.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TextIO
from urllib.parse import quote, unquote

from rayzyme.workflows.execution import Assignment

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LONGEST_FILE_NAME = 120
# What a task prints must not be what it fails of.
_ON_ODD_TEXT: Final = "backslashreplace"


def log_file(runs: Path, job_id: str, task: str, attempt: int) -> Path:
    """Where an attempt's log is."""
    return runs / job_id / "logs" / f"{file_name(task)}.{attempt}.log"


def file_name(task: str) -> str:
    """A task's name as part of a path; of a long one the beginning, and a digest."""
    quoted = quote(task, safe="")
    if len(quoted) <= _LONGEST_FILE_NAME:
        return quoted
    return f"{quoted[:_LONGEST_FILE_NAME]}-{hashlib.sha256(task.encode()).hexdigest()[:16]}"


class TaskLog(logging.Handler):
    """Takes this process's standard output and error and its log lines while a task runs; they go where they went before too."""

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self._runs = runs
        self._file: Path | None = None
        self._sink: IO[bytes] | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self)

    @contextmanager
    def of(self, assignment: Assignment) -> Iterator[None]:
        """Everything said inside of this belongs to the attempt."""
        self._write_to(log_file(self._runs, assignment.job_id, assignment.task, assignment.attempt))
        # Each task gets streams of its own: one that closes or changes them harms none after it.
        output, errors = _Stream(sys.stdout, self), _Stream(sys.stderr, self)
        try:
            with redirect_stdout(output), redirect_stderr(errors):
                yield
        finally:
            for stream in (output, errors):
                if not stream.closed:
                    stream.flush()
            self._write_to(None)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of the log."""
        if self._file is not None:
            self.write(f"{self.format(record)}\n".encode(errors=_ON_ODD_TEXT))

    def write(self, content: bytes) -> None:
        """Write what was printed."""
        with self.lock:  # type: ignore[union-attr]
            if self._file is None:
                return
            if self._sink is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._sink = self._file.open("ab", buffering=0)
            self._sink.write(content)

    def _write_to(self, file: Path | None) -> None:
        with self.lock:  # type: ignore[union-attr]
            self._file = file
            if self._sink is not None:
                self._sink.close()
                self._sink = None


class _Stream(io.TextIOWrapper):
    """A stream as Python's own; what is printed to it comes to the log, and where it went before."""

    mode = "w"

    def __init__(self, original: TextIO, log: TaskLog) -> None:
        super().__init__(_Both(original, log), encoding="utf-8", errors=_ON_ODD_TEXT, line_buffering=True)


class _Both(io.BufferedIOBase):
    def __init__(self, original: TextIO, log: TaskLog) -> None:
        self._original, self._log = original, log
        self.name, self.mode = original.name, "wb"

    def write(self, content: ReadableBuffer, /) -> int:
        said = bytes(content)
        self._log.write(said)
        self._original.buffer.write(said)
        return len(said)

    def flush(self) -> None:
        super().flush()
        self._original.flush()

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


def logs_of(runs: Path, job_id: str) -> list[tuple[str, int, str]]:
    """What the attempts of a job's tasks said: task, attempt and text, the oldest first."""
    files = sorted((runs / job_id / "logs").glob("*.log"), key=lambda file: file.stat().st_mtime)
    return [
        (unquote(task), int(attempt), file.read_text(encoding="utf-8", errors="replace"))
        for file in files
        for task, _, attempt in [file.name.removesuffix(".log").rpartition(".")]
    ]
