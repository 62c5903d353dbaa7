"""A heap that things leave without being looked for: a new ticket makes void what was filed under the old one."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

from rayzyme.jobs.job import Job

NO_TICKET = -1


class Ticketed(Protocol):
    """Something that can be filed.

    Attributes:
        ticket: The number that it is filed under; no two filings of anything in one heap share one.
    """

    ticket: int


Item = TypeVar("Item", bound=Ticketed)


class LazyHeap(Generic[Item]):
    """What is filed, by place, then by the submission time and sequence of the job that it is filed for."""

    __slots__ = ("_filed",)

    def __init__(self) -> None:
        self._filed: list[tuple[float, float, int, int, Item]] = []

    def __len__(self) -> int:
        """How many are filed, void ones included."""
        return len(self._filed)

    def push(self, place: float, job: Job, item: Item, live: int) -> bool:
        """File something under its ticket; `live` is about how many may be valid.

        Returns:
            Whether it is the first now.
        """
        filed = self._filed
        if len(filed) > 4 * live + 64:
            filed[:] = [old for old in filed if old[3] == old[4].ticket]
            heapq.heapify(filed)
        heapq.heappush(filed, (place, job.submitted_at, job.sequence, item.ticket, item))
        return filed[0][4] is item

    def first(self) -> Item | None:
        """The first of what is valid."""
        filed = self._filed
        while filed and filed[0][3] != filed[0][4].ticket:
            heapq.heappop(filed)
        return filed[0][4] if filed else None

    def first_place(self) -> float:
        """The place of the first; there must be one."""
        return self._filed[0][0]

    def first_sequence(self) -> int:
        """The sequence of the job that the first was filed for; there must be one."""
        return self._filed[0][2]
