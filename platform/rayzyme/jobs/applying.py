"""Writing changes of jobs: each checked against what its job is now, and all that apply in one transaction.

A change brings its event, its tasks' rows, its attempts, leases and the owner's usage with it. The rows of a batch are read by
one query and written by one statement for each table, so that a batch costs little more than a single change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, case, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rayzyme.database.change_numbers import own_change_number
from rayzyme.database.documents import clean_text
from rayzyme.database.events import JOB_SUBJECT, ChainEnd, Line, append
from rayzyme.errors import ValidationError
from rayzyme.jobs.capacity_leases import LeaseBook
from rayzyme.jobs.changes import HOPS, Applied, Change, TaskChange
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.rows import ATTEMPT, EVENT, EVENT_COLUMNS, JOB, JOB_COLUMNS, TASK, chunks, event_of, job_of, moment
from rayzyme.jobs.states import FINAL, MOVES, JobState, check_move
from rayzyme.jobs.usage_accounts import UsageCharges
from rayzyme.jobs.vocabularies import job_status

LATE_RESULT: Final = "late_result"
"""Reason of the event that tells of a result that came too late to count."""

# In one order, so that no two transactions wait for each other.
_LOCKED_JOBS: Final[Select[Any]] = (
    select(*JOB_COLUMNS, JOB.c.queued_at, JOB.c.event_digest)
    .where(JOB.c.public_id.in_(bindparam("ids", expanding=True)))
    .order_by(JOB.c.id)
    .with_for_update()
)
_LOCKED_SPECS: Final[Select[Any]] = _LOCKED_JOBS.add_columns(JOB.c.spec)
_TASK_STATES: Final = select(TASK.c.job_id, TASK.c.name, TASK.c.attempt, TASK.c.state).where(
    TASK.c.job_id.in_(bindparam("rows", expanding=True)), TASK.c.name.in_(bindparam("names", expanding=True))
)
_JOB_UPDATE: Final = update(JOB).where(JOB.c.id == bindparam("row_id"))
_HELD_STATES: Final = frozenset({JobState.RUNNING, JobState.UNKNOWN})
_TIMES: Final = frozenset({"not_before", "cancel_requested_at"})
_TEXTS: Final = frozenset({"error_class", "error_message", "error_traceback"})
_LONGEST_CLASS: Final = 256


@dataclass(frozen=True, slots=True)
class Rules:
    """By what changes are written.

    Attributes:
        now: The time, in seconds since 1970.
        lease_ttl: Seconds after which what a job holds lapses.
        half_life: Seconds in which half of what an owner used is forgotten.
        capacity: What there is of each resource; None where no change may acquire anything.
    """

    now: float
    lease_ttl: float
    half_life: float
    capacity: Resources | None = None


@dataclass(slots=True)
class _Standing:
    """A job as the changes before in the batch leave it."""

    job: Job
    row_id: int
    queued_at: datetime | None
    spec: Mapping[str, Any] | None
    columns: dict[str, Any] = field(default_factory=dict)


class Batch:
    """Changes that are worked on in one transaction."""

    def __init__(self, connection: Connection, changes: Sequence[Change], rules: Rules) -> None:
        """Read, and lock, what the changes are about."""
        self._connection, self._rules, self._at = connection, rules, moment(rules.now)
        self._standings: dict[str, _Standing] = {}
        self._ends: dict[str, ChainEnd] = {}
        self._lines: list[Line] = []
        self._tasks: dict[tuple[int, str], tuple[int, JobState]] = {}
        self._task_rows: dict[tuple[int, str], dict[str, Any]] = {}
        self._attempt_rows: dict[tuple[int, str, int], dict[str, Any]] = {}
        self._starts: dict[str, dict[str, Any]] = {}
        self._charges = UsageCharges()
        # What a job is made of never changes, and whoever starts it needs it.
        begins = any(change.new_attempt is not None for change in changes)
        self._read_jobs({change.job_id for change in changes}, _LOCKED_SPECS if begins else _LOCKED_JOBS)
        self._read_tasks(changes)
        self._leases = self._open_leases(changes)

    def take(self, change: Change) -> Applied:
        """Note what a change does, or why it does not apply."""
        standing = self._standings.get(change.job_id)
        if standing is None:
            return Applied(None, False, f"there is no job {change.job_id}")
        why = self._refusal(standing, change)
        if why is not None:
            if change.tasks or change.to is JobState.COMPLETED:
                self._tell(standing, change, LATE_RESULT, {**_told(change), "refused": why, "attempt": change.attempt})
            return Applied(standing.job, False, why)
        self._carry_out(standing, change)
        return Applied(standing.job, True, spec=None if change.new_attempt is None else standing.spec or {})

    def write(self) -> dict[str, int]:
        """Write everything; the largest token of each job that acquired something."""
        connection, rules = self._connection, self._rules
        tokens = self._leases.write(self._at + timedelta(seconds=rules.lease_ttl), os.getpid())
        for job_id, row in self._starts.items():
            row["lease_token"] = tokens.get(job_id)
        if not self._lines:
            return tokens
        change_number = own_change_number(connection)
        append(connection, self._lines, self._ends)
        rows = []
        for job_id in dict.fromkeys(line.subject.removeprefix(JOB_SUBJECT) for line in self._lines):
            standing, end = self._standings[job_id], self._ends[JOB_SUBJECT + job_id]
            ended = {"version": end.seq, "event_digest": end.digest, "change_number": change_number}
            rows.append({"row_id": standing.row_id, **standing.columns, **ended})
        for group in _by_columns(rows):
            connection.execute(_JOB_UPDATE, group)
        for group in _by_columns(self._task_rows.values()):
            connection.execute(_task_upsert(connection.dialect.name, tuple(group[0])), group)
        if self._attempt_rows:
            connection.execute(_attempt_upsert(connection.dialect.name), list(self._attempt_rows.values()))
        self._charges.write(connection, rules.now, rules.half_life)
        return tokens

    # Reading.

    def _read_jobs(self, job_ids: set[str], wanted: Select[Any]) -> None:
        for part in chunks(sorted(job_ids)):
            for row in self._connection.execute(wanted, {"ids": part}):
                job = job_of(row)
                self._standings[job.job_id] = _Standing(job, row.id, row.queued_at, row._mapping.get("spec"))
                self._ends[JOB_SUBJECT + job.job_id] = ChainEnd(job.version, row.event_digest)

    def _read_tasks(self, changes: Sequence[Change]) -> None:
        about = [(change, task) for change in changes for task in change.tasks if change.job_id in self._standings]
        for part in chunks(about):
            wanted = {
                "rows": list({self._standings[change.job_id].row_id for change, _ in part}),
                "names": list({task.task for _, task in part}),
            }
            for row_id, name, attempt, state in self._connection.execute(_TASK_STATES, wanted):
                self._tasks[row_id, name] = attempt, JobState(state)

    def _open_leases(self, changes: Sequence[Change]) -> LeaseBook:
        resources = {resource for change in changes for resource in change.acquire}
        if resources and self._rules.capacity is None:
            raise ValidationError("a change acquires something, so `apply` must be told the capacity")
        releasing = [change.job_id for change in changes if _releases(change)] if resources else []
        return LeaseBook(self._connection, self._at, self._rules.capacity or {}, resources, releasing)

    # Deciding.

    def _refusal(self, standing: _Standing, change: Change) -> str | None:
        job = standing.job
        if job.state not in change.states or job.attempt != change.attempt:
            wanted = " or ".join(sorted(change.states))
            return f"{job.job_id} is {job.state} in attempt {job.attempt}, not {wanted} in attempt {change.attempt}"
        if change.to is not None and change.to not in MOVES[job.state]:
            check_move(job.state, change.to, self._story(job))
        if change.to is JobState.RUNNING and job.state is JobState.QUEUED:
            if job.cancel_requested:
                return f"the user of {job.job_id} has cancelled it"
            if job.is_held:
                return f"the user of {job.job_id} holds it"
        for task in change.tasks:
            attempt, state = self._tasks.get((standing.row_id, task.task), (0, JobState.QUEUED))
            is_undone = state is JobState.COMPLETED and task.state is not JobState.COMPLETED
            if task.attempt < attempt or (task.attempt == attempt and is_undone):
                return f"task {task.task} of {job.job_id} is {state} in attempt {attempt}, past attempt {task.attempt}"
        return self._leases.lacking(change.acquire) if change.acquire else None

    def _story(self, job: Job) -> list[str]:
        wanted = select(*EVENT_COLUMNS).where(EVENT.c.subject == JOB_SUBJECT + job.job_id).order_by(EVENT.c.seq)
        return [event_of(row).to_text() for row in self._connection.execute(wanted)]

    # Noting.

    def _carry_out(self, standing: _Standing, change: Change) -> None:
        before = standing.job
        columns = standing.columns
        columns |= {name: _column(name, value) for name, value in change.values.items()}
        changed = _job_fields(change.values)
        if change.new_attempt is not None:
            columns["attempt"] = changed["attempt"] = change.new_attempt
        if _releases(change):
            self._leases.release(before.job_id)
        if change.acquire:
            self._leases.take(before.job_id, change.acquire, change.lease_owner)
        if change.to is not None:
            columns |= {"state": change.to.value, "status": job_status(change.to)}
            changed["state"] = change.to
            self._move(standing, change, change.to, changed)
        standing.job = replace(before, **changed)
        for task in change.tasks:
            self._note_task(standing, task)
        data = {**change.data, **_told(change)}
        if change.new_attempt is not None:
            data["attempt"] = change.new_attempt
        self._tell(standing, change, change.reason, data, before.state if change.to is not None else None)

    def _move(self, standing: _Standing, change: Change, to: JobState, changed: dict[str, Any]) -> None:
        before, columns = standing.job, standing.columns
        if to is JobState.RUNNING and before.state is JobState.QUEUED:
            columns["started_at"], changed["started_at"] = self._at, self._at.timestamp()
        if before.state in _HELD_STATES and to not in _HELD_STATES:
            self._charges.add(before, self._rules.now)
        if to is JobState.QUEUED:
            columns |= {"queued_at": self._at, "started_at": None}
            changed["started_at"] = None
        if to in FINAL:
            columns["completion_time"] = self._at
        if before.state in _HELD_STATES or change.new_attempt is not None:
            self._note_job_attempt(standing, change, to)
        if to is JobState.QUEUED:
            standing.queued_at = self._at

    def _note_job_attempt(self, standing: _Standing, change: Change, to: JobState) -> None:
        number = change.new_attempt or standing.job.attempt
        row = self._attempt_row(standing.row_id, "", number, number)
        row["state"] = (JobState.FAILED if to is JobState.QUEUED else to).value
        if change.new_attempt is not None:
            row |= {"runner": change.lease_owner, "leased_at": self._at, "started_at": self._at}
            row["queued_at"] = standing.queued_at
            self._starts[standing.job.job_id] = row
        if to not in _HELD_STATES:
            row |= {"committed_at": self._at, "error_class": _class_name(change.values.get("error_class"))}

    def _note_task(self, standing: _Standing, task: TaskChange) -> None:
        key = standing.row_id, task.task
        self._tasks[key] = task.attempt, task.state
        row = self._task_rows.setdefault(key, {"job_id": standing.row_id, "name": task.task})
        row |= {"attempt": task.attempt, "state": task.state.value}
        row |= {name: _column(name, value) for name, value in task.values.items()}
        error = task.values.get("error_class")
        is_retried = task.state is JobState.QUEUED and error is not None
        # One that waits for its first attempt, or for its next, has none to tell of.
        if not task.attempt or (task.state is JobState.QUEUED and not is_retried):
            return
        attempt = self._attempt_row(standing.row_id, task.task, task.attempt, standing.job.attempt)
        attempt["state"] = (JobState.FAILED if is_retried else task.state).value
        attempt["error_class"] = _class_name(error)
        attempt["runner"] = task.runner or attempt["runner"]
        attempt["node"] = task.node or attempt["node"]
        attempt |= {f"{hop}_at": moment(at) for hop, at in task.hops.items()}
        if (is_retried or task.state in FINAL) and "committed" not in task.hops:
            attempt["committed_at"] = self._at

    def _attempt_row(self, row_id: int, task: str, number: int, job_attempt: int) -> dict[str, Any]:
        key = row_id, task, number
        row = self._attempt_rows.get(key)
        if row is None:
            row = self._attempt_rows[key] = dict(
                _EMPTY_ATTEMPT, job_id=row_id, task=task, number=number, job_attempt=job_attempt
            )
        return row

    def _tell(
        self, standing: _Standing, change: Change, reason: str, data: Mapping[str, Any], left: JobState | None = None
    ) -> None:
        job = standing.job
        standing.job = replace(job, version=job.version + 1)
        to = change.to.value if left is not None and change.to is not None else None
        subject = JOB_SUBJECT + job.job_id
        self._lines.append(
            Line(subject, reason, change.actor, self._at, standing.row_id, left and left.value, to, data)
        )


_HOP_COLUMNS: Final = tuple(f"{hop}_at" for hop in HOPS)
_EMPTY_ATTEMPT: Final[Mapping[str, Any]] = {
    "state": "", "runner": "", "node": "", "lease_token": None, "error_class": None, **dict.fromkeys(_HOP_COLUMNS),
}  # fmt: skip


def _releases(change: Change) -> bool:
    return change.release or change.to in FINAL


def _told(change: Change) -> dict[str, Any]:
    """What the story tells of a change's tasks."""
    if not change.tasks:
        return {}
    return {"tasks": [{"name": task.task, "state": task.state.value, "attempt": task.attempt} for task in change.tasks]}


