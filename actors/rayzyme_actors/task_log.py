"""What a task prints and logs, in a file of its attempt: `$RAYZYME_HOME/runs/JOB/logs/TASK.ATTEMPT.log`.

The file is made with its first line, so that tasks that say nothing leave none.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, unquote

from rayzyme.workflows.execution import Assignment

_LONGEST_FILE_NAME = 120


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
        self._sink: TextIO | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self)
        sys.stdout = _Both(sys.stdout, self)
        sys.stderr = _Both(sys.stderr, self)

    @contextmanager
    def of(self, assignment: Assignment) -> Iterator[None]:
        """Everything said inside of this belongs to the attempt."""
        self._file = log_file(self._runs, assignment.job_id, assignment.task, assignment.attempt)
        try:
            yield
        finally:
            self._file = None
            if self._sink is not None:
                self._sink.close()
                self._sink = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of the log."""
        if self._file is not None:
            self.write(self.format(record) + "\n")

    def write(self, text: str) -> None:
        """Write what was printed."""
        if self._file is None:
            return
        with self.lock:  # type: ignore[union-attr]
            if self._sink is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._sink = self._file.open("a", encoding="utf-8", buffering=1)
            self._sink.write(text)


class _Both(io.TextIOBase):
    def __init__(self, original: TextIO, log: TaskLog) -> None:
        self._original, self._log = original, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._original.write(text)

    def flush(self) -> None:
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
        (unquote(task), int(attempt), file.read_text(encoding="utf-8"))
        for file in files
        for task, _, attempt in [file.name.removesuffix(".log").rpartition(".")]
    ]
