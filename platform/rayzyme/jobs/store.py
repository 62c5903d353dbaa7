"""The store of jobs: the one memory of what was accepted, tried and committed.

Whatever is told by a method that writes is on the disk when it returns. Every change is one transaction with its event; it
applies only where the job still is what its writer saw. Readers wait for nobody. Safe under threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, insert, update
from sqlalchemy.exc import IntegrityError

from rayzyme.checks import positive_number
from rayzyme.database import Database, open_database
from rayzyme.database.events import current_actor, record_event
from rayzyme.database.tables import Cluster
from rayzyme.errors import DatabaseError, ValidationError
from rayzyme.jobs import capacity_leases, role_lease
from rayzyme.jobs.applying import Batch, Rules
from rayzyme.jobs.changes import Applied, Change
from rayzyme.jobs.fair_share import DEFAULT_HALF_LIFE
from rayzyme.jobs.group_commit import GroupCommit
from rayzyme.jobs.job import Job, JobRequest, Resources
from rayzyme.jobs.reading import JobReader, select_jobs
from rayzyme.jobs.role import ProcessIdentity, RoleHolder
from rayzyme.jobs.rows import JOB, moment
from rayzyme.jobs.scheduling_config import SchedulingConfig
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.submitting import Call, accept, check_request, has_queue_limit, use_quotas_of_scheduler

_ALL_STATES: Final = frozenset(JobState)
_TRIES: Final = 5


class JobStore(JobReader):
    """Jobs in a database.

    Attributes:
        database: Where they are.
    """

    def __init__(
        self,
        database: Database | None = None,
        *,
        clock: Callable[[], float] = time.time,
        lease_ttl: float = 30.0,
        half_life: float = DEFAULT_HALF_LIFE,
    ) -> None:
        """Use a database.

        Args:
            database: Where the jobs are; None opens the one of the settings.
            clock: Seconds since 1970. Leases are judged by it, so all stores of a database must agree on it within seconds.
            lease_ttl: Seconds after which what a job holds lapses unless it is renewed.
            half_life: Seconds in which half of what an owner used is forgotten.

        Raises:
            ValidationError: `lease_ttl` or `half_life` is not a positive number.
            DatabaseError: The database cannot be opened.
        """
        self._lease_ttl = positive_number("lease_ttl", lease_ttl)
        super().__init__(open_database() if database is None else database, clock, half_life)
        self._actor = current_actor()
        self._group = GroupCommit(self._accept)

    # Accepting.

    def submit(
        self, requests: Sequence[JobRequest], *, quotas: SchedulingConfig | None = None, actor: str | None = None
    ) -> list[str]:
        """Accept jobs, all or none; what several threads submit at once is written together.

        Args:
            requests: What to do.
            quotas: How many jobs of an owner may wait, where no scheduler lives whose settings say that; None does not ask.
            actor: Who asks; None names the user and machine of this process.

        Returns:
            Their ids in order; where a request with its idempotency key was accepted before, the id from then.

        Raises:
            ValidationError: A request cannot be written; names the field.
            IdempotencyConflict: A key was used for another request.
            QuotaExceeded: An owner has as many jobs waiting as they may.
            DatabaseError: The database cannot be used now.
        """
        return self._group.submit(Call([check_request(request) for request in requests], quotas, actor))

    def submit_again(self, job_id: str) -> str:
        """Accept a job that has ended once more, as a new one with `retry_of`; its id.

        Raises:
            UnknownJob: There is no such job.
            ValidationError: It has not ended, or only the program that submitted it can submit it.
        """
        record, spec = self.record(job_id), self.specs([job_id])[job_id]
        job = record.job
        if job.state not in FINAL:
            raise ValidationError(f"{job_id} is {job.state}: only a job that has ended can be tried again")
        if not record.is_durable:
            raise ValidationError(
                f"{job_id} has tasks that cannot be imported by other processes: submit it again from the program that made it"
            )
        request = JobRequest(
            name=job.name, owner=job.owner, spec=spec, kind=job.kind, job_type=job.job_type, priority=job.priority,
            metadata=record.metadata, task_count=job.task_count, needs=job.needs, max_site_faults=job.max_site_faults,
            retry_of=job_id, estimated_seconds=job.estimated_seconds,
        )  # fmt: skip
        return self.submit([request])[0]

    def _accept(self, calls: Sequence[Call]) -> None:
        for left in reversed(range(_TRIES)):
            try:
                with self.database.begin() as connection:
                    now = self._clock()
                    use_quotas_of_scheduler(calls, role_lease.holder(connection, moment(now)))
                    if any(has_queue_limit(call) for call in calls):
                        self.database.enter(connection, "quotas")
                    accept(connection, calls, now, self._actor)
            except IntegrityError as error:
                # Another process was first with an idempotency key: its job is there now, and is found.
                for call in calls:
                    call.outcome = None
                if not left:
                    raise DatabaseError(
                        f"jobs were refused by the database {self.database.url}: {error.orig}"
                    ) from error
            else:
                return

    # Changing.

    def apply(
        self, changes: Sequence[Change], *, capacity: Resources | None = None, role_token: int | None = None
    ) -> list[Applied]:
        """Write changes, those that apply, in one transaction and in their order.

        Args:
            changes: What is to happen.
            capacity: What there is of each resource; what is not named is not there. None where no change acquires anything.
            role_token: Of the scheduler's role: where that is somebody else's now, every change is refused.

        Returns:
            What became of each. A result that came too late is refused, and an event `late_result` tells of it.

        Raises:
            IllegalTransition: A change moves a job as none may move; the text is the job's story. Nothing is written.
            ValidationError: A change acquires something and `capacity` is not given. Nothing is written.
            DatabaseError: The database cannot be used now; nothing is written.
        """
        if not changes:
            return []
        touches_leases = any(change.acquire or change.release or change.to in FINAL for change in changes)
        with self.database.begin(exclusive=capacity_leases.SECTION if touches_leases else None) as connection:
            now = self._clock()
            if role_token is not None and not role_lease.is_held(connection, role_token, moment(now)):
                ids = {change.job_id for change in changes}
                jobs = {job.job_id: job for job in select_jobs(connection, JOB.c.public_id.in_(ids))}
                return [Applied(jobs.get(change.job_id), False, "no longer the scheduler") for change in changes]
            batch = Batch(connection, changes, Rules(now, self._lease_ttl, self._half_life, capacity))
            applied = [batch.take(change) for change in changes]
            tokens = batch.write()
        return [
            replace(outcome, token=tokens.get(change.job_id)) if outcome.accepted and change.acquire else outcome
            for change, outcome in zip(changes, applied, strict=True)
        ]

    def request_cancel(self, job_id: str, actor: str | None = None) -> bool:
        """Cancel a job: at once where it waits, otherwise by asking its runner; False where it has ended already.

        Args:
            job_id: Which one.
            actor: Who wants that; None names the user and machine of this process.

        Raises:
            UnknownJob: There is no such job.
        """

        def decide(job: Job, now: float) -> dict[str, Any] | None:
            if job.cancel_requested:
                return None
            wish: dict[str, Any] = {"values": {"cancel_requested_at": now}, "reason": "cancelling was asked for"}
            if job.state is JobState.QUEUED:
                wish |= {"to": JobState.CANCELLED, "reason": "cancelled before it began"}
            return wish

        return self._steer(job_id, actor, _ALL_STATES - FINAL, decide)

    def hold(self, job_id: str, actor: str | None = None) -> bool:
        """Let a queued job wait until `unhold`; False where it waits no more. Arguments and errors as in `request_cancel`."""
        return self._set_held(job_id, actor, True, "held")

    def unhold(self, job_id: str, actor: str | None = None) -> bool:
        """Let a held job go on; False where it is not queued. Arguments and errors as in `request_cancel`."""
        return self._set_held(job_id, actor, False, "released")

    def note(self, job_id: str, reason: str, actor: str | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Add a line to a job's story.

        Raises:
            UnknownJob: There is no such job.
        """
        self._steer(job_id, actor, _ALL_STATES, lambda _job, _now: {"reason": reason, "data": dict(data or {})})

    # Leases.

    def renew(self, lease_owner: str) -> int:
        """Renew everything that `lease_owner` holds; how many leases that is."""
        with self.database.begin(exclusive=capacity_leases.SECTION) as connection:
            return capacity_leases.renew(connection, lease_owner, moment(self._clock() + self._lease_ttl))

    # The cluster and the scheduler's role.

    def note_cluster(self, name: str, figures: Mapping[str, Any]) -> None:
        """Remember what a cluster has."""
        row = {"figures": dict(figures), "noted_at": moment(self._clock())}
        with self.database.begin(exclusive="clusters") as connection:
            if connection.execute(update(Cluster).where(Cluster.name == name).values(row)).rowcount == 0:
                connection.execute(insert(Cluster).values(name=name, **row))

    def take_role(
        self, identity: ProcessIdentity, info: Mapping[str, Any], provably_gone: Callable[[ProcessIdentity], bool]
    ) -> int | None:
        """Become the scheduler, where nobody is: the role is free or lapsed, one's own, or its holder is gone for certain.

        Args:
            identity: The process that asks.
            info: What it tells of itself, as JSON.
            provably_gone: Whether another process is.

        Returns:
            The token, larger than all before; None where somebody else is the scheduler.
        """
        with self._in_leases() as connection:
            now = self._clock()
            token = role_lease.take(
                connection, identity, info, moment(now), moment(now + self._lease_ttl), provably_gone
            )
            if token is not None:
                record_event(
                    connection, role_lease.SCHEDULER, "took the role", data={"token": token, **info}, at=moment(now)
                )
        return token

    def describe_role(self, token: int, info: Mapping[str, Any]) -> bool:
        """Have the scheduler tell something else of itself, its settings among it; False where somebody else is the scheduler.

        Args:
            token: Of its role.
            info: All that it tells, as JSON; what it told before is forgotten.
        """
        with self._in_leases() as connection:
            is_new = role_lease.describe(connection, token, info)
            if is_new:
                at = moment(self._clock())
                record_event(connection, role_lease.SCHEDULER, "was told other settings", data=dict(info), at=at)
        return is_new is not None

    def last_role_info(self) -> Mapping[str, Any]:
        """What the scheduler, or the last one that there was, told of itself."""
        with self.database.read() as connection:
            return role_lease.last_info(connection)

    def renew_role(self, token: int) -> bool:
        """Stay the scheduler; False where somebody else is."""
        with self._in_leases() as connection:
            return role_lease.renew(connection, token, moment(self._clock() + self._lease_ttl))

    def release_role(self, token: int) -> None:
        """Be the scheduler no longer."""
        with self._in_leases() as connection:
            role_lease.release(connection, token)

    def role(self) -> RoleHolder | None:
        """Who is the scheduler now."""
        with self.database.read() as connection:
            return role_lease.holder(connection, moment(self._clock()))

    def request_stop(self, actor: str | None = None) -> bool:
        """Ask the scheduler to end, wherever it is; False where there is none."""
        with self._in_leases() as connection:
            now = moment(self._clock())
            is_asked = role_lease.request_stop(connection, now, actor or self._actor)
            if is_asked:
                record_event(connection, role_lease.SCHEDULER, "asked to stop", actor=actor or self._actor, at=now)
        return is_asked

    def stop_requested(self) -> bool:
        """Whether somebody asked the scheduler to end."""
        with self.database.read() as connection:
            return role_lease.stop_requested(connection)

    # Inner.

    def _set_held(self, job_id: str, actor: str | None, is_held: bool, reason: str) -> bool:
        wish = {"values": {"is_held": is_held}, "reason": reason}
        return self._steer(job_id, actor, {JobState.QUEUED}, lambda job, _now: None if job.is_held is is_held else wish)

    def _steer(
        self,
        job_id: str,
        actor: str | None,
        states: Set[JobState],
        decide: Callable[[Job, float], dict[str, Any] | None],
    ) -> bool:
        """Change a job by what it is now; whether it is in one of `states`."""
        while True:
            job = self.job(job_id)
            if job.state not in states:
                return False
            wish = decide(job, self._clock())
            if wish is None:
                return True
            change = Change(
                job_id=job_id, attempt=job.attempt, states=frozenset({job.state}), actor=actor or self._actor, **wish
            )
            if self.apply([change])[0].accepted:
                return True

    def _in_leases(self) -> AbstractContextManager[Connection]:
        return self.database.begin(exclusive=capacity_leases.SECTION)
