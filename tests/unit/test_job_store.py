"""The store of jobs: accepted once, read back, cancelled, held, looked for, told in order."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import inspect, text
from tests.support.job_samples import ROOM, SLOT, change, finish, request, settled, start
from tests.support.timing import Clock

from rayzyme.database import Database, open_database, record_event
from rayzyme.database.administration import first_altered
from rayzyme.errors import DatabaseError, IdempotencyConflict, QuotaExceeded, UnknownJob, ValidationError
from rayzyme.jobs.applying import Batch, Rules
from rayzyme.jobs.group_commit import GroupCommit
from rayzyme.jobs.job import JobRequest, TaskPriority
from rayzyme.jobs.role import SETTINGS, process_identity
from rayzyme.jobs.scheduling_config import OwnerQuota, SchedulingConfig
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.jobs.submitting import Call, check_request
from rayzyme.workflows import WorkflowResult

PASSWORD = "planted-secret"


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[JobStore]:
    # Neither server checks it; it must not be seen anywhere.
    with closing(open_database(database_url.replace("rayzyme@", f"rayzyme:{PASSWORD}@"))) as database:
        yield JobStore(database, clock=clock)


def test_what_is_submitted_is_read_back(store: JobStore, clock: Clock) -> None:
    """D4, D6, D53"""
    asked = request(
        "fold", "ada", job_type="screening", priority=TaskPriority.HIGH, task_count=3, needs={SLOT: 1.0, "gpu": 2.0, "cpu": 0.0},
        metadata={"deadline": "2027-01-20T12:00:00+01:00", "note": "grüße"}, max_site_faults=2, is_durable=False,
        estimated_seconds=90,
        spec={"tasks": [{"x": 1.5}], "b": None, "a": "\0"},
    )  # fmt: skip
    (job_id,) = store.submit([asked])
    assert job_id.startswith("job_")
    assert len(job_id) == 16
    assert int(job_id[4:], 16) >= 0
    job = store.job(job_id)
    assert (job.name, job.owner, job.kind, job.job_type) == ("fold", "ada", "workflow", "screening")
    assert (job.priority, job.state, job.attempt, job.task_count) == (TaskPriority.HIGH, JobState.QUEUED, 0, 3)
    assert (job.submitted_at, job.needs, job.max_site_faults) == (clock.now, {SLOT: 1.0, "gpu": 2.0}, 2)
    assert job.estimated_seconds == 90.0
    assert job.deadline == datetime(2027, 1, 20, 11, tzinfo=UTC).timestamp()
    assert store.live_jobs() == [job]
    assert store.specs([job_id, "job_absent"]) == {job_id: asked.spec}
    record = store.record(job_id)
    assert (record.job, record.metadata, record.is_durable) == (job, asked.metadata, False)
    assert store.counts()[JobState.QUEUED] == 1
    with store.database.read() as connection:
        schema = "" if store.database.schema is None else "rayzyme."
        assert connection.execute(text(f"SELECT priority, status FROM {schema}job")).one() == (2, "submitted")


def test_a_job_is_told_as_a_dictionary(store: JobStore, clock: Clock) -> None:
    """D11, D55"""
    (job_id,) = store.submit([request(priority=TaskPriority.LOW, metadata={"a": 1})])
    queued = store.record(job_id).to_dict()
    clock.now += 2.5
    store.apply([start(job_id)], capacity=ROOM)
    clock.now += 10.0
    running = store.record(job_id).to_dict()
    store.apply([finish(job_id)])
    clock.now += 100.0
    assert (queued["status"], queued["started_at"], queued["execution_time"]) == ("queued", None, None)
    assert (running["status"], running["wait_time"], running["execution_time"]) == ("running", 2.5, 10.0)
    assert store.record(job_id).to_dict() == {
        "job_id": job_id,
        "name": "job",
        "priority": 0,
        "status": "completed",
        "created_at": "2027-01-15T08:00:00.000Z",
        "started_at": "2027-01-15T08:00:02.500Z",
        "completed_at": "2027-01-15T08:00:12.500Z",
        "wait_time": 2.5,
        "execution_time": 10.0,
        "total_time": 12.5,
        "metadata": {"a": 1},
        "owner": "ada",
    }


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": ""}, "name must be"),
        ({"owner": "a" * 300}, "owner must be"),
        ({"kind": "dance"}, "kind must be one of workflow, operation, command, not 'dance'"),
        ({"spec": {"x": object()}}, "spec must be JSON: .*object"),
        ({"spec": [1]}, "spec must be a mapping"),
        ({"metadata": {"deadline": "tomorrow"}}, "deadline must be a time in ISO 8601 .*'tomorrow'"),
        ({"metadata": {"deadline": True}}, "deadline must be"),
        ({"needs": {"gpu": float("nan")}}, "needs: gpu must be a finite amount"),
        ({"needs": {"gpu": -1}}, "needs: gpu must be"),
        ({"task_count": 0}, "task_count must be at least 1"),
        ({"estimated_seconds": float("nan")}, "estimated_seconds must be"),
        ({"max_site_faults": 1.5}, "max_site_faults must be a whole number"),
        ({"idempotency_key": ""}, "idempotency_key must be"),
    ],
)
def test_a_request_that_cannot_be_written_is_refused_by_field(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        check_request(replace(request(), **wrong))


def test_an_unknown_job_is_told_and_is_a_key_error(store: JobStore) -> None:
    """D46, D54"""
    for ask in (store.job, store.record, store.tasks, store.attempts, store.events, store.request_cancel, store.hold):
        with pytest.raises(KeyError) as caught:
            ask("job_absent")
        assert type(caught.value) is UnknownJob
        assert str(caught.value).startswith("there is no job job_absent")


def test_the_same_key_of_the_same_owner_is_the_same_job(store: JobStore) -> None:
    """D13"""
    keyed = request("fold", idempotency_key="k")
    first, twin, other = store.submit([keyed, keyed, replace(keyed, owner="bob")])
    assert first == twin != other
    assert store.submit([request(), keyed, keyed])[1:] == [first, first]
    assert len(store.records()) == 3
    # What follows from a request by itself does not make it another one.
    assert store.submit([replace(keyed, needs={SLOT: 2.0}, task_count=5)]) == [first]


def test_the_same_key_for_another_request_is_refused_with_the_whole_call(store: JobStore) -> None:
    """D13"""
    (first,) = store.submit([request("fold", idempotency_key="k")])
    for other in ({"name": "unfold"}, {"metadata": {"a": 1}}, {"spec": {"tasks": [1]}}, {"priority": TaskPriority.LOW}):
        wrong = replace(request("fold", idempotency_key="k"), **other)
        with pytest.raises(IdempotencyConflict, match=f"'k' of ada belongs to {first}"):
            store.submit([request("new"), wrong])
    with pytest.raises(IdempotencyConflict):
        store.submit([request("one", idempotency_key="new"), request("two", idempotency_key="new")])
    assert [record.job.job_id for record in store.records()] == [first]


def test_the_queued_quota_counts_what_waits_and_not_what_is_repeated(store: JobStore) -> None:
    """D50"""
    quotas = SchedulingConfig(quotas={"ada": OwnerQuota(queued=2)})
    keyed = request("kept", idempotency_key="k")
    (first,) = store.submit([keyed], quotas=quotas)
    store.submit([request("b", "bob")] * 5, quotas=quotas)
    with pytest.raises(QuotaExceeded, match="ada has 1 queued jobs and may have 2: 2 more"):
        store.submit([request(), request()], quotas=quotas)
    store.submit([request()], quotas=quotas)
    assert store.submit([keyed], quotas=quotas) == [first]
    with pytest.raises(QuotaExceeded):
        store.submit([request()], quotas=quotas)
    store.apply([start(first)], capacity=ROOM)
    store.submit([request()], quotas=quotas)


def test_calls_of_several_threads_are_written_together_and_fail_alone(store: JobStore) -> None:
    """D13"""
    store.submit([request("taken", idempotency_key="k")])
    groups: list[int] = []
    first_is_writing, may_go_on = threading.Event(), threading.Event()

    def write(calls: list[Call]) -> None:
        groups.append(len(calls))
        if len(groups) == 1:
            first_is_writing.set()
            assert may_go_on.wait(10)
        store._accept(calls)

    group, outcomes = GroupCommit(write), dict[int, object]()

    def submit(number: int) -> None:
        asked = request("other", idempotency_key="k") if number == 3 else request(f"job {number}")
        try:
            outcomes[number] = group.submit(Call([check_request(asked)]))
        except IdempotencyConflict as error:
            outcomes[number] = error

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    threads[0].start()
    assert first_is_writing.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(group._waiting) < 7:
        threading.Event().wait(0.001)
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert groups == [1, 7]
    assert isinstance(outcomes.pop(3), IdempotencyConflict)
    ids = [job_id for ids in outcomes.values() for job_id in ids]
    assert {record.job.job_id for record in store.records()} >= set(ids)
    assert len(set(ids)) == 7


def test_calls_of_one_group_share_a_key(store: JobStore) -> None:
    """D13"""
    calls = [Call([check_request(request(name, idempotency_key="k"))]) for name in ("fold", "fold", "unfold")]
    store._accept(calls)
    assert calls[0].outcome == calls[1].outcome == [store.records()[0].job.job_id]
    assert isinstance(calls[2].outcome, IdempotencyConflict)


def test_a_group_that_cannot_be_written_tells_every_caller() -> None:
    """D13"""

    def write(_: object) -> None:
        raise DatabaseError("the disk is gone")

    group = GroupCommit(write)
    for _ in range(2):
        with pytest.raises(DatabaseError, match="the disk is gone"):
            group.submit(Call([check_request(request())]))


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(store: JobStore) -> None:
    """D46"""
    waiting, running, ended = store.submit([request(), request(), request()])
    store.apply([start(running), start(ended)], capacity=ROOM)
    store.apply([finish(ended)])
    assert store.request_cancel(waiting, "ada") is True
    assert store.request_cancel(running) is True
    assert store.request_cancel(running) is True
    assert store.request_cancel(ended) is False
    assert (store.job(waiting).state, store.job(running).state) == (JobState.CANCELLED, JobState.RUNNING)
    assert store.job(running).cancel_requested
    assert not store.apply([start(waiting)], capacity=ROOM)[0].accepted
    assert [(event.actor, event.to_state) for event in store.events(waiting)][-1] == ("ada", JobState.CANCELLED)
    assert [event.reason for event in store.events(running)] == ["submitted", "started", "cancelling was asked for"]
    # Lost by its runner before it had stopped, it waits for the scheduler's word and is not begun again.
    store.apply([change(running, JobState.QUEUED, release=True)])
    (refused,) = store.apply([start(running, 2)], capacity=ROOM)
    assert (refused.accepted, refused.why) == (False, f"the user of {running} has cancelled it")


def test_a_held_job_is_not_started(store: JobStore) -> None:
    """D60"""
    (job_id,) = store.submit([request()])
    assert store.hold(job_id)
    assert store.job(job_id).is_held
    (refused,) = store.apply([start(job_id)], capacity=ROOM)
    assert (refused.accepted, refused.why) == (False, f"the user of {job_id} holds it")
    assert store.unhold(job_id)
    assert store.apply([start(job_id)], capacity=ROOM)[0].accepted
    assert not store.hold(job_id)
    assert [event.reason for event in store.events(job_id)] == ["submitted", "held", "released", "started"]


def test_a_job_that_ended_is_submitted_again_as_a_new_one(store: JobStore) -> None:
    """D60"""
    first, transient = store.submit(
        [request("fold", job_type="t", metadata={"a": 1}, spec={"x": 1}), request(is_durable=False)]
    )
    with pytest.raises(ValidationError, match="only a job that has ended"):
        store.submit_again(first)
    store.request_cancel(first)
    store.request_cancel(transient)
    again = store.submit_again(first)
    record = store.record(again)
    assert (record.retry_of, record.metadata, record.job.name, record.job.state) == (first, {"a": 1}, "fold", "queued")
    assert store.specs([again])[again] == {"x": 1}
    with pytest.raises(ValidationError, match="cannot be imported by other processes"):
        store.submit_again(transient)


def test_jobs_are_found_by_state_owner_number_and_beginning(store: JobStore) -> None:
    """D57, D60"""
    ids = store.submit([request(str(number), "bob" if number == 2 else "ada") for number in range(4)])
    store.request_cancel(ids[0])

    def names(records: list[Any]) -> list[str]:
        return [record.job.name for record in records]

    assert names(store.records()) == ["3", "2", "1", "0"]
    assert names(store.records(limit=2)) == ["3", "2"]
    assert names(store.records(states=[JobState.CANCELLED])) == ["0"]
    assert names(store.records(states=[JobState.QUEUED], owner="bob")) == ["2"]
    first = store.job(ids[1]).sequence
    assert names(store.numbered(first, first + 1)) == ["1", "2"]
    assert names(store.beginning_with(ids[3][:-1])) == ["3"]
    assert store.beginning_with("job-") == []
    assert [job.name for job in store.live_jobs()] == ["1", "2", "3"]


def test_what_changed_is_found_however_wrong_other_clocks_are(store: JobStore, clock: Clock) -> None:
    """D11, D40"""
    behind = JobStore(store.database, clock=Clock(clock.now - 1000.0))
    old = behind.submit([request("old")])[0]
    assert [job.job_id for job in store.changed_since(clock.now)] == [old]
    clock.now += 1.0
    assert store.changed_since(clock.now - 1.0) == []
    new = behind.submit([request("new")])[0]
    behind.hold(old)
    assert {job.job_id for job in store.changed_since(clock.now)} == {old, new}
    clock.now += 1.0
    assert store.changed_since(clock.now) == []
    # Asked from an earlier moment it tells again.
    assert {job.job_id for job in store.changed_since(clock.now - 2.0)} == {old, new}


def test_a_change_that_is_committed_late_is_not_missed(postgresql: str, clock: Clock) -> None:
    """D11, D40"""
    with closing(open_database(postgresql, "late_commit")) as database:
        store = JobStore(database, clock=clock)
        early, late = store.submit([request("early"), request("late")])
        store.changed_since(clock.now)
        with database.begin() as connection:
            touched = replace(change(late, None, 0), states=frozenset({JobState.QUEUED}))
            batch = Batch(connection, [touched], Rules(clock.now, 30.0, 1.0))
            assert batch.take(touched).accepted
            batch.write()
            store.hold(early)
            clock.now += 1.0
            assert [job.job_id for job in store.changed_since(clock.now)] == [early]
        clock.now += 1.0
        assert late in [job.job_id for job in store.changed_since(clock.now)]
        with database.begin() as connection:
            connection.execute(text("DROP SCHEMA late_commit CASCADE"))


def test_events_tell_the_story_and_continue_where_one_left_off(store: JobStore) -> None:
    """D12, D37"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    store.note(job_id, "remark", "ada", {"gpu": {2: float("nan"), 10: "\ud800"}})
    store.apply([change(job_id, None, tasks=(settled("load"),), data={"why": "it ended"})])
    events = store.events(job_id)
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [(event.from_state, event.to_state) for event in events] == [
        (None, "queued"), ("queued", "running"), (None, None), (None, None),
    ]  # fmt: skip
    assert events[1].data == {"attempt": 1}
    assert events[2].data == {"gpu": {"2": "nan", "10": "\ud800"}}
    assert events[3].data == {"why": "it ended", "tasks": [{"name": "load", "state": "completed", "attempt": 1}]}
    assert store.events(job_id, after=events[1].id) == events[2:]
    assert store.job(job_id).version == 4
    assert first_altered(store.database) == (4, None)
    with pytest.raises(ValueError, match=r"use JobStore\.note"), store.database.begin() as connection:
        record_event(connection, f"job:{job_id}", "behind the store's back")


