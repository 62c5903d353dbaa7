"""Looking at jobs: where they stand, what they are made of, their stories. Readers wait for nobody, and nobody waits for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select

from rayzyme.checks import positive_number
from rayzyme.database import Database
from rayzyme.database.change_numbers import next_change_number
from rayzyme.database.events import JOB_SUBJECT
from rayzyme.database.tables import Cluster, Lease
from rayzyme.errors import UnknownJob
from rayzyme.jobs import capacity_leases
from rayzyme.jobs.durations import DurationBook, JobDuration
from rayzyme.jobs.fair_share import UsageBook
from rayzyme.jobs.job import Job
from rayzyme.jobs.look import JobLook
from rayzyme.jobs.records import AttemptRecord, EventRecord, JobRecord, TaskRecord
from rayzyme.jobs.rows import (
    ATTEMPT,
    ATTEMPT_COLUMNS,
    EVENT,
    EVENT_COLUMNS,
    JOB,
    JOB_COLUMNS,
    RECORD_COLUMNS,
    TASK,
    TASK_COLUMNS,
    attempt_of,
    chunks,
    event_of,
    job_of,
    moment,
    record_of,
    task_of,
)
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.usage_accounts import usage_book
from rayzyme.monitoring.progress_sharing import shared_progress

# Each with the times of its newest attempt.
_NEWEST = and_(ATTEMPT.c.job_id == TASK.c.job_id, ATTEMPT.c.task == TASK.c.name, ATTEMPT.c.number == TASK.c.attempt)
_TASKS_IN_ORDER: Final = select(*TASK_COLUMNS).outerjoin(ATTEMPT, _NEWEST).order_by(TASK.c.position, TASK.c.id)
_JOBS_IN_ORDER: Final = select(*JOB_COLUMNS).order_by(JOB.c.submission_time, JOB.c.id)
_CHANGED_VERSIONS: Final = (
    select(JOB.c.id, JOB.c.public_id, JOB.c.version)
    .where(JOB.c.change_number >= bindparam("cursor"))
    .order_by(JOB.c.submission_time, JOB.c.id)
)
_NUMBERED: Final = _JOBS_IN_ORDER.where(JOB.c.id.in_(bindparam("numbers", expanding=True)))
_SPECS: Final = select(JOB.c.public_id, JOB.c.spec).where(JOB.c.public_id.in_(bindparam("ids", expanding=True)))
_LOOKED_AT: Final = select(JOB.c.public_id, JOB.c.state, JOB.c.version, JOB.c.error_message).where(
    JOB.c.public_id.in_(bindparam("ids", expanding=True))
)
_LOOKED_AT_TOGETHER: Final = 500
_LIVE: Final = [state.value for state in JobState if state not in FINAL]
_KEPT_LOOKS: Final = 32
# Of jobs that ended before anybody looked for changes, by the clocks of those who ended them.
_CLOCKS_DIFFER_S: Final = 60.0


class JobReader:
    """What a `JobStore` answers.

    Attributes:
        database: Where the jobs are.
    """

    def __init__(self, database: Database, clock: Callable[[], float], half_life: float) -> None:
        """Arguments as for `JobStore`."""
        self.database = database
        self._clock = clock
        self._half_life = positive_number("half_life", half_life)
        self._looks: deque[tuple[float, int]] = deque(maxlen=_KEPT_LOOKS)
        self._looks_lock = threading.Lock()

    def job(self, job_id: str) -> Job:
        """Where a job stands.

        Raises:
            UnknownJob: There is no such job.
        """
        found = self._jobs(JOB.c.public_id == job_id)
        if not found:
            raise _unknown(job_id)
        return found[0]

    def record(self, job_id: str) -> JobRecord:
        """A job with what people want to know of it.

        Raises:
            UnknownJob: There is no such job.
        """
        found = self._records(select(*RECORD_COLUMNS).where(JOB.c.public_id == job_id))
        if not found:
            raise _unknown(job_id)
        return found[0]

    def records(
        self,
        *,
        states: Sequence[JobState] | None = None,
        owner: str | None = None,
        limit: int | None = None,
        name: str | None = None,
        before: int | None = None,
    ) -> list[JobRecord]:
        """Jobs, the newest first.

        Args:
            states: In which of these; None takes all.
            owner: Whose; None takes everybody's.
            limit: At most so many.
            name: How their names begin; None takes all.
            before: Only those with a smaller row number, such as that of the last one of the page before.
        """
        wanted = select(*RECORD_COLUMNS).order_by(JOB.c.id.desc()).limit(limit)
        if states is not None:
            wanted = wanted.where(JOB.c.state.in_([state.value for state in states]))
        if owner is not None:
            wanted = wanted.where(JOB.c.owner == owner)
        if name is not None:
            wanted = wanted.where(JOB.c.name.startswith(name, autoescape=True))
        return self._records(wanted if before is None else wanted.where(JOB.c.id < before))

    def looks(self, job_ids: Sequence[str]) -> dict[str, JobLook]:
        """Where jobs stand and how far they are, by id; ids that no job has are left out."""
        found: dict[str, JobLook] = {}
        now = self._clock()
        with self.database.read() as connection:
            for part in chunks(job_ids, _LOOKED_AT_TOGETHER):
                rows = connection.execute(_LOOKED_AT, {"ids": part}).all()
                running = [row.public_id for row in rows if row.state == JobState.RUNNING.value]
                progress = shared_progress(connection, running, now) if running else {}
                found |= {row.public_id: JobLook.of(*row, progress.get(row.public_id)) for row in rows}
        return found

    def moves(self, job_id: str, after: int) -> list[EventRecord]:
        """The lines of a job's story that tell of a new state, oldest first, only those with a `seq` above `after`."""
        moved = select(*EVENT_COLUMNS).where(EVENT.c.to_state.is_not(None))
        story = moved.where(EVENT.c.subject == JOB_SUBJECT + job_id, EVENT.c.seq > after).order_by(EVENT.c.seq)
        with self.database.read() as connection:
            return [event_of(row) for row in connection.execute(story)]

    def states_of(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Where many jobs stand.

        Raises:
            UnknownJob: There is no job of one of the ids.
        """
        found: dict[str, JobState] = {}
        with self.database.read() as connection:
            for part in chunks(job_ids):
                rows = connection.execute(select(JOB.c.public_id, JOB.c.state).where(JOB.c.public_id.in_(part)))
                found |= {job_id: JobState(state) for job_id, state in rows}
        for job_id in job_ids:
            if job_id not in found:
                raise _unknown(job_id)
        return found

    def records_with_tasks(self, job_ids: Sequence[str]) -> dict[str, tuple[JobRecord, list[TaskRecord]]]:
        """What `record` and `tasks` tell, for many jobs at once; ids that no job has are left out."""
        now = moment(self._clock())
        found: dict[str, tuple[JobRecord, list[TaskRecord]]] = {}
        with self.database.read() as connection:
            for part in chunks(job_ids):
                of_row: dict[int, list[TaskRecord]] = {}
                for row in connection.execute(select(*RECORD_COLUMNS).where(JOB.c.public_id.in_(part))):
                    record = record_of(row, now)
                    found[record.job.job_id] = (record, of_row.setdefault(record.job.sequence, []))
                tasks = _TASKS_IN_ORDER.add_columns(TASK.c.job_id).where(TASK.c.job_id.in_(of_row))
                for row in connection.execute(tasks):
                    of_row[row.job_id].append(task_of(row))
        return found

    def numbered(self, first: int, last: int) -> list[JobRecord]:
        """The jobs whose row numbers are from `first` to `last`, in that order."""
        return self._records(select(*RECORD_COLUMNS).where(JOB.c.id.between(first, last)).order_by(JOB.c.id))

    def beginning_with(self, prefix: str, limit: int = 10) -> list[JobRecord]:
        """Jobs whose ids begin so, at most `limit`, the newest first."""
        begins = JOB.c.public_id.startswith(prefix, autoescape=True)
        return self._records(select(*RECORD_COLUMNS).where(begins).order_by(JOB.c.id.desc()).limit(limit))

    def live_jobs(self) -> list[Job]:
        """All jobs that have not ended, those submitted first first."""
        return self._jobs(JOB.c.state.in_(_LIVE))

    def changed_since(self, since: float, known: Mapping[str, Job] = MappingProxyType({})) -> list[Job]:
        """All jobs that were changed by anybody since a moment, perhaps some that were changed before it.

        Other machines' clocks do not matter: what this store showed at an earlier call is remembered, and what it cannot have
        shown at the last call before `since` is given.

        Args:
            since: Seconds since 1970 by this store's clock, such as the time before the last call of this method.
            known: Jobs by id as the caller has them; those that are still so may be left out.
        """
        looked_at = self._clock()
        with self._looks_lock:
            cursor = max((number for at, number in self._looks if at <= since), default=None)
        with self.database.read() as connection:
            number = next_change_number(connection)
            if cursor is None:
                recent = JOB.c.completion_time >= moment(max(0.0, since - _CLOCKS_DIFFER_S))
                jobs = select_jobs(connection, or_(JOB.c.state.in_(_LIVE), recent))
            else:
                # Most of what changed is the caller's own doing, and a whole row costs ten times as much.
                changed = [
                    number
                    for number, job_id, version in connection.execute(_CHANGED_VERSIONS, {"cursor": cursor})
                    if job_id not in known or known[job_id].version < version
                ]
                jobs = [
                    job_of(row) for part in chunks(changed) for row in connection.execute(_NUMBERED, {"numbers": part})
                ]
        with self._looks_lock:
            self._looks.append((looked_at, number))
        return jobs

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self.database.read() as connection:
            rows = connection.execute(select(JOB.c.state, func.count()).group_by(JOB.c.state)).all()
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    def specs(self, job_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """What jobs are made of, by id; ids that no job has are left out."""
        found: dict[str, Mapping[str, Any]] = {}
        with self.database.read() as connection:
            for part in chunks(job_ids):
                rows = connection.execute(_SPECS, {"ids": part})
                found |= {job_id: spec or {} for job_id, spec in rows}
        return found

    def tasks(self, job_id: str) -> list[TaskRecord]:
        """The tasks of a job of which anything was committed, in that order.

        Raises:
            UnknownJob: There is no such job.
        """
        tasks = self._of_job(job_id, lambda number: _TASKS_IN_ORDER.where(TASK.c.job_id == number))
        return [task_of(row) for row in tasks]

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Every try at a job and its tasks, in the order in which they began.

        Raises:
            UnknownJob: There is no such job.
        """
        wanted = select(*ATTEMPT_COLUMNS).order_by(ATTEMPT.c.id)
        return [
            attempt_of(row) for row in self._of_job(job_id, lambda number: wanted.where(ATTEMPT.c.job_id == number))
        ]

    def events(self, job_id: str, after: int = 0) -> list[EventRecord]:
        """The story of a job, oldest line first.

        Args:
            job_id: Which one.
            after: Only lines behind the one of this `id`.

        Raises:
            UnknownJob: There is no such job.
        """
        story = select(*EVENT_COLUMNS).where(EVENT.c.subject == JOB_SUBJECT + job_id, EVENT.c.id > after)
        return [event_of(row) for row in self._of_job(job_id, lambda _: story.order_by(EVENT.c.seq))]

    def recent_durations(self, limit: int) -> DurationBook:
        """How long the last `limit` completed jobs took."""
        wanted = (
            select(JOB.c.kind, JOB.c.job_type, JOB.c.task_count, JOB.c.started_at, JOB.c.completion_time)
            .where(JOB.c.state == JobState.COMPLETED.value, JOB.c.started_at.is_not(None))
            .order_by(JOB.c.id.desc())
            .limit(limit)
        )
        with self.database.read() as connection:
            rows = connection.execute(wanted).all()
        return DurationBook(
            JobDuration(kind, job_type or "", task_count, max(0.0, (ended - began).total_seconds()))
            for kind, job_type, task_count, began, ended in reversed(rows)
        )

    def usage(self) -> UsageBook:
        """What owners used, by jobs that run no more."""
        with self.database.read() as connection:
            return usage_book(connection, self._half_life)

    def lapsed(self, now: float) -> list[Job]:
        """Running jobs whose leases nobody renewed."""
        return self._jobs(capacity_leases.without_lease(moment(now)))

    def no_longer_running(self, attempts: Mapping[str, int]) -> list[str]:
        """Which of these jobs, given with the number of the attempt that runs, are not in that attempt any more, or lost what
        they hold.
        """
        now, going_on = moment(self._clock()), set()
        with self.database.read() as connection:
            for part in chunks(attempts):
                rows = connection.execute(
                    select(JOB.c.public_id, JOB.c.attempt).where(
                        JOB.c.public_id.in_(part),
                        JOB.c.state == JobState.RUNNING.value,
                        ~capacity_leases.without_lease(now),
                    )
                )
                going_on |= {job_id for job_id, attempt in rows if attempts[job_id] == attempt}
        return [job_id for job_id in attempts if job_id not in going_on]

    def lease_owners(self, job_ids: Sequence[str]) -> dict[str, set[str]]:
        """Who holds live leases for these jobs, by job id."""
        now: dict[str, set[str]] = {}
        with self.database.read() as connection:
            for part in chunks(job_ids):
                rows = connection.execute(
                    select(Lease.purpose, Lease.owner).where(
                        Lease.purpose.in_(part), Lease.expires_at > moment(self._clock())
                    )
                )
                for job_id, owner in rows:
                    now.setdefault(job_id, set()).add(owner)
        return now

    def cluster(self, name: str) -> dict[str, Any] | None:
        """What was last noted of a cluster; None where nothing ever was."""
        with self.database.read() as connection:
            figures: dict[str, Any] | None = connection.execute(
                select(Cluster.figures).where(Cluster.name == name)
            ).scalar()
        return figures

    def _jobs(self, condition: Any) -> list[Job]:
        with self.database.read() as connection:
            return select_jobs(connection, condition)

    def _records(self, wanted: Select[Any]) -> list[JobRecord]:
        now = moment(self._clock())
        with self.database.read() as connection:
            return [record_of(row, now) for row in connection.execute(wanted)]

    def _of_job(self, job_id: str, wanted: Callable[[int], Select[Any]]) -> list[Any]:
        with self.database.read() as connection:
            number = connection.execute(select(JOB.c.id).where(JOB.c.public_id == job_id)).scalar()
            if number is None:
                raise _unknown(job_id)
            return list(connection.execute(wanted(number)))


def select_jobs(connection: Connection, condition: Any) -> list[Job]:
    """The jobs that a condition on their rows holds for, those submitted first first."""
    return [job_of(row) for row in connection.execute(_JOBS_IN_ORDER.where(condition))]


def _unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job_id}; `rayzyme list-jobs` shows those that there are")
