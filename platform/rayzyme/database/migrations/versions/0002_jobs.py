"""Jobs with their tasks, attempts and items; clusters, models, data sets, tokens; the audit log refuses changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rayzyme.database.base import UtcTime

revision = "0002"
down_revision = "0001"

_row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NOW = sa.text("CURRENT_TIMESTAMP")
_STATE_RULE = "state IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'unknown')"
_TABLES = (
    "submission", "race", "task", "attempt", "job_item", "job", "usage", "token", "role", "process_status", "model_tag",
    "dataset", "cluster_metric", "cluster", "batch",
)  # fmt: skip
_REFUSAL = "job_event is only ever added to"


def upgrade() -> None:
    """Make the tables, and have the database itself refuse changes of the audit log."""
    _make_job_tables()
    _make_cluster_tables()
    for column in ("purpose", "owner"):
        op.create_index(f"ix_lease_{column}", "lease", [column])
    _protect_events()


def downgrade() -> None:
    """Remove them."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER job_event_rows ON {_schema()}.job_event")
        op.execute(f"DROP TRIGGER job_event_all ON {_schema()}.job_event")
        op.execute(f"DROP FUNCTION {_schema()}.refuse_change()")
    else:
        for action in ("update", "delete"):
            op.execute(f"DROP TRIGGER job_event_{action}")
    for column in ("purpose", "owner"):
        op.drop_index(f"ix_lease_{column}", "lease")
    for table in _TABLES:
        op.drop_table(table)


def _protect_events() -> None:
    if op.get_bind().dialect.name == "postgresql":
        schema = _schema()
        op.execute(
            f"CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        for name, actions, each in (("rows", "UPDATE OR DELETE", "ROW"), ("all", "TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER job_event_{name} BEFORE {actions} ON {schema}.job_event "
                f"FOR EACH {each} EXECUTE FUNCTION {schema}.refuse_change()"
            )
        return
    for action in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER job_event_{action} BEFORE {action.upper()} ON job_event "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )


def _schema() -> str:
    translated = op.get_bind().get_execution_options()["schema_translate_map"]
    return f'"{translated[None]}"'