def _column(name: str, value: Any) -> Any:
    """A value as its column keeps it."""
    if value is None:
        return None
    if name in _TIMES:
        return moment(value)
    if name == "error_class":
        return _class_name(value)
    if name in _TEXTS:
        return clean_text(str(value))
    if name == "output":
        return _without_object(value)
    if name == "shared_writes":
        return {key: _without_object(item) for key, item in value.items()}
    return value


def _class_name(value: str | None) -> str | None:
    return None if value is None else clean_text(value)[:_LONGEST_CLASS]


def _without_object(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored value without the object of a transient one, which lives in memory only."""
    return {key: item for key, item in stored.items() if key != "object" or stored.get("kind") != "transient"}


def _job_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a change's values the scheduler sees in a `Job`."""
    fields = {name: values[name] for name in ("not_before", "site_faults", "is_held") if name in values}
    if "cancel_requested_at" in values:
        fields["cancel_requested"] = values["cancel_requested_at"] is not None
    return fields


def _by_columns(rows: Any) -> list[list[dict[str, Any]]]:
    """Rows that one statement can write, together: those that name the same columns, in one order."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        names = tuple(sorted(row))
        groups.setdefault(names, []).append({name: row[name] for name in names})
    return list(groups.values())


@lru_cache(maxsize=256)
def _task_upsert(dialect: str, columns: tuple[str, ...]) -> Any:
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(TASK)
    new = {name: insert.excluded[name] for name in columns if name not in ("job_id", "name")}
    return insert.on_conflict_do_update(index_elements=[TASK.c.job_id, TASK.c.name], set_=new)


@lru_cache(maxsize=2)
def _attempt_upsert(dialect: str) -> Any:
    """An attempt keeps what it told before: its hops come one by one."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(ATTEMPT)
    kept = ("lease_token", *_HOP_COLUMNS)
    new: dict[str, Any] = {name: func.coalesce(insert.excluded[name], ATTEMPT.c[name]) for name in kept}
    new |= {
        name: case((insert.excluded[name] == "", ATTEMPT.c[name]), else_=insert.excluded[name])
        for name in ("runner", "node")
    }
    new |= {name: insert.excluded[name] for name in ("state", "error_class")}
    return insert.on_conflict_do_update(index_elements=[ATTEMPT.c.job_id, ATTEMPT.c.task, ATTEMPT.c.number], set_=new)
