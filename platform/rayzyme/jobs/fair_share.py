"""Who used how much: slot- and GPU-seconds of each owner, of which half is forgotten in every half-life.

What still runs counts as far as it has come. The book is made from stored rows and kept up by the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rayzyme.checks import positive_number
from rayzyme.jobs.job import Resources

DEFAULT_HALF_LIFE: Final = 86400.0
_SLOT: Final = "slot:"


@dataclass(frozen=True, slots=True)
class OwnerUsage:
    """What one owner's ended jobs used, as far as it still counts at a moment.

    Attributes:
        owner: Who.
        slot_s: Slot-seconds.
        gpu_s: GPU-seconds.
        at: The moment, in seconds since 1970.
    """

    owner: str
    slot_s: float
    gpu_s: float
    at: float


@dataclass(slots=True)
class _Running:
    owner: str
    slots: float
    gpus: float
    since: float


@dataclass(slots=True)
class _Account:
    """Both amounts as they stand at `at`, sums over what runs so that no question walks through it, and the newest answer."""

    slot_s: float = 0.0
    gpu_s: float = 0.0
    at: float = 0.0
    jobs: int = 0
    slots: float = 0.0
    gpus: float = 0.0
    slots_since: float = 0.0
    gpus_since: float = 0.0
    asked_at: float = -1.0
    answer: float = 0.0


def slots_of(needs: Resources) -> float:
    """How many slots of any kind are among what a job needs."""
    return sum(amount for resource, amount in needs.items() if resource.startswith(_SLOT))


class UsageBook:
    """The accounts of all owners."""

    def __init__(self, half_life: float = DEFAULT_HALF_LIFE, rows: Iterable[OwnerUsage] = ()) -> None:
        """Open the book.

        Args:
            half_life: Seconds in which half of what was used is forgotten.
            rows: What ended jobs used; several rows of one owner add up.

        Raises:
            ValidationError: `half_life` is not a positive number.
        """
        self.half_life = positive_number("half_life", half_life)
        self._accounts: dict[str, _Account] = {}
        self._running: dict[str, _Running] = {}
        # Sums over times since 1970 would lose the digits that a few seconds need.
        self._epoch = 0.0
        for row in rows:
            self._add(row.owner, row.slot_s, row.gpu_s, row.at)

    def begin(self, job_id: str, owner: str, needs: Resources, since: float) -> None:
        """A job runs since a moment."""
        self.end(job_id, since, 0.0)
        if not self._running:
            self._epoch = since
        running = _Running(owner, slots_of(needs), needs.get("gpu", 0.0), since)
        self._running[job_id] = running
        self._count(running, 1)

    def end(self, job_id: str, now: float, ran_s: float | None = None) -> None:
        """It runs no more, and ran for `ran_s` seconds or, where that is None, until now."""
        running = self._running.pop(job_id, None)
        if running is None:
            return
        self._count(running, -1)
        seconds = max(0.0, now - running.since if ran_s is None else ran_s)
        self._add(running.owner, running.slots * seconds, running.gpus * seconds, now)

    def slot_seconds(self, owner: str, now: float) -> float:
        """What `owner` used, as it counts now, with what runs."""
        account = self._accounts.get(owner)
        if account is None:
            return 0.0
        runs = account.slots * (now - self._epoch) - account.slots_since if account.jobs else 0.0
        return account.slot_s * self._kept(account.at, now) + runs

    def charge(self, owner: str, now: float) -> float:
        """What `owner` is charged now: slot-seconds, and one for each running job, so that those just started count too."""
        account = self._accounts.get(owner)
        if account is None:
            return 0.0
        # One decision asks for each owner as often as there are sets of needs.
        if account.asked_at != now:
            account.asked_at, account.answer = now, self.slot_seconds(owner, now) + account.jobs
        return account.answer

    def log2_of_ended(self, owner: str, at: float) -> float:
        """Binary logarithm of what the owner's ended jobs count at a moment; of all owners it changes alike with that moment."""
        account = self._accounts.get(owner)
        if account is None or account.slot_s <= 0.0:
            return float("-inf")
        return math.log2(account.slot_s) + (account.at - at) / self.half_life

    def gpu_seconds(self, owner: str, now: float) -> float:
        """The same in GPU-seconds."""
        account = self._accounts.get(owner)
        if account is None:
            return 0.0
        runs = account.gpus * (now - self._epoch) - account.gpus_since if account.jobs else 0.0
        return account.gpu_s * self._kept(account.at, now) + runs

    def running(self, owner: str) -> int:
        """How many of the owner's jobs run."""
        account = self._accounts.get(owner)
        return 0 if account is None else account.jobs

    def rows(self) -> list[OwnerUsage]:
        """What ended jobs used, to be stored."""
        return [
            OwnerUsage(owner, account.slot_s, account.gpu_s, account.at)
            for owner, account in sorted(self._accounts.items())
            if account.slot_s or account.gpu_s
        ]

    def _kept(self, at: float, now: float) -> float:
        return float(0.5 ** ((now - at) / self.half_life)) if now > at else 1.0

    def _add(self, owner: str, slot_s: float, gpu_s: float, at: float) -> None:
        account = self._accounts.setdefault(owner, _Account())
        later = max(at, account.at)
        for_old, for_new = self._kept(account.at, later), self._kept(at, later)
        account.slot_s = account.slot_s * for_old + slot_s * for_new
        account.gpu_s = account.gpu_s * for_old + gpu_s * for_new
        account.at, account.asked_at = later, -1.0

    def _count(self, running: _Running, sign: int) -> None:
        account = self._accounts.setdefault(running.owner, _Account())
        account.asked_at = -1.0
        account.jobs += sign
        if not account.jobs:
            account.slots = account.gpus = account.slots_since = account.gpus_since = 0.0
            return
        since = running.since - self._epoch
        account.slots += sign * running.slots
        account.gpus += sign * running.gpus
        account.slots_since += sign * running.slots * since
        account.gpus_since += sign * running.gpus * since
