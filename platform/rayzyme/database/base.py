"""What all tables have in common: their base, how times are kept, how rows are numbered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

# SQLite numbers rows by itself only in columns of exactly this type.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

# None is NULL, not the word "null" of JSON.
Document = JSON(none_as_null=True)


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

    type_annotation_map = {datetime: UtcTime(), dict[str, Any]: Document}  # noqa: RUF012 - SQLAlchemy reads it from the class
