"""How long a job is likely to take: the median of what jobs like it took, else what its submitter estimates."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

from rayzyme.jobs.job import Job

KEPT_RECORDS: Final = 50
NEEDED_RECORDS: Final = 3
SECONDS_PER_TASK: Final = 60.0
_UNKNOWN_PERCENTILE: Final = 0.9


@dataclass(frozen=True, slots=True)
class JobDuration:
    """How long a completed job ran.

    Attributes:
        kind: Its kind.
        job_type: Which workflow or operation.
        task_count: Tasks that it had.
        seconds: How long its last attempt ran.
    """

    kind: str
    job_type: str
    task_count: int
    seconds: float


def size_class(task_count: int) -> int:
    """Jobs of one class have alike numbers of tasks: 1, 2 to 3, 4 to 7, 8 to 15, ..."""
    return task_count.bit_length()


class DurationBook:
    """The last durations of each kind, type and size class of jobs."""

    def __init__(self, records: Iterable[JobDuration] = ()) -> None:
        """Open the book with what is recorded, oldest first."""
        self._records: dict[Hashable, deque[float]] = {}
        self._medians: dict[Hashable, float] = {}
        self._all: list[float] = []
        for record in records:
            self._add((record.kind, record.job_type, size_class(record.task_count)), record.seconds)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded at all."""
        return not self._all

    @property
    def known_classes(self) -> int:
        """Of how many kinds, types and size classes there are enough records."""
        return len(self._medians)

    def is_known(self, job: Job) -> bool:
        """Whether there are enough records of its like."""
        return self.likeness(job) in self._medians

    def add(self, job: Job, seconds: float) -> None:
        """A job has completed after so many seconds."""
        self._add(self.likeness(job), seconds)

    def likeness(self, job: Job) -> Hashable:
        """Jobs with the same have the same expected duration, once that is known."""
        return job.kind, job.job_type, size_class(job.task_count)

    def expected_s(self, job: Job) -> float:
        """Seconds that a job is likely to take.

        With at least `NEEDED_RECORDS` of its like, the median of the last `KEPT_RECORDS`. Otherwise its submitter's estimate, and
        without one the 90th percentile of everything: it goes neither before the jobs known to be short nor after those known
        to be the longest. With no records at all, a minute for each of its tasks.
        """
        known = self._medians.get(self.likeness(job), job.estimated_seconds)
        if known is not None:
            return known
        if self._all:
            return self._all[math.ceil(_UNKNOWN_PERCENTILE * len(self._all)) - 1]
        return job.task_count * SECONDS_PER_TASK

    def _add(self, key: Hashable, seconds: float) -> None:
        kept = self._records.setdefault(key, deque(maxlen=KEPT_RECORDS))
        if len(kept) == KEPT_RECORDS:
            del self._all[bisect_left(self._all, kept[0])]
        kept.append(seconds)
        insort(self._all, seconds)
        if len(kept) >= NEEDED_RECORDS:
            self._medians[key] = median(kept)
