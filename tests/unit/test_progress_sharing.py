"""One job's progress for many processes: the database shows what its newest attempt told."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from sqlalchemy import event, select
from tests.support.timing import wait_until

from rayzyme.database import Database, open_database
from rayzyme.database.tables import Progress
from rayzyme.errors import DatabaseError, NotFound, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.monitoring.progress import ProgressTracker
from rayzyme.settings import load_settings, use_settings

READER = """
import json, sys
from rayzyme.database import open_database
from rayzyme.monitoring.progress import ProgressTracker
database = open_database(sys.argv[1])
with ProgressTracker.attach("job_1", database) as shared:
    print(json.dumps([shared.get_progress(), shared.get_task_progress("b"), shared.get_messages("b"), shared.get_messages()]))
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


def started() -> ProgressTracker:
    tracker = ProgressTracker(clock=lambda: 5.0)
    tracker.start_task("a", "A", 2)
    tracker.start_task("b", "B", 4, "a")
    tracker.update_task("b", 1, "hostile \0 \ud800 \u2028 é")
    tracker.update(1, "own")
    return tracker


def test_another_process_reads_the_same_figures(database: Database, database_url: str) -> None:
    """C50"""
    with started() as tracker:
        tracker.publish("job_1", database=database)
        read = subprocess.run([sys.executable, "-c", READER, database_url], capture_output=True, text=True, check=True)
        told = [
            tracker.get_progress(),
            tracker.get_task_progress("b"),
            tracker.get_messages("b"),
            tracker.get_messages(),
        ]
        assert json.loads(read.stdout) == told


def test_changes_are_told_by_themselves_and_the_last_one_at_close(database: Database) -> None:
    """C50"""
    shared = ProgressTracker.attach("job_1", database)
    tracker = started()
    tracker.publish("job_1", database=database)
    tracker.update_task("b", 1)
    wait_until(lambda: shared.get_progress()["percent"] == 25.0)
    tracker.update_task("b", 2, "all")
    tracker.close()
    assert shared.get_progress()["percent"] == 50.0
    assert shared.get_messages("b")[-1]["message"] == "all"
    assert get_metrics_collector().get_latest("rayzyme_progress_percent") == 50.0


def test_a_thousand_updates_are_few_writes(database: Database) -> None:
    """C50"""
    writes: list[float] = []
    event.listen(database.engine, "commit", lambda _connection: writes.append(time.monotonic()))
    with ProgressTracker(10**9) as tracker:
        tracker.publish("job_1", database=database)
        begin = time.monotonic()
        while len(writes) < 3:
            tracker.update()
            assert time.monotonic() < begin + 20, "waited in vain"
        assert all(later - earlier >= 0.95 for earlier, later in pairwise(writes))


def test_news_of_a_late_attempt_are_ignored(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """C50"""
    shared = ProgressTracker.attach("job_1", database)
    old, new = ProgressTracker(), ProgressTracker()
    old.publish("job_1", 1, database)
    new.publish("job_1", 2, database)
    new.update(10)
    old.update(90)
    with caplog.at_level(logging.WARNING):
        new.close()
        old.close()
    assert shared.get_progress()["percent"] == 10.0
    assert "attempt 1 of job job_1 is ignored" in caplog.text
    with ProgressTracker() as later:
        later.publish("job_1", 3, database)
        assert shared.get_progress()["percent"] == 0.0


def test_of_attempts_that_tell_at_once_the_latest_stays(database: Database) -> None:
    """C50"""

    def tell(attempt: int) -> None:
        with ProgressTracker() as tracker:
            tracker.update(attempt)
            tracker.publish("job_1", attempt, database)

    threads = [threading.Thread(target=tell, args=(attempt,)) for attempt in (3, 1, 8, 2, 5, 4, 7, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        row = connection.execute(select(Progress)).one()
    assert (row.attempt, row.snapshot["progress"]["percent"]) == (8, 8.0)


def test_what_was_never_told_is_not_found(database: Database) -> None:
    shared = ProgressTracker.attach("job_2", database)
    with pytest.raises(NotFound, match="job job_2 has published no progress"):
        shared.get_progress()
    with ProgressTracker() as tracker:
        tracker.publish("job_2", database=database)
        with pytest.raises(KeyError, match="'nobody' is not the id of a started task"):
            shared.get_messages("nobody")


def test_only_the_last_messages_are_shared(database: Database) -> None:
    with ProgressTracker() as tracker:
        for number in range(300):
            tracker.update(0, str(number))
        tracker.publish("job_1", database=database)
        told = ProgressTracker.attach("job_1", database).get_messages()
        assert told == tracker.get_messages()[-100:]


def test_the_settings_database_is_opened_and_closed_again(database_url: str) -> None:
    """C3"""
    use_settings(load_settings(overrides={"database": {"url": database_url}}))
    with ProgressTracker() as tracker:
        tracker.update(7)
        tracker.publish("job_1")
        with ProgressTracker.attach("job_1") as shared:
            assert shared.get_progress()["percent"] == 7.0
        publication, attached = tracker._publication, shared
    for closed in (publication, attached):
        assert closed is not None
        assert closed._database.engine.pool.checkedin() == 0


def test_publishing_arguments_are_checked(database: Database) -> None:
    """C2"""
    tracker = ProgressTracker()
    for wrong in ("", "x" * 65, "a\0b", None):
        with pytest.raises(ValidationError, match="job_id"):
            tracker.publish(wrong, database=database)
        with pytest.raises(ValidationError, match="job_id"):
            ProgressTracker.attach(wrong, database)
    for wrong in (0, True, 1.0):
        with pytest.raises(ValidationError, match="attempt"):
            tracker.publish("job_1", wrong, database)
    tracker.publish("job_1", database=database)
    with pytest.raises(ValidationError, match="publishes already, for job job_1"):
        tracker.publish("job_2", database=database)
    tracker.close()


def test_a_database_that_fails_later_costs_no_update(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, works = ProgressTracker(), Database.begin
    tracker.publish("job_1", database=database)
    failed = threading.Event()

    def fail(*_arguments: object) -> None:
        failed.set()
        raise DatabaseError("gone for a while")

    monkeypatch.setattr(Database, "begin", fail)
    tracker.update(5)
    assert failed.wait(20)
    monkeypatch.setattr(Database, "begin", works)
    shared = ProgressTracker.attach("job_1", database)
    wait_until(lambda: shared.get_progress()["percent"] == 5.0)
    assert "gone for a while" in caplog.text
    tracker.close()
