"""What a command deletes goes into the audit log of the database, with who asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

Record = Callable[[str, str, dict[str, Any]], None]
"""Notes a deletion: subject, reason, anything more."""


@contextmanager
def audited() -> Iterator[Record]:
    """Delete and note each deletion inside of this; the notes are written together at the end, also after an error.

    The database is opened before, so that nothing is deleted where nothing can be recorded, and is locked only for the moment
    of writing: others renew their leases in it.

    Raises:
        DatabaseError: The database cannot be used.
    """
    # Most commands delete nothing, and need not wait for SQLAlchemy.
    from rayzyme.database import open_database, record_event

    notes: list[tuple[str, str, dict[str, Any]]] = []
    with closing(open_database()) as database:
        try:
            yield lambda subject, reason, data: notes.append((subject, reason, data))
        finally:
            if notes:
                with database.begin() as connection:
                    for subject, reason, data in notes:
                        record_event(connection, subject, reason, from_state="stored", to_state="deleted", data=data)
