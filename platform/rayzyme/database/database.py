"""Opening the database and working in it, one transaction at a time, the same way on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import DatabaseError as EngineError
from sqlalchemy.pool import ConnectionPoolEntry

from rayzyme.database.documents import to_json
from rayzyme.errors import DatabaseError, MissingExtra
from rayzyme.storage.disk import flush_to_disk, sole_owner

if TYPE_CHECKING:
    from rayzyme.settings import Settings

SCHEMA_VERSION = "0003"
"""Revision of the newest migration; a test holds the two together."""

_BUSY_TIMEOUT_S = 30
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.005
_READING = {"reading": True}
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """An open database. Safe to share between threads; after a fork, or in another process, open it anew.

    Attributes:
        engine: SQLAlchemy's engine.
        url: Where it is, the password left out.
        schema: Where its tables are on PostgreSQL; None on SQLite.
    """

    def __init__(self, engine: Engine, schema: str | None = None) -> None:
        self.engine = engine
        self.schema = schema
        self.url = engine.url.render_as_string(hide_password=True)

    @contextmanager
    def begin(self, exclusive: str | None = None) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, undone by an exception.

        Args:
            exclusive: Name of a section that one transaction at a time may be in, over all processes. On SQLite every
                transaction of this method is alone anyhow.

        Raises:
            DatabaseError: The database is locked for too long, gone, full, or damaged.
        """
        try:
            with self.engine.begin() as connection:
                if self.is_postgresql:
                    # As long as SQLite waits; whoever holds the lock may have been stopped for ever.
                    connection.execute(text(f"SET LOCAL lock_timeout = '{_BUSY_TIMEOUT_S}s'"))
                if exclusive is not None:
                    self.enter(connection, exclusive)
                yield connection
        except DBAPIError as error:
            if not _is_of_the_database(error):
                raise
            raise self._unusable(error) from error

    def enter(self, connection: Connection, section: str) -> None:
        """Have a transaction of `begin` be in an exclusive section from here to its end."""
        if self.is_postgresql:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": section})

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: it waits for nobody, and nobody waits for it.

        Raises:
            DatabaseError: The database is gone, or damaged.
        """
        try:
            with self.engine.connect().execution_options(**_READING) as connection:
                yield connection
        except DBAPIError as error:
            if not _is_of_the_database(error):
                raise
            raise self._unusable(error) from error

    def _unusable(self, error: DBAPIError) -> DatabaseError:
        advice = (
            "nothing was changed. Try again, or see `database.url` in the settings"
            if isinstance(error, OperationalError)
            else "put back a copy of it, or choose another place: `database.url` in the settings, or RAYZYME_HOME"
        )
        return DatabaseError(f"the database {self.url} cannot be used now: {error.orig}; {advice}")

    @property
    def is_postgresql(self) -> bool:
        """Whether this is PostgreSQL; SQLite otherwise."""
        return self.engine.dialect.name == "postgresql"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str | URL | None = None, schema: str = "rayzyme") -> Database:
    """Open the database; an empty one gets its tables, an older SQLite one is brought up to date after a backup copy.

    Args:
        url: SQLAlchemy URL: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`. None takes the
            settings': `database.url`, else `$RAYZYME_HOME/rayzyme.db`.
        schema: PostgreSQL schema to live in; made where it is absent. SQLite has none.

    Raises:
        DatabaseError: It cannot be reached or made, is no database, or one of another kind than these two; or it is of a newer
            version, or an older one on PostgreSQL.
        MissingExtra: It is PostgreSQL, whose driver is not installed.
    """
    return _opened(url, schema, upgrade_server=False)


def upgrade_database(url: str | URL | None = None, schema: str = "rayzyme") -> Database:
    """Open the database like `open_database`, and bring an older one up to date on PostgreSQL too.

    No other program may use it meanwhile; of a server's database the operator makes a copy before.

    Raises:
        DatabaseError: As for `open_database`.
        MissingExtra: It is PostgreSQL, whose driver is not installed.
    """
    return _opened(url, schema, upgrade_server=True)


def _opened(url: str | URL | None, schema: str, upgrade_server: bool) -> Database:
    if url is None:
        from rayzyme.settings import get_settings

        url, schema = _configured(get_settings())
    target = _parsed(url)
    try:
        is_sqlite = target.get_backend_name() == "sqlite"
        database = Database(_sqlite(target)) if is_sqlite else Database(_postgresql(target, schema), schema)
    except (OSError, ValueError) as error:
        raise _unopened(target, error) from error
    try:
        _bring_up_to_date(database, upgrade_server)
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        database.close()
        raise _unopened(target, error) from error
    except BaseException:
        database.close()
        raise
    return database


def _parsed(url: str | URL) -> URL:
    try:
        target = make_url(url)
    except (ArgumentError, ValueError):
        # Neither the text nor what SQLAlchemy says of it: a password may be in them.
        raise DatabaseError(
            "the URL of the database cannot be read; give sqlite:////absolute/path/rayzyme.db or "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, as an argument or as `database.url` in the settings. In a "
            "password, write @ : / as %40 %3A %2F"
        ) from None
    if target.drivername not in _DRIVERS:
        raise DatabaseError(
            f"{target.drivername!r} is no database that Rayzyme works with; give an URL that begins with sqlite: or "
            "postgresql: as an argument or as `database.url` in the settings"
        )
    return target.set(drivername=_DRIVERS[target.drivername])


def _unopened(target: URL, error: Exception) -> DatabaseError:
    reason = getattr(error, "orig", None) or error
    return DatabaseError(
        f"the database {target.render_as_string(hide_password=True)} cannot be opened: {reason}. Mend what that says, or "
        "choose another place: `database.url` in the settings, or RAYZYME_HOME"
    )


def _is_of_the_database(error: DBAPIError) -> bool:
    """Whether it tells of the database's state, such as locked or damaged, and not of a statement."""
    return isinstance(error, OperationalError) or type(error) is EngineError


def _configured(settings: Settings) -> tuple[str | URL, str]:
    chosen = settings.database
    if chosen.url is not None:
        return chosen.url.get_secret_value(), chosen.schema_
    if chosen.host is None:
        return f"sqlite:///{settings.home / 'rayzyme.db'}", chosen.schema_
    password = None if chosen.password is None else chosen.password.get_secret_value()
    return URL.create("postgresql", chosen.user, password, chosen.host, chosen.port, chosen.database), chosen.schema_


def _sqlite(target: URL) -> Engine:
    if not target.database or target.database == ":memory:":
        raise DatabaseError("an SQLite database needs a file: sqlite:////absolute/path/rayzyme.db")
    file = Path(target.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Made here, so that it is never readable by others, not even for a moment.
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_engine(target, connect_args={"timeout": _BUSY_TIMEOUT_S}, json_serializer=to_json)

    @event.listens_for(engine, "connect")
    def _set_up(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        # SQLAlchemy says when a transaction begins: see below.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Writers queue at the start; a transaction that turns into a writer half-way would fail instead of waiting.
        if connection.get_execution_options().get("reading", False):
            connection.exec_driver_sql("BEGIN")
        else:
            _begin_writing(connection)

    return engine


def _begin_writing(connection: Connection) -> None:
    """Wait for one's turn to write, for as long as SQLite itself would, but without its pauses of up to a tenth of a second.

    Transactions here take a few milliseconds, so whoever waits looks again that often.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    pause = _SHORTEST_PAUSE_S
    driver = connection.connection.cursor()
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError as error:
                is_busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}")


def _postgresql(target: URL, schema: str) -> Engine:
    try:
        engine = create_engine(target, pool_pre_ping=True, json_serializer=to_json)
    except ImportError as error:
        raise MissingExtra(f"PostgreSQL needs `pip install rayzyme[postgres]`: {error}") from error
    return engine.execution_options(schema_translate_map={None: schema})


def _bring_up_to_date(database: Database, upgrade_server: bool) -> None:
    if schema_version(database) == SCHEMA_VERSION:
        return
    if database.is_postgresql:
        # Two programs that start at once must not both make the tables.
        with database.begin(exclusive="schema") as connection:
            if not inspect(connection).has_schema(str(database.schema)):
                connection.execute(text(f'CREATE SCHEMA "{database.schema}"'))
            found = _version_in(connection, database.schema)
            if found == SCHEMA_VERSION:
                return
            if found is not None and (found > SCHEMA_VERSION or not upgrade_server):
                raise _other_version(database, found)
            migrate(connection, database.schema, SCHEMA_VERSION)
        return
    file = Path(str(database.engine.url.database))
    with sole_owner(file):
        found = schema_version(database)
        if found == SCHEMA_VERSION:
            return
        if found is not None and found > SCHEMA_VERSION:
            raise _other_version(database, found)
        with database.begin() as connection:
            if found is not None:
                # Others may have it open; while this transaction is on, none of them writes what the copy would lack.
                _back_up(file, file.with_name(f"{file.name}.before-{SCHEMA_VERSION}"))
            migrate(connection, None, SCHEMA_VERSION)


def _back_up(file: Path, copy: Path) -> None:
    """Copy an SQLite database that is in use, as of its last commit, and have it on the disk."""
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    flush_to_disk(copy.parent)


def _other_version(database: Database, found: str) -> DatabaseError:
    advice = (
        "it was made by a newer Rayzyme: install that one"
        if found > SCHEMA_VERSION
        else "bring it up to date with `rayzyme db upgrade`"
    )
    return DatabaseError(
        f"the database {database.url} has schema version {found}, this Rayzyme needs {SCHEMA_VERSION}; {advice}"
    )


def schema_version(database: Database) -> str | None:
    """The revision that it is at; None where it is empty."""
    with database.read() as connection:
        return _version_in(connection, database.schema)


def _version_in(connection: Connection, schema: str | None) -> str | None:
    """The revision that Alembic noted; None in an empty database."""
    if not inspect(connection).has_table("alembic_version", schema=schema):
        return None
    name = f'"{schema}".alembic_version' if schema else "alembic_version"
    found: Any = connection.execute(text(f"SELECT version_num FROM {name}")).scalar()
    return None if found is None else str(found)


def migrate(connection: Connection, schema: str | None, revision: str) -> None:
    """Bring the tables to a revision, an older one included, in the transaction of `connection`.

    Raises:
        DatabaseError: No migration leads there.
    """
    # Alembic takes a moment to load, and most processes find everything in place.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes.update(connection=connection, schema=schema)
    present = _version_in(connection, schema)
    move = command.downgrade if present is not None and revision < present else command.upgrade
    try:
        move(config, revision)
    except CommandError as error:
        raise DatabaseError(f"the database cannot be brought to schema version {revision}: {error}") from error
