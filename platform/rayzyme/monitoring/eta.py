"""How long the rest will take: an expected time and the range that holds the true one four times in five.

Work is counted in any unit (steps, shares of a whole); the answers do not depend on which. The model behind: equal pieces
of work take independent times of one mean and one deviation, so the time of a piece has a variance in proportion to it.
Where neighbours are alike (a busy machine, work that drifts) that is too hopeful, and `Spread` says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

TENTH_OF_A_NORMAL: Final = 1.2816
"""Deviations from the mean beyond which one tenth of a normal distribution lies, on either side."""

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
        """What `save` gave."""
        work, mean, squares, longest, updates = saved
        return cls(work, mean, squares, longest, updates)

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

    def change_unit(self, factor: float) -> None:
        """Count work in a unit of which one is `factor` of the new one."""
        self.work *= factor
        self.mean /= factor
        self.squares /= factor
        self.longest /= factor


class Spread:
    """How the times of neighbouring updates add up: the deviation of a unit, seen in longer and longer pieces of work.

    Independent updates show the same deviation at every length (batch means); where neighbours are alike it grows. Pieces
    are of two, four, eight .. updates; an update costs one addition on average.
    """

    def __init__(self) -> None:
        self._scales: list[StepTimes] = []
        self._halves: list[tuple[float, float] | None] = [
            None
        ]  # work and seconds of the piece that waits for its neighbour

    def add(self, work: float, seconds: float) -> None:
        """Take in an update that did `work` > 0 units in `seconds`."""
        halves = self._halves
        scale = 0
        while (half := halves[scale]) is not None:
            halves[scale] = None
            work += half[0]
            seconds += half[1]
            if scale == len(self._scales):
                self._scales.append(StepTimes())
                halves.append(None)
            self._scales[scale].add(work, seconds)
            scale += 1
        halves[scale] = work, seconds

    @property
    def deviation(self) -> float:
        """The largest deviation of a unit over all lengths with at least three pieces; 0 without one.

        A deviation from few pieces is uncertain: it is widened so that a normal quantile of it is Student's.
        """
        known = [times for times in self._scales if times.updates >= _FEWEST_PIECES]
        return max((times.deviation * _widening(times.updates - 1) for times in known), default=0.0)

    def change_unit(self, factor: float) -> None:
        """Count work in a unit of which one is `factor` of the new one."""
        for times in self._scales:
            times.change_unit(factor)
        self._halves = [half and (half[0] * factor, half[1]) for half in self._halves]

    def save(self) -> list[Any]:
        """All of it, as JSON."""
        return [[times.save() for times in self._scales], list(self._halves)]

    @classmethod
    def restore(cls, saved: list[Any]) -> Spread:
        """What `save` gave."""
        spread = cls()
        scales, halves = saved
        spread._scales = [StepTimes.restore(times) for times in scales]
        spread._halves = [half and (half[0], half[1]) for half in halves]
        return spread


def known_times(mean: float, deviation: float, count: float) -> StepTimes:
    """Step times of which only these are known: the mean and deviation, in seconds, of `count` single steps.

    Raises:
        ValueError: They are no such figures.
    """
    if not (all(map(math.isfinite, (mean, deviation, count))) and mean >= 0 and deviation >= 0 and count >= 1):
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