def test_the_quotas_of_the_scheduler_count_before_those_of_the_program(store: JobStore, clock: Clock) -> None:
    """D50: as long as a scheduler lives; for what is tried again too"""
    (ended,) = store.submit([request(owner="ada")])
    store.apply([start(ended)], capacity=ROOM)
    store.apply([finish(ended)])
    quotas = {"default": {"queued": 5}, "users": {"ada": {"queued": 1}}}
    store.take_role(process_identity(), {SETTINGS: {"quotas": quotas}}, lambda _: False)
    lax, strict = SchedulingConfig(), SchedulingConfig(default_quota=OwnerQuota(queued=1))
    store.submit([request(owner="bob")] * 5, quotas=strict)
    store.submit([request(owner="ada")], quotas=lax)
    for own in (lax, None):
        with pytest.raises(QuotaExceeded, match="ada has 1 queued jobs and may have 1: 1 more"):
            store.submit([request(owner="ada")], quotas=own)
    with pytest.raises(QuotaExceeded):
        store.submit_again(ended)
    clock.now += 31.0
    store.submit([request(owner="ada")], quotas=lax)
    with pytest.raises(QuotaExceeded):
        store.submit([request(owner="cy")] * 2, quotas=strict)


def test_a_job_that_is_tried_again_took_from_its_first_begin_to_its_end(store: JobStore, clock: Clock) -> None:
    """D34, D36, D55"""
    (job_id,) = store.submit([request()])
    clock.now += 2.0
    store.apply([start(job_id)], capacity=ROOM)
    clock.now += 10.0
    store.apply([change(job_id, JobState.QUEUED, release=True)])
    clock.now += 5.0
    waiting = store.record(job_id).to_dict()
    assert (waiting["status"], waiting["wait_time"], waiting["execution_time"]) == ("queued", 2.0, 15.0)
    store.apply([start(job_id, 2)], capacity=ROOM)
    clock.now += 3.0
    store.apply([finish(job_id, 2)])
    told = store.record(job_id).to_dict()
    assert (told["wait_time"], told["execution_time"], told["total_time"]) == (2.0, 18.0, 20.0)
    ((record, tasks),) = store.records_with_tasks([job_id]).values()
    assert WorkflowResult.from_records(record, tasks).duration == 18.0


