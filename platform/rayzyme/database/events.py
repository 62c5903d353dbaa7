"""The audit log: lines that are only ever added, each subject's chained by digest."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, insert, select, text

from rayzyme.database.documents import clean_text, to_json
from rayzyme.database.tables import JobEvent

JOB_SUBJECT: Final = "job:"
"""How the subjects of jobs begin; their lines are written with the jobs' rows, which know the last one."""

_ADD: Final = insert(JobEvent)
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be added, see `JobEvent`.

    Attributes:
        subject: What was changed.
        reason: Why, in words.
        actor: Who did it.
        at: When.
        job_id: Row of the job, where the subject is one.
        from_state: State before.
        to_state: State after.
        data: Anything more, as JSON.
    """

    subject: str
    reason: str
    actor: str
    at: datetime
    job_id: int | None = None
    from_state: str | None = None
    to_state: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """The last line of a subject: its number, 0 where there is none, and its digest."""

    seq: int = 0
    digest: str = ""


def append(connection: Connection, lines: Iterable[Line], ends: dict[str, ChainEnd]) -> None:
    """Add lines in the transaction of `connection`.

    Args:
        connection: From `Database.begin`.
        lines: In their order.
        ends: The last line of each subject; moved to those that are added. Nobody else may add to these subjects meanwhile.
    """
    rows = []
    for line in lines:
        last = ends.get(line.subject, ChainEnd())
        row: dict[str, Any] = {
            "job_id": line.job_id,
            "subject": line.subject,
            "seq": last.seq + 1,
            "at": line.at,
            "actor": clean_text(line.actor),
            "from_state": line.from_state,
            "to_state": line.to_state,
            "reason": clean_text(line.reason),
            # As it will be read, so that its digest is found again.
            "data": json.loads(to_json(line.data)) if line.data else {},
            "prev_digest": last.digest,
        }
        row["digest"] = digest_of(row)
        ends[line.subject] = ChainEnd(row["seq"], row["digest"])
        rows.append(row)
    if rows:
        connection.execute(_ADD, rows)


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
        job_id: Row of the job that it is about, where the subject is another.
        from_state: State before.
        to_state: State after.
        data: Anything more, as JSON.
        at: When; None is now.

    Raises:
        ValueError: The subject is a job; `JobStore.note` adds to the story of one.
    """
    if subject.startswith(JOB_SUBJECT):
        raise ValueError(f"{subject} is a job, and its story is written with its row: use JobStore.note")
    if connection.dialect.name == "postgresql":
        # Two transactions must not add to one chain at once; on SQLite they cannot.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:subject))"), {"subject": f"event:{subject}"})
    last = connection.execute(
        select(JobEvent.seq, JobEvent.digest).where(JobEvent.subject == subject).order_by(JobEvent.seq.desc()).limit(1)
    ).one_or_none()
    line = Line(
        subject=subject,
        reason=reason,
        actor=actor or current_actor(),
        at=at or datetime.now(UTC),
        job_id=job_id,
        from_state=from_state,
        to_state=to_state,
        data=data or {},
    )
    append(connection, [line], {} if last is None else {subject: ChainEnd(last.seq, last.digest)})


def digest_of(line: dict[str, Any]) -> str:
    """SHA-256 of a line's columns but `id` and `digest`, the digest before it among them."""
    told = _CANONICAL(line | {"at": line["at"].astimezone(UTC).isoformat()})
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def current_actor() -> str:
    """`user@machine` of this process; `uid 1234@machine` where the number has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
