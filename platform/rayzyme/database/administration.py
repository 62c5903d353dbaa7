"""Looking after the database: is it as the models say, is its audit log as it was written, and what is old enough to go.

Nothing here happens by itself. What is removed is archived first, as JSON lines that are on the disk before a row goes. With its
rows goes a job's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, exists, func, select, text

from rayzyme.database.database import Database
from rayzyme.database.events import JOB_SUBJECT, ChainEnd, digest_of, record_event
from rayzyme.database.tables import AttemptRow, Base, JobEvent, JobItem, JobRow, Lease, Progress, Race, TaskRow
from rayzyme.storage.disk import atomic_file
from rayzyme.storage.run_folders import RunFolders, Space

_OldJob = Row[int, str, int]
"""Row number, public id, version."""

_FINAL: Final = ("completed", "failed", "cancelled")
_CHUNK: Final = 500
_LINE_COLUMNS: Final = [column for column in JobEvent.__table__.c if column.name not in ("id", "digest")]


@dataclass(frozen=True, slots=True)
class Altered:
    """A line of the audit log that is not as it was written.

    Attributes:
        subject: Whose chain it is in.
        seq: Its number there.
        what: What is wrong, in words.
    """

    subject: str
    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Prunable:
    """What is old enough to be removed.

    Attributes:
        jobs: How many jobs.
        events: How many lines of their stories.
        first: When the oldest of them ended; None where there is none.
        last: When the newest of them did.
        space: What their folders take.
    """

    jobs: int
    events: int
    first: datetime | None
    last: datetime | None
    space: Space


def differences(database: Database) -> list[str]:
    """What of the tables is not as the models say, in words; empty where nothing is."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.engine.connect() as connection:
        default = connection.dialect.default_schema_name
        try:
            if database.schema is not None:
                # Alembic compares the default schema; this connection is of no other use afterwards.
                connection.execute(text(f'SET search_path TO "{database.schema}"'))
                connection.dialect.default_schema_name = database.schema
            found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        finally:
            connection.dialect.default_schema_name = default
            connection.invalidate()
    return [str(difference) for difference in found]


def first_altered(database: Database) -> tuple[int, Altered | None]:
    """Go through the whole audit log: how many lines were as they were written, and the first that is not."""
    ends: dict[str, ChainEnd] = {}
    count = 0
    with database.read() as connection:
        if database.is_postgresql:
            # The lines and the rows of the jobs must be of one moment.
            connection.execution_options(isolation_level="REPEATABLE READ")
        wanted = select(JobEvent.__table__).order_by(JobEvent.id).execution_options(yield_per=1000)
        for row in connection.execute(wanted):
            what = _fault(row, ends.get(row.subject, ChainEnd()))
            if what is not None:
                return count, Altered(row.subject, row.seq, what)
            ends[row.subject] = ChainEnd(row.seq, row.digest)
            count += 1
        return count, _first_torn(connection, ends)


def prunable(database: Database, before: datetime, runs: Path) -> Prunable:
    """What `prune` would remove."""
    with database.read() as connection:
        jobs, first, last = connection.execute(
            select(func.count(), func.min(JobRow.completion_time), func.max(JobRow.completion_time)).where(
                _is_old(before)
            )
        ).one()
        ids = select(JobRow.id).where(_is_old(before))
        events = connection.execute(select(func.count()).where(JobEvent.job_id.in_(ids), _is_of_a_job())).scalar_one()
        public_ids = connection.execute(select(JobRow.public_id).where(_is_old(before))).scalars().all()
    return Prunable(jobs, events, first, last, RunFolders(runs).space(public_ids))


def prune(
    database: Database, before: datetime, archive: Path, runs: Path, now: datetime | None = None
) -> tuple[Prunable, Path | None]:
    """Remove jobs that ended before a moment, with everything that belongs to them; their stories are archived first.

    Whenever it is killed, what is left goes the next time, and no job stays whose folder was removed.

    Args:
        database: Where.
        before: Jobs that ended earlier go; those that a race still names stay.
        archive: Folder of the archive; made where it is absent.
        runs: Where the folders of jobs are, each named by the job's id; files that were published are elsewhere, and stay.
        now: The time; None asks the clock.

    Returns:
        What was removed, and the file with the stories; None where nothing was old enough.

    Raises:
        DatabaseError: The database cannot be used now. What was removed before that is archived.
        InsufficientSpace: The archive cannot be written; nothing was removed.
        OSError: A folder cannot be moved; its job stays.
    """
    folders = RunFolders(runs)
    at = now or datetime.now(UTC)
    with database.read() as connection:
        wanted = select(JobRow.id, JobRow.public_id, JobRow.version).where(_is_old(before)).order_by(JobRow.id)
        old = connection.execute(wanted).all()
    if not old:
        return Prunable(0, 0, None, None, folders.remove()), None
    found = prunable(database, before, runs)
    archive.mkdir(parents=True, exist_ok=True)
    file = archive / f"events-{at.astimezone(UTC):%Y%m%dT%H%M%S%f}Z.jsonl"
    with atomic_file(file) as sink:
        for part in _chunks(old):
            with database.read() as connection:
                sink.writelines(_line(row) for row in _events_of(connection, [row.id for row in part]))
    for number, part in enumerate(_chunks(old)):
        with folders.putting_aside() as put_aside, database.begin() as connection:
            if number == 0:
                told = {"jobs": found.jobs, "events": found.events, "before": before.isoformat(), "archive": str(file)}
                record_event(connection, "database", "removed old jobs", data=told, at=at)
            put_aside(_remove(connection, part))
    return replace(found, space=folders.remove()), file


