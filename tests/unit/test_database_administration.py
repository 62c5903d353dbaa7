"""Looking after the database: differences are told, the first altered line is found, old jobs go with an archive."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import Connection, select, text
from tests.support.job_samples import ROOM, change, finish, request, settled, start
from tests.support.timing import Clock
from typer.testing import CliRunner

from rayzyme.database import Database, open_database, record_event
from rayzyme.database import administration as administration_module
from rayzyme.database.administration import Altered, differences, first_altered, prunable, prune
from rayzyme.database.events import digest_of
from rayzyme.database.tables import JobEvent
from rayzyme.errors import InsufficientSpace
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.storage.disk import atomic_file
from rayzyme.storage.run_folders import RunFolders, Space
from rayzyme_serve.cli.main import app

DAY = 86400.0


def forge(database: Database, statement: str) -> None:
    """Change the audit log as somebody would who owns the database."""
    lift = ["DROP TRIGGER IF EXISTS job_event_update", "DROP TRIGGER IF EXISTS job_event_delete"]
    if database.is_postgresql:
        lift = [f"SET LOCAL search_path TO {database.schema}", "ALTER TABLE job_event DISABLE TRIGGER job_event_rows"]
    with database.begin() as connection:
        for each in [*lift, statement]:
            connection.execute(text(each))


def count(database: Database, table: str) -> int:
    prefix = "" if database.schema is None else f"{database.schema}."
    with database.read() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {prefix}{table}")).scalar_one())


def test_a_table_that_is_not_as_it_should_be_is_told(store: JobStore) -> None:
    """D9"""
    database = store.database
    assert differences(database) == []
    prefix = "" if database.schema is None else f"{database.schema}."
    with database.begin() as connection:
        connection.execute(text(f"ALTER TABLE {prefix}batch ADD COLUMN extra INTEGER"))
        connection.execute(text(f"DROP INDEX {prefix}ix_job_batch"))
    (added, lacking) = sorted(differences(database), key=lambda told: "extra" not in told)
    assert "extra" in added
    assert "ix_job_batch" in lacking


@pytest.mark.parametrize(
    ("forgery", "seq", "what"),
    [
        ("UPDATE job_event SET reason = 'forged' WHERE seq = 2 AND subject = '{subject}'", 2, "it was altered"),
        ("UPDATE job_event SET actor = 'eve' WHERE seq = 1 AND subject = '{subject}'", 1, "it was altered"),
        ("DELETE FROM job_event WHERE seq = 2 AND subject = '{subject}'", 3, "the line before it is missing"),
        ("DELETE FROM job_event WHERE seq = 3 AND subject = '{subject}'", 3, "it is missing: the job tells of 3 lines"),
        ("DELETE FROM job_event WHERE subject = '{subject}'", 1, "it is missing"),
    ],
)
def test_the_first_altered_line_is_found(store: JobStore, forgery: str, seq: int, what: str) -> None:
    """D12"""
    one, two = store.submit([request(), request()])
    store.apply([start(one), start(two)], capacity=ROOM)
    store.apply([finish(one), finish(two)])
    with store.database.begin() as connection:
        record_event(connection, "data:1", "written")
    assert first_altered(store.database) == (7, None)
    forge(store.database, forgery.replace("{subject}", f"job:{two}"))
    _, altered = first_altered(store.database)
    assert altered is not None
    assert (altered.subject, altered.seq) == (f"job:{two}", seq)
    assert what in altered.what


def test_a_forged_line_with_a_digest_of_its_own_breaks_the_chain(store: JobStore) -> None:
    """D12"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    with store.database.read() as connection:
        row = connection.execute(select(JobEvent.__table__).order_by(JobEvent.seq)).all()[0]
    line = {name: value for name, value in row._mapping.items() if name not in ("id", "digest")}
    digest = digest_of(line | {"actor": "eve"})
    forge(store.database, f"UPDATE job_event SET actor = 'eve', digest = '{digest}' WHERE seq = 1")
    told = "it does not continue the line before it, which was altered or replaced"
    assert first_altered(store.database) == (1, Altered(f"job:{job_id}", 2, told))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the folders of jobs are."""
    return tmp_path / "runs"


def wrote(runs: Path, *job_ids: str, count: int = 10) -> None:
    """Have jobs leave something in their folders."""
    for job_id in job_ids:
        (runs / job_id / "task" / "1.1").mkdir(parents=True)
        (runs / job_id / "task" / "1.1" / "output.bundle").write_bytes(b"x" * count)


def left(runs: Path) -> list[str]:
    """Files that are still there."""
    return sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file())


def lived(store: JobStore, clock: Clock) -> dict[str, str]:
    """Jobs that ended 40 and 10 days ago, and one that runs."""
    ids = dict(zip(("old", "cancelled", "recent", "running"), store.submit([request()] * 4), strict=True))
    store.apply([start(ids["old"]), start(ids["running"])], capacity=ROOM)
    store.apply([finish(ids["old"], tasks=(settled(),))])
    store.request_cancel(ids["cancelled"])
    clock.now += 30 * DAY
    store.apply([start(ids["recent"])], capacity=ROOM)
    store.apply([change(ids["recent"], JobState.FAILED)])
    clock.now += 10 * DAY
    return ids


def test_old_jobs_are_shown_archived_and_removed_with_everything_of_theirs(
    store: JobStore, clock: Clock, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9"""
    monkeypatch.setattr(administration_module, "_CHUNK", 1)
    ids, database = lived(store, clock), store.database
    wrote(runs, ids["old"], ids["recent"])  # the other old one never wrote anything
    now = datetime.fromtimestamp(clock.now, UTC)
    before = now - timedelta(days=20)
    shown = prunable(database, before, runs)
    assert (shown.jobs, shown.events, shown.first, shown.space) == (2, 5, shown.last, Space(1, 10))
    story = {name: store.events(ids[name]) for name in ids}
    removed, file = prune(database, before, tmp_path / "archive", runs, now)
    assert removed == shown
    assert left(runs) == [f"{ids['recent']}/task/1.1/output.bundle"]
    assert file is not None
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["subject"], line["reason"]) for line in lines] == [
        (f"job:{ids[name]}", event.reason) for name in ("old", "cancelled") for event in story[name]
    ]
    for line in lines:
        told = {name: value for name, value in line.items() if name not in ("id", "digest")}
        assert digest_of(told | {"at": datetime.fromisoformat(line["at"])}) == line["digest"]
    assert {record.job.job_id for record in store.records()} == {ids["recent"], ids["running"]}
    assert [store.events(ids[name]) for name in ("recent", "running")] == [story["recent"], story["running"]]
    assert (count(database, "task"), count(database, "attempt")) == (0, 2)
    with database.read() as connection:
        audit = connection.execute(select(JobEvent).where(JobEvent.subject == "database")).one()
    assert audit.reason == "removed old jobs"
    assert (audit.data["jobs"], audit.data["events"], audit.data["archive"]) == (2, 5, str(file))
    assert first_altered(database)[1] is None
    with pytest.raises(Exception, match="only ever added to"), database.begin() as connection:
        connection.execute(text(f"DELETE FROM {'rayzyme.' if database.schema else ''}job_event"))
    nothing = administration_module.Prunable(0, 0, None, None, Space())
    assert prune(database, before, tmp_path / "archive", runs, now) == (nothing, None)


