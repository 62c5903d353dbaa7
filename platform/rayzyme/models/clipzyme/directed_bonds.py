"""Which directed bonds feed which: the index lists behind message passing over bonds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bags = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Members of all bags one after the other, and where each bag begins."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectedBonds:
    """Directed bonds of a graph, at most one from an atom to another.

    Attributes:
        source: int64 (e,) atom at which each bond begins.
        target: int64 (e,) atom at which it ends.
        atom_count: Atoms of the graph, with or without bonds.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    atom_count: int

    def entering(self) -> Bags:
        """For each atom, the bonds that end at it."""
        by_target = np.argsort(self.target, kind="stable")
        return by_target, _starts(np.bincount(self.target, minlength=self.atom_count))

    def feeding(self) -> Bags:
        """For each bond, the bonds that end where it begins, except the bond that leads straight back.

        A bond whose opposite is not in the graph has none to leave out.
        """
        members, starts = self.entering()
        entering_counts = np.bincount(self.target, minlength=self.atom_count)
        counts = entering_counts[self.source]
        bond = np.repeat(np.arange(len(self.source)), counts)
        within = np.arange(len(bond)) - np.repeat(_starts(counts), counts)
        feeder = members[starts[self.source][bond] + within]
        is_kept = self.source[feeder] != self.target[bond]
        return feeder[is_kept], _starts(np.bincount(bond[is_kept], minlength=len(self.source)))


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.cumsum(counts) - counts
    return starts
