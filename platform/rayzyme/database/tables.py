"""All tables, as SQLAlchemy models. A change here wants a migration beside it; a test compares the two.

Leases, progress and the audit log are those of everybody; jobs and clusters have files of their own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from rayzyme.database.base import Base, RowNumber, UtcTime
from rayzyme.database.cluster_tables import Cluster, ClusterMetric, Dataset, ModelTag, Race, Submission, Token
from rayzyme.database.job_tables import (
    AttemptRow,
    Batch,
    JobItem,
    JobRow,
    ProcessStatus,
    RoleRow,
    TaskRow,
    UsageRow,
)

__all__ = [
    "AttemptRow",
    "Base",
    "Batch",
    "Cluster",
    "ClusterMetric",
    "Dataset",
    "JobEvent",
    "JobItem",
    "JobRow",
    "Lease",
    "ModelTag",
    "ProcessStatus",
    "Progress",
    "Race",
    "RoleRow",
    "Submission",
    "TaskRow",
    "Token",
    "UsageRow",
    "UtcTime",
]


class Lease(Base):
    """A share of something limited, held until it expires unless its holder renews it.

    Attributes:
        token: Grows with every lease, so that a late holder is known by its older one.
        resource: What is shared, such as `gpu:<host>:<uuid>`.
        amount: How much of it; GPU memory in MB (2^20 bytes).
        owner: Who holds it.
        purpose: What for, such as the task's name; for what a job holds, its public id.
        host: Machine of the holding process.
        pid: The holding process there.
        expires_at: When it lapses if it is not renewed.
    """

    __tablename__ = "lease"
    __table_args__ = (
        Index("ix_lease_resource", "resource"),
        Index("ix_lease_purpose", "purpose"),
        Index("ix_lease_owner", "owner"),
        {"sqlite_autoincrement": True},
    )

    token: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
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

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[int | None] = mapped_column(RowNumber, index=True)
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
