"""The tables of clusters and of who may use them: what they have, models that are simulated on them, data sets, access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from rayzyme.database.base import Base, RowNumber


class Cluster(Base):
    """A cluster and what was last heard of it.

    Attributes:
        name: `ray` for the one that workflows run on.
        figures: What it has, as JSON.
        noted_at: When that was.
    """

    __tablename__ = "cluster"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    figures: Mapped[dict[str, Any]]
    noted_at: Mapped[datetime]


class ClusterMetric(Base):
    """A sample of what a cluster is doing; memory in bytes."""

    __tablename__ = "cluster_metric"
    __table_args__ = (Index("ix_cluster_metric_time", "timestamp"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    timestamp: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
    n_workers: Mapped[int | None] = mapped_column(Integer)
    total_memory: Mapped[int | None] = mapped_column(BigInteger)
    used_memory: Mapped[int | None] = mapped_column(BigInteger)
    total_cores: Mapped[float | None]
    used_cores: Mapped[float | None]
    active_tasks: Mapped[int | None] = mapped_column(Integer)
    queued_tasks: Mapped[int | None] = mapped_column(Integer)
    metrics_data: Mapped[dict[str, Any] | None]


class ModelTag(Base):
    """A model that is simulated, by its three tags."""

    __tablename__ = "model_tag"
    __table_args__ = (UniqueConstraint("mutant", "group", "pdb_name", name="uq_model_tag"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    mutant: Mapped[str] = mapped_column(String(128))
    group: Mapped[str] = mapped_column(String(128))
    pdb_name: Mapped[str] = mapped_column(String(256))


class Race(Base):
    """A simulation job of a model that several clusters compete for; see the entrants in `submission`."""

    __tablename__ = "race"
    __table_args__ = (UniqueConstraint("tag_id", "job_name", name="uq_race"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    tag_id: Mapped[int] = mapped_column(RowNumber, ForeignKey("model_tag.id", name="fk_race_tag"))
    job_name: Mapped[str] = mapped_column(String(128))
    job_id: Mapped[int | None] = mapped_column(RowNumber, ForeignKey("job.id", name="fk_race_job"))
    state: Mapped[str] = mapped_column(String(16), server_default="open")
    trial: Mapped[int] = mapped_column(Integer, server_default="0")
    site_faults: Mapped[int] = mapped_column(Integer, server_default="0")
    winner_token: Mapped[str | None] = mapped_column(String(64))
    cooldown_until: Mapped[datetime | None]
    decided_at: Mapped[datetime | None]


class Submission(Base):
    """One cluster's entry in a race."""

    __tablename__ = "submission"
    __table_args__ = (
        UniqueConstraint("tag_id", "job_name", "queue", name="uq_submission"),
        UniqueConstraint("token", name="uq_submission_token"),
    )

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job_name: Mapped[str] = mapped_column(String(128))
    queue: Mapped[str] = mapped_column(String(128))
    queue_id: Mapped[str | None] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16), server_default="NS")
    tag_id: Mapped[int] = mapped_column(RowNumber, ForeignKey("model_tag.id", name="fk_submission_tag"))
    race_id: Mapped[int | None] = mapped_column(RowNumber, ForeignKey("race.id", name="fk_submission_race"))
    token: Mapped[str | None] = mapped_column(String(64))
    trial: Mapped[int] = mapped_column(Integer, server_default="0")
    intent: Mapped[str] = mapped_column(String(16), server_default="none")
    reason: Mapped[str | None] = mapped_column(Text)
    last_error: Mapped[str | None] = mapped_column(Text)
    attempt_dir: Mapped[str | None] = mapped_column(Text)
    observed_at: Mapped[datetime | None]


class Dataset(Base):
    """A data set that operations are run on.

    Attributes:
        dataset_id: What users know it by.
        path: Its file; None where it is the answer to `query`.
        query: SQL that gives it.
        format: csv, parquet or json.
        digest: SHA-256 of the file.
        size_bytes: Of the file.
    """

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("dataset_id", name="uq_dataset"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    dataset_id: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(256), server_default="")
    path: Mapped[str | None] = mapped_column(Text)
    query: Mapped[str | None] = mapped_column(Text)
    format: Mapped[str | None] = mapped_column(String(16))
    digest: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
    description: Mapped[dict[str, Any] | None]


class Token(Base):
    """An access token, of which only the digest is kept."""

    __tablename__ = "token"
    __table_args__ = (UniqueConstraint("digest", name="uq_token_digest"),)

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(256))
    owner: Mapped[str] = mapped_column(String(256))
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
