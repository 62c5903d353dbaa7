"""How long the rest will take: an expected time and the range that holds the true one four times in five.

Work is counted in any unit (steps, shares of a whole); the answers do not depend on which. The model behind: equal pieces
of work take independent times of one mean and one deviation, so the time of a piece has a variance in proportion to it.
Where neighbours are alike (a busy machine, work that drifts) that is too hopeful, and `largest_deviation` says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rayzyme.monitoring.saved_values import LARGEST, read_count, read_number

TENTH_OF_A_NORMAL: Final = 1.2816
"""Deviations from the mean beyond which one tenth of a normal distribution lies, on either side."""

_FEWEST_UPDATES: Final = 20  # of fewer, no piece is long and there are few
_FEWEST_PIECES: Final = 3
_DECIMALS: Final = 6  # microseconds: below lies only the rounding of binary fractions


@dataclass(slots=True)
class StepTimes:
    """What observed updates tell of the time per unit of work; kept as running moments (Welford's method, weighted).

    Attributes:
        work: Units of work observed.
        mean: Seconds per unit.
        squares: Sum over updates of (seconds - mean * work)^2 / work.
        longest: Most seconds per unit of an update.
        updates: Updates observed.
    """

    work: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    longest: float = 0.0
    updates: int = 0

    def add(self, work: float, seconds: float) -> None:
        """Take in an update that did `work` > 0 units in `seconds`."""
        self.work += work
        surprise = seconds - self.mean * work
        self.mean += surprise / self.work
        self.squares += surprise * (seconds - self.mean * work) / work
        if seconds > self.longest * work:
            self.longest = seconds / work
        self.updates += 1

    def save(self) -> list[float]:
        """All of it, as JSON."""
        return [self.work, self.mean, self.squares, self.longest, self.updates]

    @classmethod
    def restore(cls, saved: list[Any]) -> StepTimes:
        """What `save` gave; anything else is a TypeError or ValueError."""
        *figures, updates = saved
        work, mean, squares, longest = map(read_number, figures)
        if updates and work <= 0:
            raise ValueError(f"{saved!r} are no times per step")
        return cls(work, mean, squares, longest, read_count(updates))

    def merge(self, other: StepTimes) -> None:
        """Take in all that `other` observed."""
        if other.updates == 0:
            return
        work = self.work + other.work
        apart = other.mean - self.mean
        self.squares += other.squares + apart * apart * self.work * other.work / work
        self.mean += apart * other.work / work
        self.work, self.updates = work, self.updates + other.updates
        self.longest = max(self.longest, other.longest)

    @property
    def deviation(self) -> float:
        """Standard deviation of the seconds of one unit; 0 after a single update, which shows no spread."""
        return math.sqrt(max(0.0, self.squares) / (self.updates - 1)) if self.updates > 1 else 0.0

    def variance_of(self, remaining: float, spread: float = 0.0) -> float:
        """Variance in s^2 of the time for `remaining` units: their own spread, and that of the mean, known from few.

        Args:
            remaining: Units of work.
            spread: A deviation of one unit that is known better than these updates tell; counts where it is larger.
        """
        return max(self.deviation, spread) ** 2 * (remaining + remaining**2 / self.work)


def largest_deviation(updates: Sequence[tuple[float, float]]) -> float:
    """The deviation of a unit in s, as the times of neighbouring updates add up; 0 where there are fewer than 20 updates.

    Independent updates show the same deviation in pieces of any length (batch means); where neighbours are alike it grows
    with the length. This is the largest over all lengths of which there are at least three pieces. From few pieces it is
    uncertain, so it is widened until a normal quantile of it is Student's.

    Args:
        updates: Work > 0 and seconds of each, oldest first.
    """
    if len(updates) < _FEWEST_UPDATES:
        return 0.0
    largest, length = 0.0, 2
    while (pieces := len(updates) // length) >= _FEWEST_PIECES:
        times = StepTimes()
        # The newest ones, where they do not come out even.
        for begin in range(len(updates) - pieces * length, len(updates), length):
            piece = updates[begin : begin + length]
            times.add(sum(work for work, _ in piece), sum(seconds for _, seconds in piece))
        largest = max(largest, times.deviation * _widening(pieces - 1))
        length += (length + 1) // 2
    return largest


def known_times(mean: float, deviation: float, count: float) -> StepTimes:
    """Step times of which only these are known: the mean and deviation, in seconds, of `count` single steps.

    Raises:
        ValueError: They are no such figures.
    """
    if not (0 <= mean <= LARGEST and 0 <= deviation <= LARGEST and 1 <= count <= LARGEST):
        raise ValueError(f"mean {mean!r} and deviation {deviation!r} of {count!r} steps")
    updates = math.ceil(count)
    return StepTimes(count, mean, deviation**2 * (updates - 1), mean, updates)


@dataclass(frozen=True, slots=True)
class Remaining:
    """Seconds that the rest takes.

    Attributes:
        expected: The mean.
        low: One time in ten it takes less.
        high: One time in ten it takes more.
    """

    expected: float
    low: float
    high: float


def remaining_time(remaining: float, times: StepTimes, spread: float = 0.0) -> Remaining:
    """Mean * R +- 1.2816 * s * sqrt(R + R^2 / k) for `remaining` R and k observed units, `times.work` > 0 of them.

    s is the deviation of `times`, or `spread` where that is larger.
    """
    return _range(remaining * times.mean, times.variance_of(remaining, spread))


@dataclass(frozen=True, slots=True)
class KnownPart:
    """A part of the whole whose time per step is known from earlier runs.

    Attributes:
        share: How much of the whole its remaining steps are.
        steps: Those steps.
        times: Earlier times per step.
    """

    share: float
    steps: float
    times: StepTimes


def remaining_time_from(parts: Iterable[KnownPart], remaining: float) -> Remaining | None:
    """The same from earlier runs; what no part covers is taken to go like the parts. None where no part is known.

    Args:
        parts: The known parts.
        remaining: How much of the whole is still to do, in the unit of `KnownPart.share`.
    """
    known = [part for part in parts if part.share > 0]
    if not known:
        return None
    scale = remaining / sum(part.share for part in known)
    expected = sum(part.steps * part.times.mean for part in known)
    variance = sum(part.times.variance_of(part.steps) for part in known)
    return _range(scale * expected, scale**2 * variance)


def _widening(freedom: int) -> float:
    """Student's 90 % quantile for degrees of freedom >= 2 over the normal one, within 0.4 % (Abramowitz, Stegun 26.7.5)."""
    z = TENTH_OF_A_NORMAL
    first = (z**2 + 1) / 4
    second = (5 * z**4 + 16 * z**2 + 3) / 96
    third = (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / 384
    return 1 + first / freedom + second / freedom**2 + third / freedom**3


def _range(expected: float, variance: float) -> Remaining:
    margin = TENTH_OF_A_NORMAL * math.sqrt(variance)
    low, high = max(0.0, expected - margin), expected + margin
    return Remaining(round(expected, _DECIMALS), round(low, _DECIMALS), round(high, _DECIMALS))
