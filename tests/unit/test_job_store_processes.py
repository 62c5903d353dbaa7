"""The store of jobs between processes: many that write at once, a reader that stays, one that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.job_samples import SLOT, request, start

from rayzyme.database import open_database
from rayzyme.database.administration import first_altered
from rayzyme.database.tables import JobEvent
from rayzyme.jobs.role import ProcessIdentity, is_provably_gone, process_identity
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore

SUBMITTER = Path(__file__).resolve().parent.parent / "support" / "job_submitter.py"


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    with closing(open_database(database_url)) as database:
        yield JobStore(database, lease_ttl=1.0)


@contextmanager
def process(url: str, what: str, name: str, count: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(SUBMITTER), url, what, name, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def told(running: subprocess.Popen[str]) -> Any:
    assert running.stdout is not None
    line = running.stdout.readline()
    assert line, "it ended without an answer"
    return json.loads(line)


def go(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def test_four_processes_submit_at_once(store: JobStore, database_url: str) -> None:
    """D10"""
    count, competing = 250, []
    with (
        process(database_url, "submit", "a", count) as one,
        process(database_url, "submit", "b", count) as two,
        process(database_url, "submit", "c", count) as three,
        process(database_url, "submit", "d", count) as four,
    ):
        competing = [one, two, three, four]
        assert [told(each) for each in competing] == ["ready"] * 4
        for each in competing:
            go(each)
        ids = [job_id for each in competing for job_id in told(each)]
    assert len(set(ids)) == 4 * count
    assert {job.job_id for job in store.live_jobs()} == set(ids)
    assert first_altered(store.database) == (4 * count, None)


def test_one_key_from_several_processes_is_one_job(store: JobStore, database_url: str) -> None:
    """D13"""
    with process(database_url, "key", "a", 100) as one, process(database_url, "key", "b", 100) as two:
        assert told(one) == told(two) == "ready"
        go(one)
        go(two)
        first, second = told(one), told(two)
    assert first == second
    assert len(set(first)) == 100
    assert len(store.live_jobs()) == 100


def test_what_was_answered_survives_a_kill_straight_after_it(store: JobStore, database_url: str) -> None:
    """D13"""
    with process(database_url, "kill", "kept", 20) as killed:
        ids = told(killed)
        assert killed.wait(10) == -9
    assert [(job.job_id, job.state) for job in store.live_jobs()] == [(job_id, JobState.QUEUED) for job_id in ids]
    assert [event.reason for event in store.events(ids[-1])] == ["submitted"]


def test_a_reader_that_stays_does_not_stop_a_thousand_changes(store: JobStore) -> None:
    """D10"""
    with store.database.read() as reader:
        before = reader.execute(select(JobEvent.id)).all()
        ids = store.submit([request() for _ in range(500)])
        for job_id in ids[:250]:
            assert store.hold(job_id)
        room = {SLOT: 1000.0}
        for begin in range(250, 500, 10):
            store.apply([start(job_id) for job_id in ids[begin : begin + 10]], capacity=room)
        assert len(reader.execute(select(JobEvent.id)).all()) in (len(before), 1000)
    with store.database.read() as connection:
        assert len(connection.execute(select(JobEvent.id)).all()) == 1000


def test_a_killed_holder_frees_its_capacity_when_its_lease_lapses(store: JobStore, database_url: str) -> None:
    """D15"""
    (waiting,) = store.submit([request()])
    with process(database_url, "hold", "runner:doomed", 2.0) as holder:
        job_id = told(holder)
        assert not store.apply([start(waiting)], capacity={SLOT: 1.0})[0].accepted
        assert store.lapsed(time.time()) == []
        holder.kill()
        holder.wait()
    until(lambda: store.lapsed(time.time()))
    assert [job.job_id for job in store.lapsed(time.time())] == [job_id]
    assert store.apply([start(waiting)], capacity={SLOT: 1.0})[0].accepted


def test_the_role_goes_over_at_once_when_its_holder_is_provably_gone(store: JobStore, database_url: str) -> None:
    """D15, D40, D59"""
    me = process_identity()
    with process(database_url, "role", "other", 600.0) as holder:
        token, document = told(holder)
        other = ProcessIdentity.from_dict(document)
        found = store.role()
        assert found is not None
        assert (found.identity, found.token, found.info) == (other, token, {"host": "here", "pid": holder.pid})
        assert not is_provably_gone(other)
        assert store.take_role(me, {}, is_provably_gone) is None
        assert store.request_stop("ada") is True
        holder.kill()
        holder.wait()
    assert is_provably_gone(other)
    taken = store.take_role(me, {"host": "mine"}, is_provably_gone)
    assert taken is not None
    assert taken > token
    assert not store.renew_role(token)
    # The wish was not for the process alone.
    assert store.stop_requested()
    store.release_role(taken)
    assert (store.role(), store.stop_requested()) == (None, False)
