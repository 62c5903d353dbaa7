"""The database: made when it is empty, the same on both engines, its audit log chained."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from rayzyme.database import Database, open_database, record_event
from rayzyme.database import database as database_module
from rayzyme.database.database import _MIGRATIONS, SCHEMA_VERSION
from rayzyme.database.events import current_actor, digest_of
from rayzyme.database.tables import Base, JobEvent, Lease, Progress
from rayzyme.errors import DatabaseError, MissingExtra
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


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("foo", "the URL of the database cannot be read; give sqlite:"),
        ("postgresql://ada@host:planted-secret/x", "cannot be read"),
        ("postgresql//ada:planted-secret@host/x", "cannot be read"),
        (
            "mysql://ada:planted-secret@host/x",
            "'mysql' is no database that Rayzyme works with; give an URL that begins",
        ),
        ("sqlite+aiosqlite:///x.db", "'sqlite\\+aiosqlite' is no database that Rayzyme works with"),
        (
            "sqlite:///{folder}/garbage",
            "garbage cannot be used now: file is not a database; put back a copy of it, or choose",
        ),
        ("sqlite:///{folder}/garbage/below/x.db", r"x\.db cannot be opened: .*Not a directory"),
        ("sqlite:////proc/nowhere/x.db", r"x\.db cannot be opened: .*No such file"),
        ("sqlite:///{folder}", "cannot be opened: .*Is a directory"),
        ("sqlite:///a\0b", "cannot be opened: embedded null byte"),
    ],
)
def test_what_cannot_be_opened_is_told_with_what_to_do_and_no_password(tmp_path: Path, url: str, told: str) -> None:
    (tmp_path / "garbage").write_bytes(b"planted garbage " * 1000)
    with pytest.raises(DatabaseError, match=told) as caught:
        open_database(url.replace("{folder}", str(tmp_path)))
    assert "`database.url` in the settings" in str(caught.value)
    assert "planted-secret" not in "".join(traceback.format_exception(caught.value))
    assert (tmp_path / "garbage").read_bytes() == b"planted garbage " * 1000


def test_a_driver_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"rayzyme\[postgres\]"):
        open_database("postgresql://ada@host/x")


def test_damage_while_it_is_open_is_told(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    database.engine.dispose()
    for file in tmp_path.glob("x.db*"):
        file.write_bytes(b"garbage " * 1000)
    for use in (database.begin, database.read):
        with (
            pytest.raises(DatabaseError, match=r"x\.db cannot be used now: file is not a database"),
            use() as connection,
        ):
            connection.execute(select(JobEvent))
    database.close()


def test_an_error_in_a_statement_is_its_own(database: Database) -> None:
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(insert(Progress).values(job_id="a", attempt=1, snapshot={}, updated_at=None))


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has this Rayzyme one schema version more, which does what is given."""

    def add(upgrade: str) -> None:
        migrations = shutil.copytree(_MIGRATIONS, tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
        (migrations / "versions" / "next.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision, down_revision = '9000', '{SCHEMA_VERSION}'\n"
            f"def upgrade():\n    {upgrade}\n"
        )
        monkeypatch.setattr(database_module, "_MIGRATIONS", migrations)
        monkeypatch.setattr(database_module, "SCHEMA_VERSION", "9000")

    return add


ADD_A_COLUMN = "op.add_column('job_event', sa.Column('more', sa.Text(), server_default='none'))"


def noted(database: Database, column: str = "reason") -> list[str]:
    with database.read() as connection:
        return [value for (value,) in connection.execute(text(f"SELECT {column} FROM job_event"))]


def test_an_older_file_is_brought_up_to_date_after_a_backup_while_others_have_it_open(
    tmp_path: Path, next_version: Callable[[str], None]
) -> None:
    """D9"""
    file = tmp_path / "rayzyme.db"
    other = open_database(f"sqlite:///{file}")
    with other.begin() as connection:
        record_event(connection, "data:1", "kept")
    with other.read() as reader:
        # What was committed is still in the log beside the file, and has to stay there.
        reader.execute(select(JobEvent)).all()
        next_version(ADD_A_COLUMN)
        upgraded = open_database(f"sqlite:///{file}")
    assert (noted(upgraded), noted(upgraded, "more")) == (["kept"], ["none"])
    with upgraded.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9000"
    (copy,) = tmp_path.glob("*.before-*")
    assert (copy.name, stat.S_IMODE(copy.stat().st_mode)) == ("rayzyme.db.before-9000", 0o600)
    with closing(sqlite3.connect(copy)) as before:
        assert before.execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMA_VERSION,)]
        assert before.execute("SELECT * FROM job_event").description[-1][0] != "more"
        assert before.execute("SELECT reason FROM job_event").fetchall() == [("kept",)]
        assert before.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with other.begin() as connection:
        record_event(connection, "data:1", "written by an older program")
    copied_at = copy.stat().st_mtime_ns
    open_database(f"sqlite:///{file}").close()
    assert copy.stat().st_mtime_ns == copied_at
    for database in (other, upgraded):
        database.close()


def test_the_backup_has_all_that_was_written_before_the_upgrade(
    tmp_path: Path, next_version: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9"""
    other = open_database(f"sqlite:///{tmp_path / 'rayzyme.db'}")
    next_version(ADD_A_COLUMN)
    back_up, late = database_module._back_up, create_engine(other.engine.url, connect_args={"timeout": 0})

    def write_meanwhile(file: Path, copy: Path) -> None:
        back_up(file, copy)
        with pytest.raises(OperationalError, match="locked"), late.begin() as connection:
            connection.execute(text("DELETE FROM job_event"))

    monkeypatch.setattr(database_module, "_back_up", write_meanwhile)
    open_database(str(other.engine.url)).close()
    assert list(tmp_path.glob("*.before-9000"))
    other.close()
    late.dispose()


def test_an_upgrade_that_fails_leaves_the_older_version(tmp_path: Path, next_version: Callable[[str], None]) -> None:
    """D9"""
    url = f"sqlite:///{tmp_path / 'rayzyme.db'}"
    other = open_database(url)
    with other.begin() as connection:
        record_event(connection, "data:1", "kept")
    next_version(f"{ADD_A_COLUMN}; op.drop_table('no_such_table')")
    with pytest.raises(DatabaseError, match=r"no such table.*`database\.url` in the settings"):
        open_database(url)
    assert noted(other) == ["kept"]
    with other.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == SCHEMA_VERSION
        assert "more" not in list(connection.execute(text("SELECT * FROM job_event")).keys())
    other.close()


def test_a_version_that_no_migration_knows_is_told(tmp_path: Path) -> None:
    """D9"""
    url = f"sqlite:///{tmp_path / 'rayzyme.db'}"
    database = open_database(url)
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    database.close()
    with pytest.raises(DatabaseError, match=r"cannot be brought to schema version .*0000"):
        open_database(url)


def test_an_older_server_database_is_left_to_its_operator(postgresql: str, next_version: Callable[[str], None]) -> None:
    """D9"""
    database = open_database(postgresql, "older")
    next_version(ADD_A_COLUMN)
    with pytest.raises(DatabaseError, match="this Rayzyme needs 9000; bring it up to date"):
        open_database(postgresql, "older")
    with database.begin() as connection:
        connection.execute(text("DROP SCHEMA older CASCADE"))
    database.close()


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1234567)
    assert current_actor() == f"uid 1234567@{socket.gethostname()}"


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
