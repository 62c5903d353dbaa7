"""Who holds what at a moment, for people to see."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from rayzyme.database.database import Database, open_database
from rayzyme.database.tables import Lease
from rayzyme.settings import Settings


def leases_now(settings: Settings) -> list[dict[str, Any]]:
    """`live_leases` of the settings' database; none where the SQLite file does not exist, which is then not made."""
    chosen = settings.database
    if chosen.url is None and chosen.host is None and not (settings.home / "rayzyme.db").exists():
        return []
    with closing(open_database()) as database:
        return live_leases(database)


def live_leases(database: Database, now: datetime | None = None) -> list[dict[str, Any]]:
    """Leases that have not lapsed, by resource: resource, amount, purpose, owner, host, pid, expires_at (ISO 8601, UTC)."""
    moment = now or datetime.now(UTC)
    wanted = select(Lease).where(Lease.expires_at > moment).order_by(Lease.resource, Lease.token)
    with database.read() as connection:
        return [
            {
                "resource": row.resource,
                "amount": row.amount,
                "purpose": row.purpose,
                "owner": row.owner,
                "host": row.host,
                "pid": row.pid,
                "expires_at": row.expires_at.isoformat(timespec="seconds"),
            }
            for row in connection.execute(wanted)
        ]
