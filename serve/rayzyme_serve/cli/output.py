"""Printing results: a table for people, JSON for programs, bare values for shell scripts.

Results go to standard output, everything else (progress, warnings, errors) to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rayzyme.monitoring import ProgressTracker

Tick = Callable[[int, int], None]


class OutputFormat(StrEnum):
    """The values of `--output`."""

    TABLE = "table"
    JSON = "json"
    QUIET = "quiet"


class Output(Protocol):
    """One way of printing."""

    def rows(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print rows for people; the other formats print nothing here."""
        ...

    def document(self, document: Mapping[str, Any]) -> None:
        """Print a whole result for programs; the other formats print nothing here."""
        ...

    def value(self, text: str) -> None:
        """Print the one value that a script wants; the other formats print nothing here."""
        ...

    def line(self, text: str) -> None:
        """Print the one line that is the result for a person; the other formats print nothing here."""
        ...

    def note(self, text: str) -> None:
        """Say something to a person; never mixed into results."""
        ...

    def warning(self, text: str) -> None:
        """Say, in every format, that something did not go as asked."""
        ...

    @contextmanager
    def progress(self, label: str) -> Iterator[Tick]:
        """A progress bar with ETA where a person watches; gives a function of (done, in all)."""
        ...


class _Silent:
    """Prints nothing but warnings: what the formats for programs have in common."""

    def rows(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        return None

    def document(self, document: Mapping[str, Any]) -> None:
        return None

    def value(self, text: str) -> None:
        return None

    def line(self, text: str) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def warning(self, text: str) -> None:
        Console(stderr=True).print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Tick]:
        yield lambda done, total: None


class JsonOutput(_Silent):
    """One JSON document."""

    def document(self, document: Mapping[str, Any]) -> None:
        _say(json.dumps(document, ensure_ascii=False, indent=1))


class QuietOutput(_Silent):
    """Bare values, one a line."""

    def value(self, text: str) -> None:
        _say(text)


class TableOutput(_Silent):
    """Tables and notes for a person."""

    def rows(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        console = Console()
        # A title of the table's own would be folded to the width of its columns.
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
        table = Table(header_style="bold")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        console.print(table, markup=False)

    def line(self, text: str) -> None:
        _say(text)

    def note(self, text: str) -> None:
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Tick]:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        # Off a terminal a bar is noise in a log.
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(label, total=None, left="")
            measured = _Measured(label)

            def tick(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, left=time_left(measured.update(done, total)))

            yield tick


class _Measured:
    """What a tracker makes of (done, in all); a total that turns out otherwise begins anew."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._tracker = ProgressTracker()
        self._total: int | None = None
        self._done = 0

    def update(self, done: int, total: int) -> dict[str, Any]:
        if total != self._total:
            self._tracker, self._total, self._done = ProgressTracker(), total, 0
            self._tracker.start_task(self._label, self._label, total)
        self._tracker.update_task(self._label, max(0, done - self._done))
        self._done = done
        return self._tracker.get_progress()


def time_left(progress: Mapping[str, Any]) -> str:
    """What a tracker's answer says of the time left: an estimate, and the range that it lies in four times of five."""
    if progress["stalled"]:
        return "stalled"
    if progress["estimated_remaining"] is None:
        return ""
    left, low, high = (_clock(progress[key]) for key in ("estimated_remaining", "eta_low", "eta_high"))
    return f"{left} left" if low == high else f"{left} left ({low} to {high})"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    """To whoever reads this, now: a command that stays, such as `up --foreground`, may have a program at the other end."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
