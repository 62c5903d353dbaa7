"""Progress for other processes: a job's row in the database, told by its newest attempt and read by anyone."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rayzyme.checks import short_text, whole_number
from rayzyme.errors import NotFound, ValidationError

if TYPE_CHECKING:
    from types import TracebackType

    from rayzyme.database import Database

logger = logging.getLogger(__name__)

PUBLISHED_MESSAGES = 100
"""How many of a task's messages, and of the tracker's own, other processes see."""

_LONGEST_JOB_ID = 64


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
        self.close: Callable[[], object] = weakref.finalize(self, self._database.close) if is_own else _nothing
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

    Messages are the last 100 of each task; the figures are those that the tracker itself would have given then.
    """

    def __init__(self, job_id: str, database: Database | None = None) -> None:
        """Open nothing but the database.

        Args:
            job_id: The job's public id.
            database: Where to read; None opens the one of the settings, which `close` closes.

        Raises:
            ValidationError: The id is no id.
            DatabaseError: The database cannot be opened.
        """
        self._job_id = _checked_job_id(job_id)
        self._database, is_own = _opened(database)
        self._close: Callable[[], object] = weakref.finalize(self, self._database.close) if is_own else _nothing

    def get_progress(self) -> dict[str, Any]:
        """As `ProgressTracker.get_progress`.

        Raises:
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        progress: dict[str, Any] = self._read()["progress"]
        return progress

    def get_task_progress(self, task_id: str) -> dict[str, Any]:
        """As `ProgressTracker.get_task_progress`.

        Raises:
            KeyError: No such task.
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        tasks: dict[str, dict[str, Any]] = self._read()["tasks"]
        if task_id not in tasks:
            raise KeyError(f"task_id {task_id!r} is not the id of a started task")
        return tasks[task_id]

    def get_messages(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """As `ProgressTracker.get_messages`.

        Raises:
            KeyError: No such task.
            NotFound: Nothing was published for the job.
            DatabaseError: The database cannot be used now.
        """
        if task_id is None:
            messages: list[dict[str, Any]] = self._read()["messages"]
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

    def _read(self) -> dict[str, Any]:
        from sqlalchemy import select

        from rayzyme.database.tables import Progress

        with self._database.read() as connection:
            snapshot = connection.execute(
                select(Progress.snapshot).where(Progress.job_id == self._job_id)
            ).scalar_one_or_none()
        if snapshot is None:
            raise NotFound(f"job {self._job_id} has published no progress; check the id, or wait until it has begun")
        found: dict[str, Any] = snapshot
        return found


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


def _nothing() -> None:
    """How a database is closed that is the caller's."""