def _make_job_tables() -> None:
    op.create_table(
        "job",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("public_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False, server_default="command"),
        sa.Column("name", sa.String(512), nullable=False, server_default=""),
        sa.Column("owner", sa.String(256), nullable=False, server_default=""),
        sa.Column("state", sa.String(16), nullable=False, server_default="queued"),
        sa.Column("status", sa.String(16), nullable=False, server_default="submitted"),
        sa.Column("batch_id", sa.BigInteger()),
        sa.Column("job_type", sa.String(256)),
        sa.Column("operation", sa.String(128)),
        sa.Column("dataset_id", sa.String(128)),
        sa.Column("needs", sa.JSON()),
        sa.Column("priority", sa.SmallInteger(), nullable=False, server_default="1"),
        sa.Column("task_count", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("max_memory_gb", sa.Double()),
        sa.Column("max_cores", sa.Integer()),
        sa.Column("cluster", sa.String(128)),
        sa.Column("slurm_job_id", sa.String(128)),
        sa.Column("items_count", sa.Integer()),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("site_faults", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("max_site_faults", sa.Integer(), nullable=False, server_default="5"),
        sa.Column("progress", sa.Double()),
        sa.Column("error_class", sa.String(256)),
        sa.Column("fault", sa.String(16)),
        sa.Column("idempotency_key", sa.String(256)),
        sa.Column("request_digest", sa.String(64)),
        sa.Column("not_before", UtcTime()),
        sa.Column("deadline", UtcTime()),
        sa.Column("cancel_requested_at", UtcTime()),
        sa.Column("is_held", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("is_durable", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("retry_of", sa.String(64)),
        sa.Column("submission_time", UtcTime(), nullable=False, server_default=_NOW),
        sa.Column("queued_at", UtcTime()),
        sa.Column("started_at", UtcTime()),
        sa.Column("completion_time", UtcTime()),
        sa.Column("version", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("event_digest", sa.String(64), nullable=False, server_default=""),
        sa.Column("change_number", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("error_message", sa.Text()),
        sa.Column("result", sa.JSON()),
        sa.Column("manifest", sa.JSON()),
        sa.Column("metadata", sa.JSON()),
        sa.Column("parameters", sa.JSON()),
        sa.Column("spec", sa.JSON()),
        sa.CheckConstraint("kind IN ('workflow', 'operation', 'command')", name="ck_job_kind"),
        sa.CheckConstraint(
            "(state = 'queued' AND status = 'submitted') OR (status = state AND state IN "
            "('running', 'completed', 'failed', 'cancelled', 'unknown'))",
            name="ck_job_status",
        ),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_job_idempotency"),
        sa.UniqueConstraint("public_id", name="uq_job_public_id"),
        sa.UniqueConstraint("cluster", "slurm_job_id", name="uq_job_slurm"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_batch", "job", ["batch_id"])
    op.create_index("ix_job_change", "job", ["change_number"])
    op.create_index("ix_job_order", "job", ["state", "priority", "submission_time"])
    op.create_index("ix_job_owner", "job", ["owner", "state"])
    op.create_table(
        "task",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("job_id", _row_number, sa.ForeignKey("job.id", name="fk_task_job"), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("state", sa.String(16), nullable=False, server_default="queued"),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("site_faults", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("durable", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("not_before", UtcTime()),
        sa.Column("output", sa.JSON()),
        sa.Column("shared_writes", sa.JSON()),
        sa.Column("plan_change", sa.JSON()),
        sa.Column("manifest", sa.JSON()),
        sa.Column("published", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("error_class", sa.String(256)),
        sa.Column("error_message", sa.Text()),
        sa.Column("error_traceback", sa.Text()),
        sa.Column("metrics", sa.JSON()),
        sa.Column("metadata", sa.JSON()),
        sa.CheckConstraint(_STATE_RULE, name="ck_task_state"),
        sa.UniqueConstraint("job_id", "name", name="uq_task_name"),
    )
    op.create_table(
        "attempt",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("job_id", _row_number, sa.ForeignKey("job.id", name="fk_attempt_job"), nullable=False),
        sa.Column("task", sa.String(512), nullable=False, server_default=""),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job_attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("runner", sa.String(256), nullable=False, server_default=""),
        sa.Column("node", sa.String(256), nullable=False, server_default=""),
        sa.Column("lease_token", sa.BigInteger()),
        sa.Column("error_class", sa.String(256)),
        sa.Column("queued_at", UtcTime()),
        sa.Column("leased_at", UtcTime()),
        sa.Column("started_at", UtcTime()),
        sa.Column("computed_at", UtcTime()),
        sa.Column("committed_at", UtcTime()),
        sa.CheckConstraint(_STATE_RULE, name="ck_attempt_state"),
        sa.UniqueConstraint("job_id", "task", "number", name="uq_attempt_number"),
    )
    op.create_table(
        "job_item",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("job_id", _row_number, sa.ForeignKey("job.id", name="fk_job_item_job"), nullable=False),
        sa.Column("process_id", sa.BigInteger()),
        sa.Column("status", sa.String(32), nullable=False, server_default="pending"),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("error_message", sa.Text()),
    )
    op.create_index("ix_job_item_job", "job_item", ["job_id"])
    op.create_table(
        "batch",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("batch_name", sa.String(256)),
        sa.Column("base_path", sa.Text()),
        sa.Column("type", sa.String(64)),
        sa.Column("ref_version", sa.String(64)),
        sa.Column("total_items", sa.Integer()),
        sa.Column("completed_items", sa.Integer()),
        sa.Column("status", sa.String(32)),
    )
    op.create_table(
        "process_status",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("batch_id", sa.BigInteger()),
        sa.Column("status", sa.String(32)),
        sa.Column("protein_id", sa.BigInteger()),
        sa.Column("current_stage", sa.String(128)),
        sa.Column("relative_path", sa.Text()),
        sa.Column("is_representative", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("error_message", sa.Text()),
        sa.Column("created_at", UtcTime(), nullable=False, server_default=_NOW),
        sa.Column("updated_at", UtcTime(), nullable=False, server_default=_NOW),
    )
    op.create_index("ix_process_status_batch", "process_status", ["batch_id", "status"])
    op.create_table(
        "usage",
        sa.Column("owner", sa.String(256), primary_key=True),
        sa.Column("amount", sa.Double(), nullable=False, server_default="0"),
        sa.Column("gpu_amount", sa.Double(), nullable=False, server_default="0"),
        sa.Column("at", UtcTime(), nullable=False),
    )
    op.create_table(
        "role",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("token", _row_number, nullable=False),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("info", sa.JSON(), nullable=False),
        sa.Column("stop_requested_at", UtcTime()),
        sa.Column("stop_requested_by", sa.String(256)),
    )


def _make_cluster_tables() -> None:
    op.create_table(
        "cluster",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("noted_at", UtcTime(), nullable=False),
    )
    op.create_table(
        "cluster_metric",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("timestamp", UtcTime(), nullable=False, server_default=_NOW),
        sa.Column("n_workers", sa.Integer()),
        sa.Column("total_memory", sa.BigInteger()),
        sa.Column("used_memory", sa.BigInteger()),
        sa.Column("total_cores", sa.Double()),
        sa.Column("used_cores", sa.Double()),
        sa.Column("active_tasks", sa.Integer()),
        sa.Column("queued_tasks", sa.Integer()),
        sa.Column("metrics_data", sa.JSON()),
    )
    op.create_index("ix_cluster_metric_time", "cluster_metric", ["timestamp"])
    op.create_table(
        "model_tag",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("mutant", sa.String(128), nullable=False),
        sa.Column("group", sa.String(128), nullable=False),
        sa.Column("pdb_name", sa.String(256), nullable=False),
        sa.UniqueConstraint("mutant", "group", "pdb_name", name="uq_model_tag"),
    )
    op.create_table(
        "race",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("tag_id", _row_number, sa.ForeignKey("model_tag.id", name="fk_race_tag"), nullable=False),
        sa.Column("job_name", sa.String(128), nullable=False),
        sa.Column("job_id", _row_number, sa.ForeignKey("job.id", name="fk_race_job")),
        sa.Column("state", sa.String(16), nullable=False, server_default="open"),
        sa.Column("trial", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("site_faults", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("winner_token", sa.String(64)),
        sa.Column("cooldown_until", UtcTime()),
        sa.Column("decided_at", UtcTime()),
        sa.UniqueConstraint("tag_id", "job_name", name="uq_race"),
    )
    op.create_table(
        "submission",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("job_name", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(128), nullable=False),
        sa.Column("queue_id", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False, server_default="NS"),
        sa.Column("tag_id", _row_number, sa.ForeignKey("model_tag.id", name="fk_submission_tag"), nullable=False),
        sa.Column("race_id", _row_number, sa.ForeignKey("race.id", name="fk_submission_race")),
        sa.Column("token", sa.String(64)),
        sa.Column("trial", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("intent", sa.String(16), nullable=False, server_default="none"),
        sa.Column("reason", sa.Text()),
        sa.Column("last_error", sa.Text()),
        sa.Column("attempt_dir", sa.Text()),
        sa.Column("observed_at", UtcTime()),
        sa.UniqueConstraint("tag_id", "job_name", "queue", name="uq_submission"),
        sa.UniqueConstraint("token", name="uq_submission_token"),
    )
    op.create_table(
        "dataset",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("dataset_id", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(256), nullable=False, server_default=""),
        sa.Column("path", sa.Text()),
        sa.Column("query", sa.Text()),
        sa.Column("format", sa.String(16)),
        sa.Column("digest", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("created_at", UtcTime(), nullable=False, server_default=_NOW),
        sa.Column("description", sa.JSON()),
        sa.UniqueConstraint("dataset_id", name="uq_dataset"),
    )
    op.create_table(
        "token",
        sa.Column("id", _row_number, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("owner", sa.String(256), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False, server_default=_NOW),
        sa.Column("expires_at", UtcTime()),
        sa.Column("revoked_at", UtcTime()),
        sa.UniqueConstraint("digest", name="uq_token_digest"),
    )
