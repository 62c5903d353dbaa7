"""From rows of the database to what the rest of Rayzyme works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Table, func, select

from rayzyme.database.tables import AttemptRow, JobEvent, JobRow, TaskRow
from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.records import AttemptRecord, EventRecord, JobRecord, TaskRecord
from rayzyme.jobs.states import JobState


def table_of(model: type) -> Table:
    """The table of a model: statements of many rows are made of tables."""
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


JOB: Final = table_of(JobRow)
TASK: Final = table_of(TaskRow)
ATTEMPT: Final = table_of(AttemptRow)
EVENT: Final = table_of(JobEvent)


def _named(table: Table, *names: str) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in names]


JOB_COLUMNS: Final = _named(
    JOB,
    "id", "public_id", "name", "owner", "kind", "job_type", "priority", "state", "attempt", "submission_time", "task_count",
    "needs", "not_before", "deadline", "started_at", "is_held", "cancel_requested_at", "site_faults", "max_site_faults",
    "version", "estimated_seconds",
)  # fmt: skip
_FIRST_BEGAN: Final = (
    select(ATTEMPT.c.started_at)
    .where(ATTEMPT.c.job_id == JOB.c.id, ATTEMPT.c.task == "", ATTEMPT.c.number == 1)
    .scalar_subquery()
)
RECORD_COLUMNS: Final = [
    *JOB_COLUMNS,
    *_named(
        JOB,
        "metadata", "parameters", "result", "progress", "error_class", "error_message", "fault", "completion_time", "retry_of",
        "is_durable",
    ),
    # Rows that other programs wrote have no attempts.
    func.coalesce(_FIRST_BEGAN, JOB.c.started_at).label("first_started_at"),
]  # fmt: skip
_HOP_COLUMNS: Final = _named(ATTEMPT, "started_at", "computed_at", "committed_at")
TASK_COLUMNS: Final = [*(column for column in TASK.c if column.name not in ("job_id", "position")), *_HOP_COLUMNS]
ATTEMPT_COLUMNS: Final = [column for column in ATTEMPT.c if column.name not in ("id", "job_id")]
EVENT_COLUMNS: Final = _named(EVENT, "id", "seq", "at", "actor", "from_state", "to_state", "reason", "data")


def moment(seconds: float) -> datetime:
    """A time from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def seconds(at: datetime | None) -> float | None:
    """Seconds since 1970."""
    return None if at is None else at.timestamp()


def job_of(row: Row[Any]) -> Job:
    """A row of `JOB_COLUMNS`."""
    (
        sequence, job_id, name, owner, kind, job_type, priority, state, attempt, submitted, task_count, needs, not_before,
        deadline, started, is_held, cancel_requested, site_faults, max_site_faults, version, estimated_seconds, *_,
    ) = tuple(row)  # fmt: skip
    return Job(
        job_id, sequence, name, owner, kind, job_type or "", TaskPriority(priority), JobState(state), attempt,
        submitted.timestamp(), task_count, needs or {}, seconds(not_before), seconds(deadline), seconds(started), is_held,
        cancel_requested is not None, site_faults, max_site_faults, version, estimated_seconds,
    )  # fmt: skip


def record_of(row: Row[Any], read_at: datetime) -> JobRecord:
    """A row of `RECORD_COLUMNS`."""
    return JobRecord(
        job=job_of(row),
        created_at=row.submission_time,
        read_at=read_at,
        metadata=row._mapping["metadata"] or {},
        parameters=row.parameters,
        result=row.result,
        progress=row.progress,
        error_class=row.error_class,
        error_message=row.error_message,
        fault=row.fault,
        started_at=row.first_started_at,
        completed_at=row.completion_time,
        retry_of=row.retry_of,
        is_durable=row.is_durable,
    )


def task_of(row: Row[Any]) -> TaskRecord:
    """A row of `TASK_COLUMNS`."""
    values = _without(row._mapping, "id", "job_id")
    return TaskRecord(**values | {"state": JobState(row.state), "not_before": seconds(row.not_before)})


def attempt_of(row: Row[Any]) -> AttemptRecord:
    """A row of `ATTEMPT_COLUMNS`."""
    return AttemptRecord(**{**row._mapping, "state": JobState(row.state)})


def event_of(row: Row[Any]) -> EventRecord:
    """A row of `EVENT_COLUMNS`."""
    states = {name: JobState(state) for name in ("from_state", "to_state") if (state := row._mapping[name]) is not None}
    return EventRecord(**{**row._mapping, **states})


def _without(values: Mapping[Any, Any], *names: str) -> dict[str, Any]:
    return {str(name): value for name, value in values.items() if name not in names}


def chunks(values: Iterable[Any], size: int = 1000) -> Iterable[Sequence[Any]]:
    """Parts that a statement can take as parameters."""
    held = list(values)
    return (held[begin : begin + size] for begin in range(0, len(held), size))
