"""Jobs tell how long they are likely to take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make room for it; of the jobs that there are nothing is known."""
    op.add_column("job", sa.Column("estimated_seconds", sa.Double()), schema=_schema())


def downgrade() -> None:
    """Forget it."""
    op.drop_column("job", "estimated_seconds", schema=_schema())


def _schema() -> str | None:
    # Statements that alter a table are not translated as those that make one are.
    schemas: dict[None, str] = op.get_bind().get_execution_options().get("schema_translate_map", {})
    return schemas.get(None)
