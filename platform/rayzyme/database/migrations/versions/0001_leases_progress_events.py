"""Leases, progress and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rayzyme.database.tables import UtcTime

revision = "0001"
down_revision = None

_row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "lease",
        sa.Column("token", _row_number, primary_key=True, autoincrement=True),
        sa.Column("resource", sa.String(512), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("owner", sa.String(256), nullable=False),
        sa.Column("purpose", sa.String(256), nullable=False),
        sa.Column("host", sa.String(256), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_lease_resource", "lease", ["resource"])
    op.create_table(
        "progress",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("snapshot", sa.JSON(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
    )
    op.create_table(
        "job_event",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("job_id", _row_number, nullable=True),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("from_state", sa.String(32), nullable=True),
        sa.Column("to_state", sa.String(32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("prev_digest", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.UniqueConstraint("subject", "seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_event_job_id", "job_event", ["job_id"])


def downgrade() -> None:
    """Remove them."""
    for table in ("job_event", "progress", "lease"):
        op.drop_table(table)
