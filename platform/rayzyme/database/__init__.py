"""The one database: leases, progress and the audit log today, jobs with the dispatcher. SQLite by default, PostgreSQL by URL."""

from rayzyme.database.database import Database, open_database
from rayzyme.database.events import record_event

__all__ = ["Database", "open_database", "record_event"]
