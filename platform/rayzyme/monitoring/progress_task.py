"""One task of a run: its steps, its children, its fraction of 1, and what was said and measured of it.

Fractions are whole numbers of 2^-60, so that sums are exact in whatever order updates arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rayzyme.monitoring.eta import StepTimes
from rayzyme.monitoring.saved_values import read_count, read_number, read_text

TaskStatus = Literal["running", "completed", "failed"]

WHOLE: Final = 1 << 60
LAST_MESSAGES: Final = 1000
MOST_STEPS: Final = 1 << 53
"""Floats, in which times per step are kept, count exactly up to here."""


@dataclass(slots=True)
class Task:
    """A task, or the tracker's own steps.

    Attributes:
        weight: Its part of the whole beside the other top-level tasks, in 2^-64.
        given: Steps that were given to it; `current` are those of them that its fraction holds already.
        children_done: Sum of its children's `done`.
        done: Its fraction, in 2^-60.
        updated: When its own steps were last updated.
        ended: When it was completed or failed.
        completion_time: The same as time of day.
        closed: How it was declared to have ended.
        warned: What its caller was already warned about.
    """

    id: str
    name: str
    total: int
    parent: Task | None
    weight: int
    started: float
    current: int = 0
    given: int = 0
    children: list[str] = field(default_factory=list)
    children_done: int = 0
    done: int = 0
    updated: float = 0.0
    ended: float | None = None
    completion_time: float | None = None
    closed: Literal["completed", "failed"] | None = None
    messages: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=LAST_MESSAGES))
    times: StepTimes = field(default_factory=StepTimes)
    warned: set[str] = field(default_factory=set)

    @property
    def status(self) -> TaskStatus:
        """A task whose fraction is 1 is completed, declared or not."""
        return self.closed or ("completed" if self.done == WHOLE else "running")

    @property
    def percent(self) -> float:
        """The fraction in percent, 2 decimals."""
        return as_percent(self.done)

    def measure(self) -> int:
        """The fraction that steps and children amount to."""
        if self.closed == "completed":
            return WHOLE
        if not self.children:
            return self.current * WHOLE // self.total if self.total else 0
        best = max(self.current * WHOLE, self.children_done)
        return min(WHOLE, best // max(self.total, len(self.children)))

    def warn_once(self, warning: str) -> str | None:
        """The warning, unless it was given before."""
        if warning in self.warned:
            return None
        self.warned.add(warning)
        return warning

    def save(self) -> dict[str, Any]:
        """All of it, as JSON; what follows from the children is left out."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        parent = None if self.parent is None else self.parent.id
        messages, warned = list(self.messages), sorted(self.warned)
        return plain | {"parent": parent, "messages": messages, "warned": warned, "times": self.times.save()}

    @classmethod
    def restore(cls, saved: Mapping[str, Any], parent: Task | None) -> Task:
        """What `save` gave.

        Raises:
            ValueError: A value cannot be one of a task; what is no task at all is a KeyError or TypeError.
        """
        total, current = read_count(saved["total"], at_most=MOST_STEPS), saved["current"]
        closed, ended, completed = (saved[name] for name in ("closed", "ended", "completion_time"))
        if closed not in (None, "completed", "failed"):
            raise ValueError(f"{closed!r} is not how a task ends")
        task = cls(
            id=read_text(saved["id"]),
            name=read_text(saved["name"]),
            total=total,
            parent=parent,
            weight=read_count(saved["weight"]),
            started=read_number(saved["started"]),
            current=read_count(current, at_most=total),
            given=current,
            updated=read_number(saved["updated"]),
            ended=None if ended is None else read_number(ended),
            completion_time=None if completed is None else read_number(completed),
            closed=closed,
            times=StepTimes.restore(saved["times"]),
            warned={read_text(warning) for warning in saved["warned"]},
        )
        task.messages.extend((read_number(wall), read_text(message)) for wall, message in saved["messages"])
        return task


_PLAIN: Final = ("id", "name", "total", "weight", "started", "current", "updated", "ended", "completion_time", "closed")


def as_percent(done: int) -> float:
    """A fraction in percent, 2 decimals."""
    return round(100 * done / WHOLE, 2)
