"""Progress for other processes: a job's row in the database, told by its newest attempt and read by anyone."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rayzyme.checks import short_text, whole_number
from rayzyme.errors import NotFound, ValidationError

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection

    from rayzyme.database import Database

logger = logging.getLogger(__name__)

PUBLISH_INTERVAL_S: Final = 1.0
"""Time between two news of one job, at least."""

PUBLISHED_MESSAGES: Final = 100
"""How many of a task's messages, and of the tracker's own, other processes see."""

_LONGEST_JOB_ID = 64
_NEWS_LATE_AFTER_S = 3 * PUBLISH_INTERVAL_S  # a change waits for one of them, then for the database


class Publication:
    """The right to tell how far an attempt of a job is, until a later attempt does."""

    def __init__(self, job_id: str, attempt: int, database: Database | None) -> None:
        """Open the database of the settings where none is given; that one is closed with this object.

        Raises:
            ValidationError: An argument cannot be used.
            DatabaseError: The database cannot be opened.
        """
        self.job_id = _checked_job_id(job_id)
        self._attempt = whole_number("attempt", attempt, at_least=1)
        self._database, is_own = _opened(database)
        self.close = _closing(self, self._database) if is_own else _nothing
        self._is_outdated = False

    def tell(self, snapshot: dict[str, Any]) -> None:
        """Write a snapshot, in one statement that does nothing where a later attempt has told already.

        Raises:
            DatabaseError: The database cannot be used now.
        """
        if self._is_outdated:
            return
        from sqlalchemy.dialects import postgresql, sqlite

        from rayzyme.database.tables import Progress

        insert = (postgresql if self._database.is_postgresql else sqlite).insert(Progress)
        news = {"attempt": self._attempt, "snapshot": snapshot, "updated_at": datetime.now(UTC)}
        statement = insert.values(job_id=self.job_id, **news).on_conflict_do_update(
            index_elements=[Progress.job_id], set_=news, where=Progress.attempt <= self._attempt
        )
        with self._database.begin() as connection:
            told = connection.execute(statement.returning(Progress.attempt)).scalar_one_or_none()
        self._is_outdated = told is None
        if self._is_outdated:
            logger.warning("progress of attempt %d of job %s is ignored: a later one tells", self._attempt, self.job_id)


class SharedProgress:
    """The progress of a job as its tracker last published it, read anew with every call.

    Messages are the last 100 of each task. The figures are those that the tracker itself would give now, had it heard of
    nothing since: time goes on while the run is not finished, and it is stalled when its news stay away, whether or not
    anybody lives who could say so.
    """

    def __init__(self, job_id: str, database: Database | None = None, clock: Callable[[], float] = time.time) -> None:
        """Open nothing but the database.

        Args:
            job_id: The job's public id.
            database: Where to read; None opens the one of the settings, which `close` closes.
            clock: Seconds since 1970; it must agree with the clocks of the machines that publish.

        Raises:
            ValidationError: The id is no id.
            DatabaseError: The database cannot be opened.
        """
        self._job_id = _checked_job_id(job_id)
        self._database, is_own = _opened(database)
        self._close = _closing(self, self._database) if is_own else _nothing
        self._clock = clock

    def get_progress(self) -> dict[str, Any]:
        """As `ProgressTracker.get_progress`.

        Raises:
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        return _progress_now(*self._read())

    def get_task_progress(self, task_id: str) -> dict[str, Any]:
        """As `ProgressTracker.get_task_progress`.

        Raises:
            KeyError: No such task.
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        snapshot, age = self._read()
        task: dict[str, Any] | None = snapshot["tasks"].get(task_id)
        if task is None:
            raise KeyError(f"task_id {task_id!r} is not the id of a started task")
        if snapshot["goes_on"] and task["status"] == "running":
            task["elapsed_time"] += age
        return task

    def get_messages(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """As `ProgressTracker.get_messages`.

        Raises:
            KeyError: No such task.
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        if task_id is None:
            messages: list[dict[str, Any]] = self._read()[0]["messages"]
            return messages
        found: list[dict[str, Any]] = self.get_task_progress(task_id)["messages"]
        return found

    def close(self) -> None:
        """Close the database, where this object opened it."""
        self._close()

    def __enter__(self) -> SharedProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> tuple[dict[str, Any], float]:
        """What was last published, and how many seconds ago."""
        from sqlalchemy import select

        from rayzyme.database.tables import Progress

        with self._database.read() as connection:
            row = connection.execute(
                select(Progress.snapshot, Progress.updated_at).where(Progress.job_id == self._job_id)
            ).one_or_none()
        if row is None:
            raise NotFound(f"job {self._job_id} has published no progress; check the id, or wait until it has begun")
        return row.snapshot, max(0.0, self._clock() - row.updated_at.timestamp())


def shared_progress(connection: Connection, job_ids: Sequence[str], now: float) -> dict[str, dict[str, Any]]:
    """What `SharedProgress.get_progress` tells, of many jobs at once; those that have published nothing are left out.

    Args:
        connection: From `Database.read`.
        job_ids: Which ones, at most a few hundred.
        now: Seconds since 1970.
    """
    from sqlalchemy import select

    from rayzyme.database.tables import Progress

    wanted = select(Progress.job_id, Progress.snapshot, Progress.updated_at).where(Progress.job_id.in_(job_ids))
    return {
        job_id: _progress_now(snapshot, max(0.0, now - updated_at.timestamp()))
        for job_id, snapshot, updated_at in connection.execute(wanted)
    }


def _progress_now(snapshot: dict[str, Any], age: float) -> dict[str, Any]:
    """The figures of a snapshot, `age` seconds after it was published."""
    progress: dict[str, Any] = snapshot["progress"]
    if snapshot["goes_on"] and progress["raw_percent"] < 100.0:
        progress["elapsed_time"] += age
    longest = snapshot["stalled_after"]
    if longest is not None and age > _NEWS_LATE_AFTER_S and snapshot["silence"] + age > longest:
        progress |= {"stalled": True, "estimated_remaining": None, "eta_low": None, "eta_high": None}
    return progress


def _checked_job_id(job_id: Any) -> str:
    if "\0" in short_text("job_id", job_id, at_most=_LONGEST_JOB_ID):
        raise ValidationError(f"job_id must not contain a NUL character: {job_id!r}")
    return str(job_id)


def _opened(database: Database | None) -> tuple[Database, bool]:
    """The database, and whether it was opened here."""
    if database is not None:
        return database, False
    from rayzyme.database import open_database

    return open_database(), True


def _closing(user: object, database: Database) -> Callable[[], object]:
    """How to close a database of one's own; it is closed with its user at the latest."""
    close = weakref.finalize(user, database.close)
    close.atexit = False  # the last news may not be written by then
    return close


def _nothing() -> None:
    """How a database is closed that is the caller's."""
