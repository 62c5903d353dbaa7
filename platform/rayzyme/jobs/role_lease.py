"""The scheduler's role in the database: a lease that one process holds, and beside it who that is and whether it is to end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update

from rayzyme.database.tables import Lease, RoleRow
from rayzyme.jobs.role import ProcessIdentity, RoleHolder

SCHEDULER: Final = "scheduler"
_LIVE_TOKEN: Final = (
    select(Lease.token)
    .where(Lease.resource == SCHEDULER, Lease.token == bindparam("token"), Lease.expires_at > bindparam("now"))
    .with_for_update(read=True)
)
_NO_WISH: Final = {"stop_requested_at": None, "stop_requested_by": None}
_PRESENT: Final = (
    select(RoleRow.identity, RoleRow.info, Lease.token, Lease.expires_at)
    .join(Lease, Lease.token == RoleRow.token)
    .where(RoleRow.name == SCHEDULER, Lease.resource == SCHEDULER)
)


def take(
    connection: Connection,
    identity: ProcessIdentity,
    info: Mapping[str, Any],
    now: datetime,
    expires_at: datetime,
    provably_gone: Callable[[ProcessIdentity], bool],
) -> int | None:
    """Take the role where it is free, lapsed, one's own, or its holder is gone; the token, None where somebody has it."""
    present = _present(connection)
    is_live = present is not None and present.expires_at > now
    if present is not None and is_live:
        holder = ProcessIdentity.from_dict(present.identity)
        if holder != identity and not provably_gone(holder):
            return None
    connection.execute(delete(Lease).where(Lease.resource == SCHEDULER))
    row: dict[str, Any] = {"resource": SCHEDULER, "amount": 1.0, "purpose": SCHEDULER, "owner": _words(identity)}
    row |= {"host": socket.gethostname(), "pid": os.getpid(), "expires_at": expires_at}
    token = int(connection.execute(insert(Lease).values(row).returning(Lease.token)).scalar_one())
    role: dict[str, Any] = {"token": token, "identity": identity.to_dict(), "info": dict(info)}
    if not is_live:
        # A wish that it ends is meant for a scheduler that lives, and for the one that takes over when that one is killed.
        role |= _NO_WISH
    if connection.execute(update(RoleRow).where(RoleRow.name == SCHEDULER).values(role)).rowcount == 0:
        connection.execute(insert(RoleRow).values(name=SCHEDULER, **role))
    return token


def is_held(connection: Connection, token: int, now: datetime) -> bool:
    """Whether `token` is the role's and has not lapsed; nobody takes the role before this transaction ends."""
    return connection.execute(_LIVE_TOKEN, {"token": token, "now": now}).scalar() is not None


def renew(connection: Connection, token: int, expires_at: datetime) -> bool:
    """Renew it; False where somebody else took it. One that lapsed may be renewed as long as nobody did."""
    renewed = update(Lease).where(Lease.resource == SCHEDULER, Lease.token == token).values(expires_at=expires_at)
    return connection.execute(renewed).rowcount > 0


def release(connection: Connection, token: int) -> None:
    """Give it back; nothing happens where it is somebody else's. What its holder told of itself stays readable."""
    if connection.execute(delete(Lease).where(Lease.resource == SCHEDULER, Lease.token == token)).rowcount:
        connection.execute(update(RoleRow).where(RoleRow.name == SCHEDULER).values(_NO_WISH))


def describe(connection: Connection, token: int, info: Mapping[str, Any]) -> bool | None:
    """Have the holder tell something else of itself; whether that is new, None where the role is somebody else's."""
    its_row = and_(RoleRow.name == SCHEDULER, RoleRow.token == token)
    known = connection.execute(select(RoleRow.info).where(its_row)).scalar()
    if known is None or known == info:
        return None if known is None else False
    connection.execute(update(RoleRow).where(its_row).values(info=dict(info)))
    return True


def last_info(connection: Connection) -> Mapping[str, Any]:
    """What the last holder told of itself, whether it lives or not; nothing where there never was one."""
    found = connection.execute(select(RoleRow.info).where(RoleRow.name == SCHEDULER)).scalar()
    return found or {}


def holder(connection: Connection, now: datetime) -> RoleHolder | None:
    """Who has it now."""
    row = _present(connection)
    if row is None or row.expires_at <= now:
        return None
    return RoleHolder(ProcessIdentity.from_dict(row.identity), row.info, row.token, row.expires_at)


def request_stop(connection: Connection, now: datetime, actor: str) -> bool:
    """Ask whoever has the role to end; False where nobody has it."""
    row = _present(connection)
    if row is None or row.expires_at <= now:
        return False
    wish = {"stop_requested_at": now, "stop_requested_by": actor}
    connection.execute(update(RoleRow).where(RoleRow.name == SCHEDULER).values(wish))
    return True


def stop_requested(connection: Connection) -> bool:
    """Whether somebody asked for that."""
    asked = select(RoleRow.stop_requested_at).where(RoleRow.name == SCHEDULER)
    return connection.execute(asked).scalar() is not None


def _present(connection: Connection) -> Row[Any] | None:
    return connection.execute(_PRESENT).one_or_none()


def _words(identity: ProcessIdentity) -> str:
    return f"{identity.host}:{identity.pid}"
