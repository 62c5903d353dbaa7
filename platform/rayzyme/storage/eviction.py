"""Which entries of a store go when there is need, and why. Pure: entries in, a plan out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rayzyme.storage.data_index import Entry

_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Departure:
    """An entry that is to go.

    Attributes:
        entry: Which.
        reason: Why, in words.
    """

    entry: Entry
    reason: str


def candidates(entries: Iterable[Entry]) -> Iterator[Departure]:
    """Who may go, in order: intermediates that nobody needs any more, then the longest unused; never what is pinned.

    Args:
        entries: The longest unused first.
    """
    free = [entry for entry in entries if not entry.pinned]
    yield from (Departure(entry, "an intermediate that nobody needs any more") for entry in free if entry.intermediate)
    yield from (Departure(entry, "the longest unused") for entry in free if not entry.intermediate)


def unneeded(entries: Iterable[Entry], now: float, max_age_days: float | None) -> list[Departure]:
    """What a clean-up takes: intermediates that nobody needs, and what was not used for so many days (None: none).

    Args:
        entries: The longest unused first.
        now: Seconds since the epoch.
        max_age_days: Days since the last use.
    """
    plan = []
    for departure in candidates(entries):
        days = (now - departure.entry.last_used) / _SECONDS_PER_DAY
        if departure.entry.intermediate:
            plan.append(departure)
        elif max_age_days is not None and days > max_age_days:
            plan.append(Departure(departure.entry, f"not used for {days:.1f} days"))
    return plan
