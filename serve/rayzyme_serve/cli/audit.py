"""What a command deletes goes into the audit log of the database, with who asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

Record = Callable[[str, str, dict[str, Any]], None]
"""Notes a deletion: subject, reason, anything more."""


@contextmanager
def audited() -> Iterator[Record]:
    """Delete and record inside of this: the database is opened first, so that nothing goes that cannot be recorded.

    Raises:
        DatabaseError: The database cannot be used; nothing was deleted.
    """
    # Most commands delete nothing, and need not wait for SQLAlchemy.
    from rayzyme.database import open_database, record_event

    with closing(open_database()) as database, database.begin() as connection:

        def record(subject: str, reason: str, data: dict[str, Any]) -> None:
            record_event(connection, subject, reason, from_state="stored", to_state="deleted", data=data)

        yield record
