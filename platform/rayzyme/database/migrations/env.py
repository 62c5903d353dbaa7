"""How Alembic runs here: inside the connection that `open_database` gives it, in the schema that it names."""

from __future__ import annotations

from alembic import context

from rayzyme.database.tables import Base

connection = context.config.attributes["connection"]
schema = context.config.attributes["schema"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table_schema=schema,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
