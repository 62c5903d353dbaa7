"""The tables, as SQLAlchemy models. A change here wants a migration beside it; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# SQLite numbers rows by itself only in columns of exactly this type.
_RowNumber = BigInteger().with_variant(Integer(), "sqlite")


class UtcTime(TypeDecorator[datetime]):
    """A point in time with its zone: UTC in the database and in Python, on both engines."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database; a time without a zone is refused, since nobody could say what it means."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database; SQLite keeps no zone, and everything in it is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables of Rayzyme."""

    type_annotation_map = {datetime: UtcTime(), dict[str, Any]: JSON()}  # noqa: RUF012 - SQLAlchemy reads it from the class


class Lease(Base):
    """A share of something limited, held until it expires unless its holder renews it.

    Attributes:
        token: Grows with every lease, so that a late holder is known by its older one.
        resource: What is shared, such as `gpu:<host>:<uuid>`.
        amount: How much of it; GPU memory in MB (2^20 bytes).
        owner: Who holds it.
        purpose: What for, such as the task's name.
        host: Machine of the holding process.
        pid: The holding process there.
        expires_at: When it lapses if it is not renewed.
    """

    __tablename__ = "lease"
    __table_args__ = (Index("ix_lease_resource", "resource"), {"sqlite_autoincrement": True})

    token: Mapped[int] = mapped_column(_RowNumber, primary_key=True, autoincrement=True)
    resource: Mapped[str] = mapped_column(String(512))
    amount: Mapped[float]
    owner: Mapped[str] = mapped_column(String(256))
    purpose: Mapped[str] = mapped_column(String(256), default="")
    host: Mapped[str] = mapped_column(String(256))
    pid: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[datetime]


class Progress(Base):
    """How far a job is, as its newest attempt last told.

    Attributes:
        job_id: The job's public id.
        attempt: Number of the attempt that told; an older one's news are ignored.
        snapshot: What the tracker would answer.
        updated_at: When it told.
    """

    __tablename__ = "progress"

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    snapshot: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime]


class JobEvent(Base):
    """One line of the audit log: who changed what, when and why. Lines are only ever added.

    Attributes:
        job_id: Row of the job, where the subject is one.
        subject: What was changed, such as `job:job_0123456789ab` or `data:<key>`.
        seq: Number of the line within its subject, from 1.
        at: When.
        actor: User or process that did it.
        from_state: State before, for what has states.
        to_state: State after.
        reason: Why, in words.
        data: Anything more.
        prev_digest: Digest of the subject's line before; empty for the first.
        digest: SHA-256 over this line and `prev_digest`, so that an altered line shows.
    """

    __tablename__ = "job_event"
    __table_args__ = (UniqueConstraint("subject", "seq"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(_RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[int | None] = mapped_column(_RowNumber, index=True)
    subject: Mapped[str] = mapped_column(String(256))
    seq: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(256))
    from_state: Mapped[str | None] = mapped_column(String(32))
    to_state: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text, default="")
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    prev_digest: Mapped[str] = mapped_column(String(64), default="")
    digest: Mapped[str] = mapped_column(String(64))
