"""The database: made when it is empty, the same on both engines, its audit log chained."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text

from rayzyme.database import Database, open_database, record_event
from rayzyme.database.database import _MIGRATIONS, SCHEMA_VERSION
from rayzyme.database.events import digest_of
from rayzyme.database.tables import Base, JobEvent, Lease
from rayzyme.errors import DatabaseError
from rayzyme.settings import load_settings, use_settings


@pytest.fixture
def database(database_url: str) -> Database:
    opened = open_database(database_url)
    yield opened
    opened.close()


def test_the_tables_are_those_of_the_models(database: Database) -> None:
    """D9"""
    schema = "rayzyme" if database.is_postgresql else None
    with database.engine.connect() as connection:
        connection.dialect.default_schema_name = schema
        if schema:
            connection.execute(text("SET search_path TO rayzyme"))
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert found == []


def test_the_version_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory(str(_MIGRATIONS)).get_current_head() == SCHEMA_VERSION


def test_opening_again_keeps_what_is_there(database: Database, database_url: str) -> None:
    with database.begin() as connection:
        record_event(connection, "data:1", "kept")
    again = open_database(database_url)
    with again.read() as connection:
        assert connection.execute(select(JobEvent.reason)).scalars().all() == ["kept"]
    again.close()


def test_many_programs_may_open_an_empty_one_at_once(database_url: str) -> None:
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(open_database(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for database in opened:
        database.close()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def begin_and_fail() -> None:
        with database.begin() as connection:
            record_event(connection, "data:1", "never")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        begin_and_fail()
    with database.read() as connection:
        assert connection.execute(select(JobEvent)).all() == []


def test_a_reader_does_not_stop_writers(database: Database) -> None:
    """D10"""
    with database.read() as reader:
        reader.execute(select(JobEvent)).all()
        for number in range(20):
            with database.begin() as connection:
                record_event(connection, "data:1", str(number))


def test_times_keep_their_zone(database: Database) -> None:
    """D11"""
    moment = datetime(2026, 11, 25, 12, 30, 15, 123456, tzinfo=UTC)
    lease = {"resource": "r", "amount": 1.0, "owner": "o", "purpose": "", "host": "h", "pid": 1}
    with database.begin() as connection:
        connection.execute(insert(Lease).values(**lease, expires_at=moment))
    with database.read() as connection:
        assert connection.execute(select(Lease.expires_at)).scalar_one() == moment
    with pytest.raises(Exception, match="has no time zone"), database.begin() as connection:
        connection.execute(insert(Lease).values(**lease, expires_at=moment.replace(tzinfo=None)))


def test_the_events_of_a_subject_are_chained(database: Database) -> None:
    with database.begin() as connection:
        for reason in ("stored", "replaced", "deleted"):
            record_event(connection, "data:1", reason, actor="ada@lab", data={"bytes": 7})
        record_event(connection, "data:2", "stored")
    with database.read() as connection:
        rows = connection.execute(select(JobEvent).where(JobEvent.subject == "data:1").order_by(JobEvent.seq)).all()
    assert [row.seq for row in rows] == [1, 2, 3]
    assert [row.prev_digest for row in rows] == ["", rows[0].digest, rows[1].digest]
    for row in rows:
        line = {name: value for name, value in row._mapping.items() if name not in ("id", "digest")}
        assert digest_of(line) == row.digest
        assert digest_of(line | {"reason": "forged"}) != row.digest


def test_the_file_is_closed_to_others(home: Path) -> None:
    """D5"""
    open_database().close()
    assert stat.S_IMODE((home / "rayzyme.db").stat().st_mode) == 0o600


def test_a_newer_database_is_refused(database_url: str) -> None:
    """D9"""
    database = open_database(database_url)
    schema = "rayzyme." if database.is_postgresql else ""
    with database.begin() as connection:
        connection.execute(text(f"UPDATE {schema}alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(
        DatabaseError, match=r"schema version 9999, this Rayzyme needs .*newer Rayzyme: install that one"
    ):
        open_database(database_url)


def test_schemas_of_one_server_do_not_see_each_other(postgresql: str) -> None:
    """D5"""
    one, two = open_database(postgresql, "one"), open_database(postgresql, "two")
    with one.begin() as connection:
        record_event(connection, "data:1", "in one")
    with two.read() as connection:
        assert connection.execute(select(JobEvent)).all() == []
    for database, schema in ((one, "one"), (two, "two")):
        with database.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        database.close()


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    """D11"""
    with pytest.raises(DatabaseError, match=r"cannot be used now.*Connection refused") as caught:
        open_database("postgresql://ada:planted-secret@127.0.0.1:1/rayzyme")
    assert "ada:***@127.0.0.1:1" in str(caught.value)
    assert "planted-secret" not in str(caught.value)


def test_the_settings_say_where_it_is(postgresql: str, home: Path) -> None:
    """D5"""
    address = create_engine(postgresql).url
    parts = {
        "host": address.host,
        "port": address.port,
        "database": "postgres",
        "user": "rayzyme",
        "schema": "from_parts",
    }
    use_settings(load_settings(overrides={"database": parts}))
    database = open_database()
    with database.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM from_parts.lease")).scalar() == 0
        connection.execute(text("DROP SCHEMA from_parts CASCADE"))
    database.close()
    assert not (home / "rayzyme.db").exists()
