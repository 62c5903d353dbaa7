"""What running jobs hold of the capacity: rows of `lease` whose purpose is the job. They lapse unless their holder renews them.

Everything here runs inside a transaction that is in the section `SECTION`, so that no two of them count at once.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, select, update

from rayzyme.database.tables import Lease
from rayzyme.jobs.job import Resources
from rayzyme.jobs.rows import JOB, chunks, table_of
from rayzyme.jobs.states import JobState

SECTION: Final = "leases"
# Amounts such as 0.1 CPU do not add up exactly.
_ROUNDING: Final = 1e-6
_LEASE: Final = table_of(Lease)
_OF_RESOURCES: Final = _LEASE.c.resource.in_(bindparam("resources", expanding=True))
_OF_JOBS: Final = _LEASE.c.purpose.in_(bindparam("jobs", expanding=True))
_HELD: Final = (
    select(_LEASE.c.resource, func.sum(_LEASE.c.amount), func.min(_LEASE.c.expires_at))
    .where(_OF_RESOURCES)
    .group_by(_LEASE.c.resource)
)
_HELD_BY_JOBS: Final = select(_LEASE.c.purpose, _LEASE.c.resource, _LEASE.c.amount).where(_OF_JOBS)
_HAS_LAPSED: Final = _LEASE.c.expires_at <= bindparam("now")
_FORGET_LAPSED: Final = delete(_LEASE).where(
    _LEASE.c.owner.in_(select(_LEASE.c.owner).where(_OF_RESOURCES, _HAS_LAPSED)), _HAS_LAPSED
)
_RELEASE: Final = delete(_LEASE).where(_OF_JOBS)
_TAKE: Final = insert(_LEASE).returning(_LEASE.c.purpose, _LEASE.c.token)


class LeaseBook:
    """What is held while a batch of changes is worked on, and what is to be written of it."""

    def __init__(
        self,
        connection: Connection,
        now: datetime,
        capacity: Resources,
        resources: Collection[str],
        releasing: Collection[str],
    ) -> None:
        """Read what is held.

        Args:
            connection: In the section.
            now: The time.
            capacity: What there is.
            resources: What may be taken.
            releasing: Jobs that may give back what they hold.
        """
        self._connection, self._now, self._capacity = connection, now, capacity
        self._held: dict[str, float] = {}
        self._by_job: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._released: set[str] = set()
        self._taken: dict[str, tuple[Resources, str]] = {}
        if resources:
            self._read(resources, releasing)

    def lacking(self, needs: Resources) -> str | None:
        """What does not fit, in words; None where everything does."""
        for resource, amount in needs.items():
            total, held = self._capacity.get(resource, 0.0), self._held.get(resource, 0.0)
            if held + amount > total + _ROUNDING:
                return f"{amount:g} of {resource} is needed, {held:g} of {total:g} is held"
        return None

    def take(self, job_id: str, needs: Resources, owner: str) -> None:
        """The job holds `needs` from now on."""
        self._taken[job_id] = (needs, owner)
        for resource, amount in needs.items():
            self._held[resource] = self._held.get(resource, 0.0) + amount

    def release(self, job_id: str) -> None:
        """The job gives back everything."""
        needs, _ = self._taken.pop(job_id, ({}, ""))
        held = needs if job_id in self._released else {**self._by_job.get(job_id, {}), **needs}
        for resource, amount in held.items():
            if resource in self._held:
                self._held[resource] -= amount
        self._released.add(job_id)

    def write(self, expires_at: datetime, pid: int) -> dict[str, int]:
        """Write it; the largest token of each job that took something."""
        for part in chunks(self._released):
            self._connection.execute(_RELEASE, {"jobs": part})
        if not self._taken:
            return {}
        host = socket.gethostname()
        common: dict[str, Any] = {"host": host, "pid": pid, "expires_at": expires_at}
        rows = self._connection.execute(
            _TAKE,
            [
                {"resource": resource, "amount": amount, "purpose": job_id, "owner": owner, **common}
                for job_id, (needs, owner) in self._taken.items()
                for resource, amount in needs.items()
            ],
        )
        tokens: dict[str, int] = {}
        for job_id, token in rows:
            tokens[job_id] = max(token, tokens.get(job_id, 0))
        return tokens

    def _read(self, resources: Collection[str], releasing: Collection[str]) -> None:
        about = {"resources": list(resources), "now": self._now}
        held = self._connection.execute(_HELD, about).all()
        if any(lapses_at <= self._now for _, _, lapses_at in held):
            # What lapsed is gone now that somebody may take its place; until then a holder that overslept may renew it. With
            # a part of what a holder has goes all that lapsed of it: nobody goes on with half of what it needs.
            self._connection.execute(_FORGET_LAPSED, about)
            held = self._connection.execute(_HELD, about).all()
        self._held = {resource: amount for resource, amount, _ in held}
        for part in chunks(releasing):
            for purpose, resource, amount in self._connection.execute(_HELD_BY_JOBS, {"jobs": part}):
                self._by_job[purpose][resource] += amount


def renew(connection: Connection, owner: str, expires_at: datetime) -> int:
    """Renew everything that `owner` holds; how many leases that is."""
    renewed = connection.execute(update(Lease).where(Lease.owner == owner).values(expires_at=expires_at))
    return int(renewed.rowcount)


def without_lease(now: datetime) -> Any:
    """The condition that a job runs and nobody renewed what it holds."""
    live = and_(Lease.purpose == JOB.c.public_id, Lease.expires_at > now)
    return and_(JOB.c.state == JobState.RUNNING.value, ~exists().where(live))
