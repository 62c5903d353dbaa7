"""What changed since one last looked, without trusting anybody's clock.

Every transaction that changes jobs writes its number into their rows. A reader keeps a cursor: the smallest number that a
transaction may have whose changes it has not seen. On SQLite transactions are numbered in the order in which they are
committed. On PostgreSQL they are not: there the cursor is the oldest transaction that was still at work when the reader looked.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

# Every change of a job appends to the audit log, whose row numbers are never given twice.
_SQLITE: Final = text("SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'job_event'")
_POSTGRESQL_OWN: Final = text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)")
_POSTGRESQL_OLDEST: Final = text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)")


def own_change_number(connection: Connection) -> int:
    """The number of this transaction, before it appends to the audit log."""
    return _number(connection, _POSTGRESQL_OWN)


def next_change_number(connection: Connection) -> int:
    """A cursor for everything that this transaction cannot see; to be asked for before the rows."""
    return _number(connection, _POSTGRESQL_OLDEST)


def _number(connection: Connection, on_postgresql: object) -> int:
    statement = on_postgresql if connection.dialect.name == "postgresql" else _SQLITE
    return int(connection.execute(statement).scalar_one())  # type: ignore[call-overload]
