"""The tables of jobs: what was submitted, its tasks and items, every attempt at them, and what owners used."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from rayzyme.database.base import Base, Document, RowNumber

_STATES = "'queued', 'running', 'completed', 'failed', 'cancelled', 'unknown'"
JOB_STATUS_RULE = (
    "(state = 'queued' AND status = 'submitted') OR (status = state AND state IN "
    "('running', 'completed', 'failed', 'cancelled', 'unknown'))"
)
JOB_KIND_RULE = "kind IN ('workflow', 'operation', 'command')"
STATE_RULE = f"state IN ({_STATES})"


class JobRow(Base):
    """A job; see `rayzyme.jobs.job.Job` for what the scheduler reads of it.

    Attributes:
        public_id: What users know it by.
        status: The word for `state` that other programs read.
        batch_id: As its submitter gave it; no row of `batch` need have it.
        needs: What must be free for it to start, by resource.
        estimated_seconds: How long it is likely to take, by what its submitter knows.
        queued_at: When it was last put into the queue.
        is_durable: Whether `spec` suffices to run it in another process.
        retry_of: Public id of the job that it repeats.
        version: Lines that its story has, so that it grows with every change.
        event_digest: Digest of the last of them.
        change_number: Of the transaction that changed it last; see `rayzyme.database.change_numbers`.
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(JOB_STATUS_RULE, name="ck_job_status"),
        CheckConstraint(JOB_KIND_RULE, name="ck_job_kind"),
        UniqueConstraint("public_id", name="uq_job_public_id"),
        UniqueConstraint("owner", "idempotency_key", name="uq_job_idempotency"),
        UniqueConstraint("cluster", "slurm_job_id", name="uq_job_slurm"),
        Index("ix_job_order", "state", "priority", "submission_time"),
        Index("ix_job_batch", "batch_id"),
        Index("ix_job_owner", "owner", "state"),
        Index("ix_job_change", "change_number"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    public_id: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16), server_default="command")
    name: Mapped[str] = mapped_column(String(512), server_default="")
    owner: Mapped[str] = mapped_column(String(256), server_default="")
    state: Mapped[str] = mapped_column(String(16), server_default="queued")
    status: Mapped[str] = mapped_column(String(16), server_default="submitted")
    batch_id: Mapped[int | None] = mapped_column(BigInteger)
    job_type: Mapped[str | None] = mapped_column(String(256))
    operation: Mapped[str | None] = mapped_column(String(128))
    dataset_id: Mapped[str | None] = mapped_column(String(128))
    needs: Mapped[dict[str, Any] | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    task_count: Mapped[int] = mapped_column(Integer, server_default="1")
    estimated_seconds: Mapped[float | None]
    max_memory_gb: Mapped[float | None]
    max_cores: Mapped[int | None] = mapped_column(Integer)
    cluster: Mapped[str | None] = mapped_column(String(128))
    slurm_job_id: Mapped[str | None] = mapped_column(String(128))
    items_count: Mapped[int | None] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    site_faults: Mapped[int] = mapped_column(Integer, server_default="0")
    max_site_faults: Mapped[int] = mapped_column(Integer, server_default="5")
    progress: Mapped[float | None]
    error_class: Mapped[str | None] = mapped_column(String(256))
    fault: Mapped[str | None] = mapped_column(String(16))
    idempotency_key: Mapped[str | None] = mapped_column(String(256))
    request_digest: Mapped[str | None] = mapped_column(String(64))
    not_before: Mapped[datetime | None]
    deadline: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    is_held: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    is_durable: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    retry_of: Mapped[str | None] = mapped_column(String(64))
    submission_time: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    completion_time: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(Integer, server_default="0")
    event_digest: Mapped[str] = mapped_column(String(64), server_default="")
    change_number: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # What may be large comes last: SQLite reads through it to what stands behind it.
    error_message: Mapped[str | None] = mapped_column(Text)
    result: Mapped[dict[str, Any] | None]
    manifest: Mapped[list[Any] | None] = mapped_column(Document)
    # A model has an attribute `metadata` of its own.
    user_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", Document)
    parameters: Mapped[dict[str, Any] | None]
    spec: Mapped[dict[str, Any] | None]


class TaskRow(Base):
    """A task of a job, as last committed; see `rayzyme.jobs.records.TaskRecord`."""

    __tablename__ = "task"
    __table_args__ = (
        CheckConstraint(STATE_RULE, name="ck_task_state"),
        UniqueConstraint("job_id", "name", name="uq_task_name"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[int] = mapped_column(RowNumber, ForeignKey("job.id", name="fk_task_job"))
    name: Mapped[str] = mapped_column(String(512))
    position: Mapped[int] = mapped_column(Integer, server_default="0")
    state: Mapped[str] = mapped_column(String(16), server_default="queued")
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    site_faults: Mapped[int] = mapped_column(Integer, server_default="0")
    durable: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    not_before: Mapped[datetime | None]
    output: Mapped[dict[str, Any] | None]
    shared_writes: Mapped[dict[str, Any] | None]
    plan_change: Mapped[dict[str, Any] | None]
    manifest: Mapped[list[Any] | None] = mapped_column(Document)
    published: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    error_class: Mapped[str | None] = mapped_column(String(256))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_traceback: Mapped[str | None] = mapped_column(Text)
    metrics: Mapped[dict[str, Any] | None]
    task_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", Document)


class AttemptRow(Base):
    """One try at a job (`task` is empty) or at one of its tasks, with the time of each hop."""

    __tablename__ = "attempt"
    __table_args__ = (
        CheckConstraint(STATE_RULE, name="ck_attempt_state"),
        UniqueConstraint("job_id", "task", "number", name="uq_attempt_number"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[int] = mapped_column(RowNumber, ForeignKey("job.id", name="fk_attempt_job"))
    task: Mapped[str] = mapped_column(String(512), server_default="")
    number: Mapped[int] = mapped_column(Integer)
    job_attempt: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    runner: Mapped[str] = mapped_column(String(256), server_default="")
    node: Mapped[str] = mapped_column(String(256), server_default="")
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    error_class: Mapped[str | None] = mapped_column(String(256))
    queued_at: Mapped[datetime | None]
    leased_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    computed_at: Mapped[datetime | None]
    committed_at: Mapped[datetime | None]


class UsageRow(Base):
    """What an owner's ended attempts used, as far as it still counts at a moment.

    Attributes:
        amount: Slot-seconds.
        gpu_amount: GPU-seconds.
        at: The moment.
    """

    __tablename__ = "usage"

    owner: Mapped[str] = mapped_column(String(256), primary_key=True)
    amount: Mapped[float] = mapped_column(server_default="0")
    gpu_amount: Mapped[float] = mapped_column(server_default="0")
    at: Mapped[datetime]


class RoleRow(Base):
    """Who holds a role that one process at a time has; the lease of that `token` says until when.

    Attributes:
        name: Which role, the resource of the lease.
        token: The lease.
        identity: The process, as `rayzyme.jobs.role.ProcessIdentity`.
        info: What it told of itself.
        stop_requested_at: When somebody asked it to end.
        stop_requested_by: Who.
    """

    __tablename__ = "role"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token: Mapped[int] = mapped_column(RowNumber)
    identity: Mapped[dict[str, Any]]
    info: Mapped[dict[str, Any]]
    stop_requested_at: Mapped[datetime | None]
    stop_requested_by: Mapped[str | None] = mapped_column(String(256))


class Batch(Base):
    """Items that are processed together."""

    __tablename__ = "batch"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    batch_name: Mapped[str | None] = mapped_column(String(256))
    base_path: Mapped[str | None] = mapped_column(Text)
    type: Mapped[str | None] = mapped_column(String(64))
    ref_version: Mapped[str | None] = mapped_column(String(64))
    total_items: Mapped[int | None] = mapped_column(Integer)
    completed_items: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str | None] = mapped_column(String(32))


class JobItem(Base):
    """One item of a job, with its own outcome."""

    __tablename__ = "job_item"
    __table_args__ = (Index("ix_job_item_job", "job_id"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[int] = mapped_column(RowNumber, ForeignKey("job.id", name="fk_job_item_job"))
    process_id: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(32), server_default="pending")
    exit_code: Mapped[int | None] = mapped_column(Integer)
    error_message: Mapped[str | None] = mapped_column(Text)


class ProcessStatus(Base):
    """Where a protein stands in a batch's pipeline."""

    __tablename__ = "process_status"
    __table_args__ = (Index("ix_process_status_batch", "batch_id", "status"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    batch_id: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str | None] = mapped_column(String(32))
    protein_id: Mapped[int | None] = mapped_column(BigInteger)
    current_stage: Mapped[str | None] = mapped_column(String(128))
    relative_path: Mapped[str | None] = mapped_column(Text)
    is_representative: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
    updated_at: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
