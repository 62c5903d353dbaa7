"""The EC hierarchy as a measure: how much a reaction of one enzyme class says about the enzymes of another.

Most EC numbers have one reaction in any collection, so a reaction that was never seen mostly belongs to a class without
examples. What carries over is the hierarchy: enzymes share chemistry with those of the same class, subclass and
sub-subclass, and within a sub-subclass neighbours in serial number more than others, because numbers are given out in
series to related substrates.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput

SERIAL_RANGES = (1.5, 5.0, 20.0, 80.0)
"""Decay lengths, in serial numbers, of the four neighbourhoods within a sub-subclass."""

_EC_NUMBER = re.compile(r"[1-7]\.\d+\.\d+\.n?\d+")


@dataclass(frozen=True, slots=True)
class TransferWeights:
    """How a training reaction's vote spreads over enzyme classes; all fitted, see `fitting`.

    Attributes:
        main_class: Votes for classes that share the first level of the EC number.
        subclass: The second.
        sub_subclass: The third.
        serial: Those that share the third level, by distance in serial number, one weight per `SERIAL_RANGES`.
        crowding: Votes within a sub-subclass are divided by its number of classes to this power.
    """

    main_class: float
    subclass: float
    sub_subclass: float
    serial: tuple[float, ...]
    crowding: float

    @classmethod
    def from_array(cls, values: NDArray[np.float64]) -> TransferWeights:
        """From float64 (3 + len(SERIAL_RANGES) + 1,), in the order of the attributes."""
        main, sub, third, *serial, crowding = (float(value) for value in values)
        return cls(main, sub, third, tuple(serial), crowding)


def split_ec_number(number: str) -> tuple[str, str, str, str]:
    """The four levels of a complete EC number; provisional ones such as `2.3.1.n4` are complete.

    Raises:
        InvalidInput: It is no complete EC number.
    """
    if not _EC_NUMBER.fullmatch(number):
        raise InvalidInput(f"{number!r} is no complete EC number such as 1.1.1.1 or 2.3.1.n4")
    first, second, third, fourth = number.split(".")
    return first, second, third, fourth


@dataclass(frozen=True, slots=True)
class ClassRelations:
    """Which of `sources` relate to which of `targets`, level by level.

    Attributes:
        levels: float32 (3, sources, targets), 1 where the first one, two or three levels agree.
        serial: float32 (len(SERIAL_RANGES), sources, targets), exp(-distance / range) within a sub-subclass, else 0;
            equal numbers count as neighbours, so that a class gains nothing here by having an example.
        same: float32 (sources, targets), 1 for the same EC number.
        crowd: float32 (targets,), number of targets in the target's sub-subclass.
    """

    levels: NDArray[np.float32]
    serial: NDArray[np.float32]
    same: NDArray[np.float32]
    crowd: NDArray[np.float32]

    @classmethod
    def between(cls, sources: Sequence[str], targets: Sequence[str]) -> ClassRelations:
        """Compare EC numbers.

        Raises:
            InvalidInput: One of them is no complete EC number.
        """
        names: defaultdict[str, int] = defaultdict(lambda: len(names))
        rows, columns = _coded(sources, names), _coded(targets, names)
        levels = np.stack([rows[:, None, level] == columns[None, :, level] for level in range(3)])
        same = rows[:, None, 3] == columns[None, :, 3]
        one, other = _serial_numbers(sources), _serial_numbers(targets)
        distance = np.maximum(np.abs(one[:, None] - other[None, :]), 1)
        numbered = levels[2] & (one[:, None] > 0) & (other[None, :] > 0)
        serial = np.stack([np.where(numbered, np.exp(-distance / reach), 0) for reach in SERIAL_RANGES])
        counts = Counter(columns[:, 2].tolist())
        crowd = np.array([counts[code] for code in columns[:, 2].tolist()])
        return cls(*(part.astype(np.float32) for part in (levels, serial, same, crowd)))

    def transfer(self, weights: TransferWeights, members: NDArray[np.int64]) -> NDArray[np.float32]:
        """Votes of each source for each target, divided evenly among the target's enzymes.

        Args:
            weights: The spread.
            members: Enzymes of each target, int (targets,).

        Returns:
            float32 (sources, targets).
        """
        near = weights.sub_subclass * self.levels[2] + np.tensordot(
            np.array(weights.serial, np.float32), self.serial, 1
        )
        far = weights.main_class * self.levels[0] + weights.subclass * self.levels[1]
        votes = far + near / self.crowd**weights.crowding
        return np.asarray(votes / members, np.float32)


def _coded(numbers: Sequence[str], names: defaultdict[str, int]) -> NDArray[np.int64]:
    """int64 (n, 4): a code for each number's first one, two, three and four levels."""
    rows = []
    for number in numbers:
        parts = split_ec_number(number)
        rows.append([names[".".join(parts[: level + 1])] for level in range(4)])
    return np.array(rows, np.int64).reshape(-1, 4)


def _serial_numbers(numbers: Sequence[str]) -> NDArray[np.int64]:
    """Serial number of each EC number, 0 for provisional ones, whose order means nothing."""
    serials = (split_ec_number(number)[3] for number in numbers)
    return np.array([0 if serial.startswith("n") else int(serial) for serial in serials], np.int64)
