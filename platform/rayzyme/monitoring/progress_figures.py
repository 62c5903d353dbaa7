"""What an answer is made of, taken at one moment: how far a run is, whether it stands still, what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from rayzyme.monitoring.eta import (
    KnownPart,
    Remaining,
    StepTimes,
    largest_deviation,
    remaining_time,
    remaining_time_from,
)

STALLED_AFTER: Final = 10
"""Silence, in mean times of a step, after which nobody can say when the rest will be done."""

ENOUGH_UPDATES: Final = 10
"""Until then earlier runs say more."""

# Two turns of Python's threads (`sys.getswitchinterval`): a run that is at work may well be silent for that long.
_SHORTEST_STALL_S: Final = 0.01


class Gain(NamedTuple):
    """An update that brought the whole further.

    Attributes:
        share: How much of the whole.
        seconds: Since the one before.
        steps: How many steps; the declared end of a task counts as one.
    """

    share: float
    seconds: float
    steps: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The run at one moment.

    Attributes:
        percent: 0 to 100, never lower than before.
        raw_percent: The same without that promise.
        overall: The same from 0 to 1, not rounded.
        gains: The last of them.
        silence: Seconds since the last update.
        known_parts: What earlier runs say about the running tasks.
    """

    current_step: int
    total_steps: int
    percent: float
    raw_percent: float
    overall: float
    active_tasks: int
    task_progress: dict[str, float]
    message: str | None
    gains: list[Gain]
    silence: float
    known_parts: list[KnownPart]

    def is_active(self) -> bool:
        """Whether anything is left that somebody works on; what a failed task left undone is not."""
        return self.overall < 1.0 and (self.active_tasks > 0 or not self.task_progress)

    def stalled_after(self) -> float | None:
        """Seconds of silence after which the run stands still: the time of ten steps. None where it cannot.

        An update that brings more than ten steps takes longer than that by itself: it is late only after the longest of
        its kind.
        """
        if not self.gains or not self.is_active():
            return None
        step = sum(gain.seconds for gain in self.gains) / sum(gain.steps for gain in self.gains)
        many_steps = max((gain.seconds for gain in self.gains if gain.steps > STALLED_AFTER), default=0.0)
        return max(STALLED_AFTER * step, many_steps, _SHORTEST_STALL_S)

    def is_stalled(self) -> bool:
        """Whether updates stopped."""
        longest = self.stalled_after()
        return longest is not None and self.silence > longest

    def remaining(self) -> Remaining | None:
        """Time that the rest takes; None before data, while stalled, and where nobody works on the rest."""
        rest = 1.0 - self.overall
        if rest == 0.0:
            return Remaining(0.0, 0.0, 0.0)
        if self.is_stalled() or not self.is_active():
            return None
        if len(self.gains) < ENOUGH_UPDATES:
            known = remaining_time_from(self.known_parts, rest)
            if known is not None:
                return known
        if not self.gains:
            return None
        updates = [(gain.share, gain.seconds) for gain in self.gains]
        times = StepTimes()
        for share, seconds in updates:
            times.add(share, seconds)
        return remaining_time(rest, times, largest_deviation(updates))
