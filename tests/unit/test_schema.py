"""The tables: what is in them, what they refuse, and the way from one version to the next and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DatabaseError as EngineError
from sqlalchemy.exc import IntegrityError

from rayzyme.database import Database, open_database, record_event
from rayzyme.database.administration import differences
from rayzyme.database.database import _MIGRATIONS, migrate, schema_version, upgrade_database
from rayzyme.database.tables import Base
from rayzyme.errors import DatabaseError
from rayzyme.jobs.states import JobState
from rayzyme.jobs.vocabularies import job_status

DOCUMENTED = {
    "job": "id public_id kind name owner state status batch_id job_type operation dataset_id parameters spec priority "
    "max_memory_gb max_cores cluster slurm_job_id items_count attempt site_faults progress result manifest error_class "
    "error_message fault idempotency_key request_digest not_before cancel_requested_at submission_time started_at "
    "completion_time metadata version",
    "job_item": "id job_id process_id status exit_code error_message",
    "process_status": "id batch_id status protein_id current_stage relative_path is_representative error_message created_at "
    "updated_at",
    "batch": "id batch_name base_path type ref_version total_items completed_items status",
    "job_event": "id job_id subject seq at actor from_state to_state reason data prev_digest digest",
    "cluster_metric": "id timestamp n_workers total_memory used_memory total_cores used_cores active_tasks queued_tasks "
    "metrics_data",
    "model_tag": "id mutant group pdb_name",
    "submission": "id job_name queue queue_id state tag_id race_id token trial",
    "token": "id name owner role digest created_at expires_at revoked_at",
    "lease": "resource amount owner token expires_at",
    "task": "",
    "attempt": "",
    "race": "",
    "usage": "",
    "dataset": "",
    "cluster": "",
}
INDEXES = {
    "job": [("batch_id",), ("owner", "state"), ("state", "priority", "submission_time")],
    "job_item": [("job_id",)],
    "process_status": [("batch_id", "status")],
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(open_database(database_url)) as opened:
        yield opened


def sql(connection: Connection, database: Database, statement: str, **values: object) -> object:
    """Raw SQL; `{job}` and the like are tables."""
    prefix = "" if database.schema is None else f'"{database.schema}".'
    names = {table: f"{prefix}{table}" for table in Base.metadata.tables}
    return connection.execute(text(statement.format(**names)), values)


def run(database: Database, statement: str, **values: object) -> None:
    with database.begin() as connection:
        sql(connection, database, statement, **values)


def test_the_documented_tables_have_their_columns_and_indexes(database: Database) -> None:
    """D6, D7"""
    with database.engine.connect() as connection:
        found = inspect(connection)
        for table, columns in DOCUMENTED.items():
            present = {column["name"] for column in found.get_columns(table, schema=database.schema)}
            assert present >= set(columns.split()), table
            assert present
        for table, wanted in INDEXES.items():
            indexes = [tuple(index["column_names"]) for index in found.get_indexes(table, schema=database.schema)]
            assert [index for index in wanted if index not in indexes] == [], table


def test_a_row_that_another_program_writes_gets_the_documented_defaults(database: Database) -> None:
    """D6"""
    run(database, "INSERT INTO {job} (public_id, batch_id, job_type, items_count) VALUES ('job_a', 0, 'blast', 2)")
    run(database, "INSERT INTO {job_item} (job_id, process_id) SELECT id, 7 FROM {job}")
    with database.read() as connection:
        job = sql(connection, database, "SELECT state, status, submission_time FROM {job}").one()
        item = sql(connection, database, "SELECT status FROM {job_item}").scalar()
    assert (job.state, job.status, item) == ("queued", "submitted", "pending")
    assert str(job.submission_time).startswith(str(datetime.now(UTC).year))


def test_the_status_of_a_job_is_the_word_for_its_state(database: Database) -> None:
    """D2, D7"""
    insertion = "INSERT INTO {job} (public_id, state, status) VALUES (:id, :state, :status)"
    for state in JobState:
        run(database, insertion, id=f"job_{state}", state=state.value, status=job_status(state))
        for status in {job_status(other) for other in JobState} - {job_status(state)} | {"queued", ""}:
            with pytest.raises(IntegrityError):
                run(database, insertion, id="job_wrong", state=state.value, status=status)


UNIQUE = [
    ("job", "public_id", "'job_a'"),
    ("job", "public_id, owner, idempotency_key", "{}, 'ada', 'key'"),
    ("job", "public_id, cluster, slurm_job_id", "{}, 'north', '17'"),
    ("model_tag", 'mutant, "group", pdb_name', "'wt', 'g', 'p'"),
    ("submission", "tag_id, job_name, queue", "1, 'prmd', 'north'"),
    ("submission", "tag_id, job_name, queue, token", "1, {}, 'north', 'token'"),
    ("token", "name, owner, role, digest", "{}, 'ada', 'user', 'digest'"),
    ("task", "job_id, name", "1, 'load'"),
    ("attempt", "job_id, task, number, job_attempt, state", "1, 'load', 1, 1, 'running'"),
]


def test_what_is_unique_is_refused_twice(database: Database) -> None:
    """D7"""
    for number, (table, columns, values) in enumerate(UNIQUE):
        insertion = f"INSERT INTO {{{table}}} ({columns}) VALUES ({values.replace('{}', ':other')})"
        run(database, insertion, other=f"one {number}")
        with pytest.raises(IntegrityError):
            run(database, insertion, other=f"two {number}")


def test_jobs_without_a_key_or_a_slurm_id_are_not_alike(database: Database) -> None:
    """D7"""
    for number in range(2):
        run(database, f"INSERT INTO {{job}} (public_id, owner, cluster) VALUES ('job_{number}', 'ada', 'north')")


def test_the_audit_log_refuses_changes(database: Database) -> None:
    """D12"""
    with database.begin() as connection:
        record_event(connection, "data:1", "written")
    statements = ["UPDATE {job_event} SET reason = 'forged'", "DELETE FROM {job_event}"]
    for statement in statements + (["TRUNCATE {job_event}"] if database.is_postgresql else []):
        # What a trigger refuses has another class on each engine.
        with pytest.raises((EngineError, DatabaseError), match="only ever added to"):
            run(database, statement)
    with database.read() as connection:
        assert sql(connection, database, "SELECT reason FROM {job_event}").scalars().all() == ["written"]


def test_every_version_leads_to_the_next_and_back(database_url: str) -> None:
    """D9"""
    revisions = [script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()][::-1]
    with closing(open_database(database_url)) as database:
        shapes: dict[str, object] = {revisions[-1]: shape(database)}
        assert differences(database) == []
        for revision in reversed(revisions[:-1]):
            with database.begin() as connection:
                migrate(connection, database.schema, revision)
            assert schema_version(database) == revision
            shapes[revision] = shape(database)
            assert differences(database) != []
        for revision in revisions:
            with database.begin() as connection:
                migrate(connection, database.schema, revision)
            assert shape(database) == shapes[revision], revision
        assert differences(database) == []


def test_a_server_database_is_upgraded_by_command_only(postgresql: str) -> None:
    """D9"""
    with closing(open_database(postgresql, "behind")) as database:
        with database.begin() as connection:
            record_event(connection, "data:1", "kept")
            migrate(connection, database.schema, "0001")
        with pytest.raises(DatabaseError, match="rayzyme db upgrade"):
            open_database(postgresql, "behind")
        upgrade_database(postgresql, "behind").close()
        assert differences(database) == []
        with database.begin() as connection:
            assert sql(connection, database, "SELECT reason FROM {job_event}").scalars().all() == ["kept"]
            connection.execute(text("DROP SCHEMA behind CASCADE"))


def shape(database: Database) -> object:
    """Tables, columns, indexes, triggers."""
    schema = database.schema
    with database.engine.connect() as connection:
        found = inspect(connection)
        tables = {
            table: (
                sorted(
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in found.get_columns(table, schema)
                ),
                sorted(str(index["name"]) for index in found.get_indexes(table, schema)),
                sorted(str(rule["name"]) for rule in found.get_unique_constraints(table, schema)),
            )
            for table in found.get_table_names(schema)
        }
        listing = (
            f"SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = '{schema}'"
            if database.is_postgresql
            else "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        )
        return tables, sorted(connection.execute(text(listing)).scalars())