def test_nothing_goes_that_could_not_be_archived(
    store: JobStore, clock: Clock, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9"""
    wrote(runs, *lived(store, clock).values())
    now = datetime.fromtimestamp(clock.now, UTC)

    def full(_: Path) -> None:
        raise InsufficientSpace("the disk is full")

    monkeypatch.setattr(administration_module, "atomic_file", full)
    with pytest.raises(InsufficientSpace):
        prune(store.database, now, tmp_path, runs, now)
    assert len(store.records()) == len(left(runs)) == 4


def test_a_job_whose_story_went_on_after_the_archive_was_written_stays(
    store: JobStore, clock: Clock, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9"""
    ids = lived(store, clock)
    wrote(runs, *ids.values())

    @contextmanager
    def written_to_meanwhile(path: Path) -> Iterator[IO[bytes]]:
        with atomic_file(path) as sink:
            yield sink
        store.note(ids["old"], "a late remark")

    monkeypatch.setattr(administration_module, "atomic_file", written_to_meanwhile)
    now = datetime.fromtimestamp(clock.now, UTC)
    prune(store.database, now, tmp_path, runs, now)
    kept = {ids["old"], ids["running"]}
    assert {record.job.job_id for record in store.records()} == {file.partition("/")[0] for file in left(runs)} == kept
    assert store.events(ids["old"])[-1].reason == "a late remark"
    assert first_altered(store.database)[1] is None


def test_a_folder_stays_where_its_job_could_not_be_removed(
    store: JobStore, clock: Clock, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9"""
    ids = lived(store, clock)
    wrote(runs, *ids.values())

    @contextmanager
    def interrupted(database: Database) -> Iterator[Connection]:
        with Database.begin(database) as connection:
            yield connection
            raise KeyboardInterrupt

    now = datetime.fromtimestamp(clock.now, UTC)
    monkeypatch.setattr(store.database, "begin", lambda: interrupted(store.database))
    with pytest.raises(KeyboardInterrupt):
        prune(store.database, now, tmp_path, runs, now)
    assert len(store.records()) == 4
    assert {file.partition("/")[0] for file in left(runs)} == set(ids.values())


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_what_a_killed_process_left_goes_the_next_time(
    store: JobStore, clock: Clock, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """D9"""
    ids = lived(store, clock)
    wrote(runs, *ids.values())
    now = datetime.fromtimestamp(clock.now, UTC)
    old = [ids[name] for name in ("old", "cancelled", "recent")]
    if moment == "before the commit":
        with RunFolders(runs).putting_aside() as put_aside:
            put_aside(old)
        wrote(runs, old[0])  # by a late attempt
    else:
        monkeypatch.setattr(RunFolders, "remove", lambda _: Space())
        prune(store.database, now, tmp_path, runs, now)
        monkeypatch.undo()
    assert len(left(runs)) >= 4
    removed, _ = prune(store.database, now, tmp_path, runs, now)
    assert removed.space == (Space(4, 40) if moment == "before the commit" else Space(3, 30))
    assert [record.job.job_id for record in store.records()] == [ids["running"]]
    assert left(runs) == [f"{ids['running']}/task/1.1/output.bundle"]


def test_a_folder_that_cannot_be_removed_is_told_and_keeps_no_other(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """D9"""
    folders = RunFolders(runs)
    wrote(runs, "job_1", "job_2")
    with folders.putting_aside() as put_aside:
        put_aside(["job_1", "job_2", "job_3"])
    unlink = os.unlink

    def refused(path: str, **options: Any) -> None:
        if "job_1" in str(Path(f"/proc/self/fd/{options['dir_fd']}").readlink()):
            raise PermissionError(f"{path} is busy")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        assert folders.remove() == Space(1, 10)
    assert "output.bundle of a job that is gone could not be removed" in caplog.text
    assert folders.remove() == Space(1, 10)


def test_the_command_checks_verifies_and_removes(home: Path) -> None:
    """D9, D12"""
    run = CliRunner().invoke
    with closing(open_database()) as database:
        clock = Clock(Clock(1_800_000_000.0).now - 200 * DAY)
        store = JobStore(database, clock=clock)
        ids = lived(store, clock)
        wrote(home / "runs", *ids.values())
        assert run(app, ["--output", "json", "db", "upgrade"]).exit_code == 0
        assert json.loads(run(app, ["--output", "json", "db", "check"]).stdout)["differences"] == []
        shown = json.loads(run(app, ["--output", "json", "db", "prune", "--days", "0"]).stdout)
        assert (shown["jobs"], shown["removed"], shown["archive"]) == (3, False, None)
        assert (shown["folders"], shown["bytes"]) == (3, 30)
        assert len(store.records()) == len(left(home / "runs")) == 4
        removed = json.loads(run(app, ["--output", "json", "db", "prune", "--days", "0", "--yes"]).stdout)
        assert (removed["jobs"], Path(removed["archive"]).parent) == (3, home / "archive")
        assert (removed["folders"], removed["bytes"], len(left(home / "runs"))) == (3, 30, 1)
        assert [record.job.job_id for record in store.records()] == [ids["running"]]
        assert json.loads(run(app, ["--output", "json", "db", "verify"]).stdout)["altered"] is None
        forge(database, "UPDATE job_event SET reason = 'forged' WHERE seq = 2")
        altered = run(app, ["--output", "json", "db", "verify"])
        assert altered.exit_code == 1
        assert json.loads(altered.stdout)["altered"]["subject"] == f"job:{ids['running']}"
        with database.begin() as connection:
            connection.execute(text("DROP INDEX ix_job_batch"))
        different = run(app, ["db", "check"])
        assert (different.exit_code, "ix_job_batch" in different.stderr) == (1, True)
