"""Placing several waiting requests at once, so that no memory is stranded that a better order would have used. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for devices.

    Attributes:
        memory_mb: MB (2^20 bytes) on each.
        count: How many different devices.
    """

    memory_mb: int
    count: int = 1


def place_together(requests: Sequence[Request], free: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Find a place for every request at once, by search with backtracking: up to 12 requests on 4 devices take no time.

    Args:
        requests: All of them are to be placed.
        free: MB that each device has to give.

    Returns:
        For each request the numbers of its devices, rising; None where no placement of all of them exists.
    """
    # The bulkiest first: they have the fewest places, and a dead end shows early.
    order = sorted(range(len(requests)), key=lambda number: (-requests[number].memory_mb, -requests[number].count))
    needed = [requests[number].memory_mb * requests[number].count for number in order]
    still_needed = [sum(needed[step:]) for step in range(len(order) + 1)]
    dead_ends: set[tuple[int, tuple[int, ...]]] = set()

    def placed_from(step: int, left: tuple[int, ...]) -> list[tuple[int, ...]] | None:
        if step == len(order):
            return []
        # Equally full devices are interchangeable, so one dead end stands for all orders of the same figures.
        state = (step, tuple(sorted(left)))
        if still_needed[step] > sum(left) or state in dead_ends:
            return None
        request = requests[order[step]]
        # Into the tightest gaps first.
        fitting = sorted((d for d, room in enumerate(left) if room >= request.memory_mb), key=left.__getitem__)
        for devices in combinations(fitting, request.count):
            rest = tuple(room - request.memory_mb * (d in devices) for d, room in enumerate(left))
            others = placed_from(step + 1, rest)
            if others is not None:
                return [tuple(sorted(devices)), *others]
        dead_ends.add(state)
        return None

    found = placed_from(0, tuple(max(0, room) for room in free))
    if found is None:
        return None
    places: list[tuple[int, ...]] = [()] * len(requests)
    for number, devices in zip(order, found, strict=True):
        places[number] = devices
    return places
