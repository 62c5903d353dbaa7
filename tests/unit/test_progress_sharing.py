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
from pathlib import Path

import pytest
from sqlalchemy import event, select
from tests.support.timing import Clock, wait_until

from rayzyme.database import Database, open_database
from rayzyme.database.tables import Progress
from rayzyme.errors import DatabaseError, NotFound, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.monitoring.progress import ProgressTracker
from rayzyme.monitoring.progress_sharing import SharedProgress
from rayzyme.settings import load_settings, use_settings

READER = """
import json, sys
from rayzyme.database import open_database
from rayzyme.monitoring.progress import ProgressTracker
database = open_database(sys.argv[1])
with ProgressTracker.attach("job_1", database) as shared:
    print(json.dumps([shared.get_progress(), shared.get_task_progress("b"), shared.get_messages("b"), shared.get_messages()]))
"""


UNCLOSED = """
import sys
from rayzyme.database import open_database
from rayzyme.monitoring.progress import ProgressTracker
def main():
    tracker = ProgressTracker()
    tracker.publish("job_1", database=open_database(sys.argv[1]) if sys.argv[3] == "given" else None)
    tracker.update(100)
    return tracker
if sys.argv[2] == "dropped":
    main()
else:
    kept = main()
"""

FORKING = """
import os, sys, time
from rayzyme.database import open_database
from rayzyme.monitoring.progress import ProgressTracker
url = sys.argv[1]
tracker = ProgressTracker()
tracker.start()
tracker.publish("job_1", database=open_database(url))
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    shared = ProgressTracker.attach("job_1", open_database(url), clock=lambda: time.time() + 1000)
    print(shared.get_progress()["elapsed_time"] > 900)
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
        seen = json.loads(read.stdout)
        for each in seen[:2]:
            assert each.pop("elapsed_time") >= 0.0  # goes on while nobody updates, by the reader's clock
        for each in told[:2]:
            assert isinstance(each, dict)
            del each["elapsed_time"]
        assert seen == told


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


@pytest.mark.parametrize("opened", ["given", "its own"])
@pytest.mark.parametrize("how", ["kept", "dropped"])
def test_the_last_news_are_told_when_the_interpreter_ends(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, how: str, opened: str
) -> None:
    """C50"""
    monkeypatch.setenv("RAYZYME_DATABASE__URL", database_url)
    subprocess.run([sys.executable, "-c", UNCLOSED, database_url, how, opened], check=True)
    shared = ProgressTracker.attach("job_1", database, clock=lambda: time.time() + 1000)
    first, second = shared.get_progress(), shared.get_progress()
    assert first["percent"] == 100.0
    assert first["elapsed_time"] == second["elapsed_time"] < 100.0


def test_the_end_of_a_forked_child_is_not_the_end_of_the_run(database: Database, database_url: str) -> None:
    """C50"""
    seen = subprocess.run([sys.executable, "-c", FORKING, database_url], capture_output=True, text=True, check=True)
    assert seen.stdout == "True\n"


def test_the_last_news_are_told_when_the_tracker_is_dropped(database: Database) -> None:
    """C50"""
    tracker = ProgressTracker()
    tracker.publish("job_1", database=database)
    tracker.update(41)
    del tracker
    shared = ProgressTracker.attach("job_1", database)
    wait_until(lambda: shared.get_progress()["percent"] == 41.0)
    ahead = ProgressTracker.attach("job_1", database, clock=lambda: time.time() + 1000)
    assert ahead.get_progress()["elapsed_time"] < 100.0, "nobody works on it any more"


def test_a_reader_sees_by_its_own_clock_that_a_run_stands_still(database: Database) -> None:
    """C45, C50"""
    worker, reader = Clock(), Clock(time.time())
    shared = ProgressTracker.attach("job_1", database, clock=reader)

    def told(tracker: ProgressTracker | SharedProgress) -> list[object]:
        progress = tracker.get_progress()
        names = ("stalled", "estimated_remaining", "eta_low", "eta_high", "percent")
        return [*(progress[name] for name in names), pytest.approx(progress["elapsed_time"], abs=60)]

    tracker = ProgressTracker(100, clock=worker)
    for _ in range(10):
        worker.now += 200
        tracker.update()
    tracker.publish("job_1", database=database)
    assert told(shared) == told(tracker) == [False, 18000.0, 18000.0, 18000.0, 10.0, 2000.0]
    for silence in (1000, 900, 200, 10_000):
        worker.now, reader.now = worker.now + silence, reader.now + silence
        assert told(shared) == told(tracker)
    assert told(tracker) == [True, None, None, None, 10.0, 14100.0]
    tracker.close()
    reader.now = time.time() + 10_000
    closed = shared.get_progress()
    assert (closed["stalled"], closed["elapsed_time"]) == (True, 14100.0)


def test_a_quick_run_is_not_stalled_while_its_next_news_wait_to_be_told(database: Database) -> None:
    """C50"""
    worker, reader = Clock(), Clock(time.time())
    shared = ProgressTracker.attach("job_1", database, clock=reader)
    with ProgressTracker(100, clock=worker) as tracker:
        for _ in range(10):
            worker.now += 0.001
            tracker.update()
        tracker.publish("job_1", database=database)
        reader.now += 1.5
        assert shared.get_progress()["stalled"] is False
        reader.now += 10
        assert shared.get_progress()["stalled"] is True


def test_the_time_of_running_tasks_goes_on_for_readers(database: Database) -> None:
    """C50"""
    reader = Clock(time.time() + 1000)
    shared = ProgressTracker.attach("job_1", database, clock=reader)
    tracker = started()
    tracker.start_task("c", "C", 1)
    tracker.complete_task("c")
    tracker.publish("job_1", database=database)
    times = {name: shared.get_task_progress(name)["elapsed_time"] for name in ("a", "b", "c")}
    assert times == {"a": pytest.approx(1000, abs=60), "b": pytest.approx(1000, abs=60), "c": 0.0}
    tracker.close()
    assert shared.get_task_progress("a")["elapsed_time"] == tracker.get_task_progress("a")["elapsed_time"] == 0.0


def test_a_run_that_is_done_takes_no_more_time_for_readers(database: Database) -> None:
    """C50"""
    shared = ProgressTracker.attach("job_1", database, clock=lambda: time.time() + 1000)
    with ProgressTracker(clock=lambda: 5.0) as tracker:
        tracker.publish("job_1", database=database)
        assert shared.get_progress()["elapsed_time"] == 0.0, "it has not begun"
        tracker.update(100)
    told = shared.get_progress()
    assert (told["elapsed_time"], told["stalled"], told["estimated_remaining"]) == (0.0, False, 0.0)


def test_what_is_loaded_is_told(database: Database, tmp_path: Path) -> None:
    """C50"""
    saved = ProgressTracker()
    saved.update(41)
    path = saved.save_checkpoint(tmp_path / "progress.json")
    with ProgressTracker() as tracker:
        tracker.publish("job_1", database=database)
        tracker.load_checkpoint(path)
        shared = ProgressTracker.attach("job_1", database)
        wait_until(lambda: shared.get_progress()["percent"] == 41.0)


def test_only_the_write_at_close_may_follow_at_once(database: Database) -> None:
    """C50"""
    writes: list[float] = []
    event.listen(database.engine, "commit", lambda _connection: writes.append(time.monotonic()))
    tracker, shared = ProgressTracker(), ProgressTracker.attach("job_1", database)
    tracker.publish("job_1", database=database)
    for _ in range(50):
        tracker.update()
    assert len(writes) == 1
    tracker.close()
    assert len(writes) == 2
    assert shared.get_progress()["percent"] == 50.0
    tracker.close()
    assert len(writes) == 2


def test_a_closed_tracker_may_be_told_of_once(database: Database) -> None:
    tracker = ProgressTracker()
    tracker.update(41)
    tracker.close()
    tracker.publish("job_1", database=database)
    tracker.update(1)
    assert ProgressTracker.attach("job_1", database).get_progress()["percent"] == 41.0
    assert not [thread for thread in threading.enumerate() if thread.name == "progress-publishing"]


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
        publication, attached = tracker._run.publication, shared
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
