"""The audit log: lines that are only ever added, each subject's chained by digest."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from rayzyme.database.tables import JobEvent


def record_event(
    connection: Connection,
    subject: str,
    reason: str,
    *,
    actor: str | None = None,
    job_id: int | None = None,
    from_state: str | None = None,
    to_state: str | None = None,
    data: dict[str, Any] | None = None,
    at: datetime | None = None,
) -> None:
    """Add a line in the transaction of `connection`, so that it stands if and only if what it tells of does.

    Args:
        connection: From `Database.begin`.
        subject: What was changed.
        reason: Why, in words.
        actor: Who did it; None names the user and machine of this process.
        job_id: Row of the job, where the subject is one.
        from_state: State before.
        to_state: State after.
        data: Anything more, as JSON.
        at: When; None is now.
    """
    last = connection.execute(
        select(JobEvent.seq, JobEvent.digest).where(JobEvent.subject == subject).order_by(JobEvent.seq.desc()).limit(1)
    ).one_or_none()
    line: dict[str, Any] = {
        "job_id": job_id,
        "subject": subject,
        "seq": 1 if last is None else last.seq + 1,
        "at": at or datetime.now(UTC),
        "actor": actor or current_actor(),
        "from_state": from_state,
        "to_state": to_state,
        "reason": reason,
        "data": data or {},
        "prev_digest": "" if last is None else last.digest,
    }
    connection.execute(insert(JobEvent).values(**line, digest=digest_of(line)))


def digest_of(line: dict[str, Any]) -> str:
    """SHA-256 of a line's columns but `id` and `digest`, the digest before it among them."""
    told = json.dumps(line | {"at": line["at"].astimezone(UTC).isoformat()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def current_actor() -> str:
    """`user@machine` of this process; `uid 1234@machine` where the number has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