def test_what_is_known_of_a_cluster_is_kept(store: JobStore) -> None:
    """D27"""
    assert store.cluster("ray") is None
    store.note_cluster("ray", {"cpu": 4.0})
    store.note_cluster("ray", {"cpu": 8.0})
    assert store.cluster("ray") == {"cpu": 8.0}


def test_durations_of_completed_jobs_are_told_oldest_first(store: JobStore, clock: Clock) -> None:
    """D48"""
    ids = store.submit([request(job_type="t", task_count=2) for _ in range(5)])
    for number, job_id in enumerate(ids):
        store.apply([start(job_id)], capacity=ROOM)
        clock.now += 10.0 * (number + 1)
        store.apply([finish(job_id) if number else change(job_id, JobState.FAILED)])
    book = store.recent_durations(3)
    assert book.expected_s(store.job(ids[0])) == 40.0
    assert store.recent_durations(10).expected_s(store.job(ids[0])) == 35.0


def test_no_password_reaches_a_row_a_log_an_error_or_a_text(
    store: JobStore, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """D11"""
    caplog.set_level(logging.DEBUG)
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    store.note_cluster("ray", {"url": store.database.url})
    told = [repr(store), repr(store.database), repr(store.database.engine), store.database.url, caplog.text]
    if store.database.is_postgresql:
        wrong = database_url.replace("rayzyme@", f"nobody:{PASSWORD}@")
        with pytest.raises(DatabaseError) as caught:
            JobStore(open_database(wrong)).submit([request()])
        told += traceback.format_exception(caught.value)
        assert PASSWORD in str(store.database.engine.url.password)
    told.append(json.dumps(every_row(store.database), default=str))
    assert job_id in told[-1]
    assert PASSWORD not in "".join(told)


def every_row(database: Database) -> list[list[Any]]:
    with database.engine.connect() as connection:
        prefix = "" if database.schema is None else f'"{database.schema}".'
        tables = inspect(connection).get_table_names(database.schema)
        return [list(row) for table in tables for row in connection.execute(text(f'SELECT * FROM {prefix}"{table}"'))]


def test_a_request_without_a_key_never_asks_for_one(store: JobStore) -> None:
    assert len(set(store.submit([JobRequest("a", "ada", {})] * 3))) == 3