def _fault(row: Row[Any], last: ChainEnd) -> str | None:
    if row.seq != last.seq + 1:
        return f"the line before it is missing: line {last.seq} comes before it"
    if row.prev_digest != last.digest:
        return "it does not continue the line before it, which was altered or replaced"
    line = {column.name: row._mapping[column.name] for column in _LINE_COLUMNS}
    if digest_of(line) != row.digest:
        return "it was altered"
    return None


def _first_torn(connection: Connection, ends: dict[str, ChainEnd]) -> Altered | None:
    """The first job whose row tells of a longer, or of another, story than there is."""
    rows = connection.execute(select(JobRow.public_id, JobRow.version, JobRow.event_digest).order_by(JobRow.id))
    for job_id, version, digest in rows:
        end = ends.get(JOB_SUBJECT + job_id, ChainEnd())
        if end.seq < version:
            return Altered(JOB_SUBJECT + job_id, end.seq + 1, f"it is missing: the job tells of {version} lines")
        if end != ChainEnd(version, digest):
            return Altered(JOB_SUBJECT + job_id, end.seq, "the job's row tells of another last line")
    return None


def _is_old(before: datetime) -> Any:
    in_a_race = exists().where(Race.job_id == JobRow.id)
    return JobRow.state.in_(_FINAL) & (JobRow.completion_time < before) & ~in_a_race


def _is_of_a_job() -> Any:
    return JobEvent.subject.startswith(JOB_SUBJECT, autoescape=True)


def _events_of(connection: Connection, ids: Sequence[int]) -> Iterable[Row[Any]]:
    wanted = select(JobEvent.__table__).where(JobEvent.job_id.in_(ids), _is_of_a_job())
    return connection.execute(wanted.order_by(JobEvent.job_id, JobEvent.seq))


def _line(row: Row[Any]) -> bytes:
    told = dict(row._mapping) | {"at": row.at.isoformat()}
    return json.dumps(told, sort_keys=True).encode() + b"\n"


def _remove(connection: Connection, old: Sequence[_OldJob]) -> list[str]:
    """Remove those whose stories are still as they were archived; gives their ids."""
    present = select(JobRow.id, JobRow.version).where(JobRow.id.in_([row.id for row in old])).with_for_update()
    versions = dict(connection.execute(present).all())
    going = [row for row in old if versions.get(row.id) == row.version]
    ids, public_ids = [row.id for row in going], [row.public_id for row in going]
    for table in (JobItem, AttemptRow, TaskRow):
        connection.execute(delete(table).where(table.job_id.in_(ids)))
    connection.execute(delete(Progress).where(Progress.job_id.in_(public_ids)))
    connection.execute(delete(Lease).where(Lease.purpose.in_(public_ids)))
    with _unprotected_events(connection):
        connection.execute(delete(JobEvent).where(JobEvent.job_id.in_(ids), _is_of_a_job()))
    connection.execute(delete(JobRow).where(JobRow.id.in_(ids)))
    return public_ids


@contextmanager
def _unprotected_events(connection: Connection) -> Iterator[None]:
    """Let this transaction, and no other, remove lines of the audit log."""
    if connection.dialect.name == "postgresql":
        schema = connection.get_execution_options()["schema_translate_map"][None]
        table = f'"{schema}".job_event'
        connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER job_event_rows"))
        yield
        connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER job_event_rows"))
        return
    made = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'job_event_delete'")).scalar_one()
    connection.execute(text("DROP TRIGGER job_event_delete"))
    yield
    connection.exec_driver_sql(made)


def _chunks(rows: Sequence[_OldJob]) -> Iterator[Sequence[_OldJob]]:
    return (rows[begin : begin + _CHUNK] for begin in range(0, len(rows), _CHUNK))
