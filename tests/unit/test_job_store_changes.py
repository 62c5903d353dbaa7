"""Changes of jobs: by compare-and-set, whole or not at all, each with its event, attempts, leases and usage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, inspect, text
from tests.support.job_samples import ROOM, RUNNING, SLOT, change, finish, request, settled, start
from tests.support.timing import Clock

from rayzyme.database import Database, open_database
from rayzyme.database.administration import first_altered
from rayzyme.database.leases import live_leases
from rayzyme.errors import IllegalTransition, ValidationError
from rayzyme.jobs.applying import LATE_RESULT
from rayzyme.jobs.changes import Change, TaskChange
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.store import JobStore


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(open_database(database_url)) as database:
        yield database


@pytest.fixture
def store(database: Database, clock: Clock) -> JobStore:
    return JobStore(database, clock=clock, half_life=100.0)


def leases(store: JobStore, clock: Clock) -> dict[str, float]:
    """What is held of each resource now."""
    held: dict[str, float] = {}
    for lease in live_leases(store.database, datetime.fromtimestamp(clock.now, UTC)):
        held[lease["resource"]] = held.get(lease["resource"], 0.0) + lease["amount"]
    return held


def test_a_start_takes_what_the_job_needs_and_an_end_gives_it_back(store: JobStore, clock: Clock) -> None:
    """D8, D14, D15"""
    one, two = store.submit([request(), request()])
    clock.now += 1.0
    needs = {SLOT: 1.0, "gpu": 2.0}
    first, second = store.apply([start(one, acquire=needs), start(two, acquire=needs)], capacity=ROOM)
    assert first.token is not None
    assert second.token is not None
    assert first.token < second.token
    assert first.job == store.job(one)
    assert (store.job(one).state, store.job(one).attempt, store.job(one).started_at) == ("running", 1, clock.now)
    assert leases(store, clock) == {SLOT: 2.0, "gpu": 4.0}
    (ended,) = store.apply([finish(one)])
    assert (ended.accepted, ended.job, ended.token) == (True, store.job(one), None)
    assert leases(store, clock) == needs
    (attempt,) = store.attempts(one)
    assert (attempt.task, attempt.number, attempt.state, attempt.runner) == ("", 1, "completed", "runner:1")
    assert attempt.lease_token == first.token
    begun = datetime.fromtimestamp(clock.now, UTC)
    assert (attempt.leased_at, attempt.started_at, attempt.committed_at) == (begun, begun, begun)
    assert attempt.queued_at is not None
    assert (begun - attempt.queued_at).total_seconds() == 1.0


@pytest.mark.parametrize(
    ("needs", "capacity", "why"),
    [
        ({SLOT: 1.0, "gpu": 3.0}, ROOM, "3 of gpu is needed, 2 of 4 is held"),
        ({"tpu": 1.0}, ROOM, "1 of tpu is needed, 0 of 0 is held"),
        ({SLOT: 1.0}, {SLOT: 1.0}, "1 of slot:workflow is needed, 1 of 1 is held"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_of_it_is_written(
    store: JobStore, clock: Clock, needs: dict[str, float], capacity: dict[str, float], why: str
) -> None:
    """D15"""
    holder, refused = store.submit([request(), request()])
    store.apply([start(holder, acquire={SLOT: 1.0, "gpu": 2.0})], capacity=ROOM)
    before = store.job(refused)
    (outcome,) = store.apply([start(refused, acquire=needs)], capacity=capacity)
    assert (outcome.accepted, outcome.why, outcome.job) == (False, why, before)
    assert store.job(refused) == before
    assert len(store.events(refused)) == 1
    assert leases(store, clock) == {SLOT: 1.0, "gpu": 2.0}


def test_what_is_given_back_in_a_batch_is_there_for_what_comes_after_it(store: JobStore, clock: Clock) -> None:
    """D15"""
    one, two, three = store.submit([request()] * 3)
    room = {SLOT: 1.0}
    assert [outcome.accepted for outcome in store.apply([start(one), start(two)], capacity=room)] == [True, False]
    outcomes = store.apply([start(two), finish(one), start(two), start(three)], capacity=room)
    assert [outcome.accepted for outcome in outcomes] == [False, True, True, False]
    assert leases(store, clock) == room
    outcomes = store.apply([finish(two), start(three), finish(three)], capacity=room)
    assert [outcome.job and outcome.job.state for outcome in outcomes] == ["completed", "running", "completed"]
    assert leases(store, clock) == {}
    assert [event.to_state for event in store.events(three)] == ["queued", "running", "completed"]


def test_acquiring_without_a_capacity_is_an_error(store: JobStore) -> None:
    (job_id,) = store.submit([request()])
    with pytest.raises(ValidationError, match="told the capacity"):
        store.apply([start(job_id)])
    assert store.job(job_id).state is JobState.QUEUED


def test_a_result_of_an_older_attempt_is_refused_and_told(store: JobStore, clock: Clock) -> None:
    """D17, D20"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    lost = {"site_faults": 1, "not_before": clock.now + 5.0, "fault": "site"}
    store.apply([change(job_id, JobState.QUEUED, values=lost, release=True, reason="its runner died")])
    job = store.job(job_id)
    assert (job.state, job.site_faults, job.not_before, job.started_at) == ("queued", 1, clock.now + 5.0, None)
    store.apply([start(job_id, 2)], capacity=ROOM)
    (late,) = store.apply([finish(job_id, 1, tasks=(settled(output={"kind": "inline", "value": "late"}),))])
    assert not late.accepted
    assert "is running in attempt 2, not running in attempt 1" in late.why
    assert store.tasks(job_id) == []
    told = store.events(job_id)[-1]
    assert (told.reason, told.from_state, told.to_state, told.actor) == (LATE_RESULT, None, None, "runner:1")
    assert told.data["attempt"] == 1
    assert told.data["tasks"] == [{"name": "load", "state": "completed", "attempt": 1}]
    assert late.job == store.job(job_id)
    assert [(attempt.number, attempt.state) for attempt in store.attempts(job_id)] == [(1, "failed"), (2, "running")]
    (other,) = store.apply([replace(start(job_id, 2), states=frozenset({JobState.QUEUED}))], capacity=ROOM)
    assert not other.accepted
    assert store.events(job_id)[-1] == told


def test_what_a_task_committed_is_not_undone(store: JobStore) -> None:
    """D20"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    one = settled(attempt=2, output={"kind": "inline", "value": 1})
    store.apply([change(job_id, None, tasks=(one,))])
    for late in (settled(attempt=1), settled(attempt=2, state=JobState.FAILED)):
        (outcome,) = store.apply([change(job_id, None, tasks=(settled("other"), late))])
        assert "task load" in outcome.why
    (task,) = store.tasks(job_id)
    assert (task.output, task.attempt, task.state) == ({"kind": "inline", "value": 1}, 2, "completed")
    assert store.apply([change(job_id, None, tasks=(replace(one, attempt=3, state=JobState.RUNNING),))])[0].accepted


def test_a_task_is_kept_with_all_that_is_told_of_it(store: JobStore, clock: Clock) -> None:
    """D14, D20, D29, D38"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    begun = TaskChange(
        "load", 1, JobState.RUNNING, {"position": 1}, {"leased": 1.5, "started": 2.5}, "runner:1", "node-1"
    )
    store.apply([change(job_id, None, tasks=(begun, TaskChange("next", 0, JobState.QUEUED)))])
    manifest = [{"path": "/a", "size": 3, "sha256": "0" * 64}]
    values = {
        "output": {"kind": "transient", "digest": "", "object": object(), "why": "a lock"},
        "shared_writes": {"model": {"kind": "inline", "value": [1]}, "x": {"kind": "transient", "object": {1}}},
        "plan_change": {"stop_children": True},
        "manifest": manifest,
        "metrics": {"loss": float("nan"), "n": 2},
        "metadata": {"retries": 1},
        "durable": False,
        "published": True,
        "site_faults": 2,
    }
    done = TaskChange("load", 1, JobState.COMPLETED, values, {"computed": 3.5})
    clock.now += 1.0
    store.apply([change(job_id, None, tasks=(done,))])
    waiting, task = store.tasks(job_id)
    assert (waiting.name, waiting.state, waiting.attempt) == ("next", "queued", 0)
    assert (task.name, task.state, task.attempt, task.site_faults) == ("load", "completed", 1, 2)
    assert task.output == {"kind": "transient", "digest": "", "why": "a lock"}
    assert task.shared_writes == {"model": {"kind": "inline", "value": [1]}, "x": {"kind": "transient"}}
    assert (task.plan_change, task.manifest, task.durable) == ({"stop_children": True}, manifest, False)
    assert (task.metrics, task.metadata, task.published) == ({"loss": "nan", "n": 2}, {"retries": 1}, True)
    seconds = [hop and hop.timestamp() for hop in (task.started_at, task.computed_at, task.committed_at)]
    assert seconds == [2.5, 3.5, clock.now]
    (attempt,) = [attempt for attempt in store.attempts(job_id) if attempt.task]
    assert (attempt.runner, attempt.node, attempt.job_attempt, attempt.state) == ("runner:1", "node-1", 1, "completed")
    assert attempt.leased_at is not None
    assert attempt.leased_at.timestamp() == 1.5
    assert task.to_dict()["status"] == "completed"


def test_a_task_that_is_tried_again_shows_when_and_keeps_its_error(store: JobStore, clock: Clock) -> None:
    """D14, D16"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    wrong = {
        "error_class": "ValueError",
        "error_message": "no \0 \ud800",
        "error_traceback": "line 1",
        "not_before": clock.now + 5,
    }
    store.apply([change(job_id, None, tasks=(settled(state=JobState.QUEUED, **wrong),))])
    (task,) = store.tasks(job_id)
    assert (task.state, task.attempt, task.not_before) == ("queued", 1, clock.now + 5)
    assert (task.error_class, task.error_message, task.error_traceback) == ("ValueError", "no � ?", "line 1")
    told = task.to_dict()
    assert (told["status"], told["not_before"], told["completed_at"]) == ("retrying", "2027-01-15T08:00:05.000Z", None)
    assert [(each.number, each.state, each.error_class) for each in store.attempts(job_id)] == [
        (1, "running", None), (1, "failed", "ValueError"),
    ]  # fmt: skip


def test_a_move_that_is_none_raises_with_the_story_and_writes_nothing(store: JobStore) -> None:
    """D1"""
    one, two = store.submit([request(), request()])
    store.apply([start(one)], capacity=ROOM)
    store.apply([finish(one)])
    wrong = Change(one, 1, frozenset(FINAL), "again", "somebody", to=JobState.RUNNING)
    with pytest.raises(IllegalTransition, match=r"(?s)submitted.*started.*is completed.*refused: completed -> running"):
        store.apply([start(two), wrong], capacity=ROOM)
    assert (store.job(one).state, store.job(two).state) == ("completed", "queued")


def test_a_change_names_only_what_there_is() -> None:
    for wrong in (
        lambda: change("job_a", None, values={"stat": 1}),
        lambda: TaskChange("load", 1, JobState.RUNNING, {"outptu": 1}),
        lambda: TaskChange("load", 1, JobState.RUNNING, {}, {"begun": 1.0}),
        lambda: Change("job_a", 2, RUNNING, "", "", new_attempt=2),
    ):
        with pytest.raises(ValidationError, match=r"job_a|load"):
            wrong()


def test_how_a_job_ended_is_kept(store: JobStore, clock: Clock) -> None:
    """D6"""
    (job_id,) = store.submit([request()])
    store.apply([start(job_id)], capacity=ROOM)
    values = {
        "error_class": "TaskTimeout",
        "error_message": "too long",
        "fault": "job",
        "result": {"failed_tasks": ["load"]},
    }
    store.apply([change(job_id, JobState.FAILED, values=values, data={"survivors": []})])
    record = store.record(job_id)
    assert (record.error_class, record.error_message, record.fault) == ("TaskTimeout", "too long", "job")
    assert record.result == {"failed_tasks": ["load"]}
    assert record.completed_at == datetime.fromtimestamp(clock.now, UTC)
    assert store.attempts(job_id)[0].error_class == "TaskTimeout"
    # An end gives back what is held, also where nobody says so.
    assert leases(store, clock) == {}


def test_what_an_owner_used_halves_and_adds_up(store: JobStore, clock: Clock) -> None:
    """D49"""
    one, two, other = store.submit([request(needs={SLOT: 2.0, "gpu": 1.0}), request(), request(owner="bob")])
    store.apply([start(one), start(two), start(other)], capacity=ROOM)
    clock.now += 50.0
    store.apply([finish(one), finish(two), change(other, JobState.QUEUED, release=True)])
    assert store.usage().slot_seconds("ada", clock.now) == pytest.approx(150.0)
    assert store.usage().gpu_seconds("ada", clock.now) == pytest.approx(50.0)
    assert store.usage().slot_seconds("bob", clock.now) == pytest.approx(50.0)
    clock.now += 100.0
    store.apply([start(other, 2)], capacity=ROOM)
    clock.now += 100.0
    assert store.usage().slot_seconds("ada", clock.now) == pytest.approx(37.5)
    store.apply([change(other, JobState.UNKNOWN, 2)])
    clock.now += 100.0
    store.apply([Change(other, 2, frozenset({JobState.UNKNOWN}), "found", "poll", to=JobState.FAILED)])
    assert store.usage().slot_seconds("bob", clock.now) == pytest.approx(50.0 * 0.125 + 200.0)


def test_a_lost_lease_frees_its_capacity_and_its_job_is_found(store: JobStore, clock: Clock) -> None:
    """D15"""
    one, two = store.submit([request(), request()])
    store.apply([start(one, acquire={SLOT: 1.0, "gpu": 1.0})], capacity=ROOM)
    store.apply([start(two, lease_owner="runner:2")], capacity=ROOM)
    clock.now += 20.0
    assert store.renew("runner:1") == 2
    assert store.lapsed(clock.now) == []
    clock.now += 10.0
    assert [job.job_id for job in store.lapsed(clock.now)] == [two]
    assert store.no_longer_running({one: 1, two: 1}) == [two]
    # It overslept, but nobody took its place.
    assert store.renew("runner:2") == 1
    assert store.lapsed(clock.now) == []
    clock.now += 40.0
    (three,) = store.submit([request()])
    assert store.apply([start(three, acquire={"gpu": 4.0})], capacity=ROOM)[0].accepted
    # One lost its GPU, and with it the slot that nobody took: half of what it needs is of no use.
    assert store.renew("runner:1") == 1
    assert {job.job_id for job in store.lapsed(clock.now)} == {one, two}
    assert store.no_longer_running({one: 1, three: 2}) == [one, three]


def test_only_the_scheduler_is_obeyed_where_its_role_is_given(store: JobStore, clock: Clock) -> None:
    """D15, D40"""
    from rayzyme.jobs.role import process_identity

    (job_id,) = store.submit([request()])
    me = process_identity()
    old = store.take_role(me, {}, lambda _: False)
    new = store.take_role(me, {}, lambda _: False)
    assert old is not None
    assert new is not None
    (refused,) = store.apply([start(job_id)], capacity=ROOM, role_token=old)
    assert (refused.accepted, refused.why, refused.job) == (False, "no longer the scheduler", store.job(job_id))
    assert store.apply([start(job_id)], capacity=ROOM, role_token=new)[0].accepted
    clock.now += 31.0
    assert store.apply([finish(job_id)], role_token=new)[0].why == "no longer the scheduler"


class Failing:
    """Makes the nth statement fail from now on."""

    def __init__(self, database: Database) -> None:
        self.left = -1
        event.listen(database.engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        if self.left == 0:
            raise RuntimeError("planted")
        self.left -= 1


def everything(database: Database) -> dict[str, list[str]]:
    prefix = "" if database.schema is None else f'"{database.schema}".'
    with database.engine.connect() as connection:
        tables = inspect(connection).get_table_names(database.schema)
        return {
            table: sorted(str(row) for row in connection.execute(text(f'SELECT * FROM {prefix}"{table}"')))
            for table in tables
        }


def test_whichever_statement_fails_nothing_half_written_is_read_back(store: JobStore, clock: Clock) -> None:
    """D8"""
    failing = Failing(store.database)
    ids = store.submit([request("a", idempotency_key="a"), request("b")])
    store.apply([start(ids[0])], capacity=ROOM)
    clock.now += 10.0
    works: list[Any] = [
        lambda: store.submit([request("a", idempotency_key="a"), request("c", idempotency_key="c")]),
        lambda: store.apply([finish(ids[0], tasks=(settled(),)), start(ids[1], acquire={SLOT: 1.0})], capacity=ROOM),
        lambda: store.request_cancel(ids[1]),
        lambda: store.apply([finish(ids[1])]),
    ]
    failures = 0
    for work in works:
        before, step = everything(store.database), 0
        while True:
            failing.left = step
            try:
                work()
            except RuntimeError:
                failing.left = -1
                assert everything(store.database) == before
                failures += 1
                step += 1
            else:
                failing.left = -1
                break
        assert step >= 4
        assert everything(store.database) != before
    assert failures > 25
    assert first_altered(store.database)[1] is None


def test_changes_are_grouped_into_few_statements(store: JobStore) -> None:
    """D19"""
    statements: list[str] = []
    event.listen(
        store.database.engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement)
    )
    ids = store.submit([request() for _ in range(100)])
    store.apply([start(job_id) for job_id in ids], capacity=ROOM)
    store.apply([finish(job_id, tasks=(settled(),)) for job_id in ids])
    assert len(statements) < 40


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("start"), st.integers(0, 5), st.integers(0, 3)),
            st.tuples(st.just("end"), st.integers(0, 5), st.integers(0, 2)),
            st.tuples(st.just("renew"), st.integers(0, 2), st.just(0)),
            st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
        ),
        max_size=25,
    ),
    st.integers(1, 4),
)
def test_live_leases_never_exceed_the_capacity(
    store: JobStore, clock: Clock, steps: list[tuple[str, int, int]], group: int
) -> None:
    """D15"""
    room = {SLOT: 3.0, "gpu": 2.0}
    ids = store.submit([request() for _ in range(6)])
    batch: list[Change] = []
    ends = [JobState.COMPLETED, JobState.QUEUED, JobState.FAILED]
    for what, which, amount in steps:
        if what == "start":
            job = store.job(ids[which])
            needs = {SLOT: 1.0, **({"gpu": float(amount)} if amount else {})}
            batch.append(start(job.job_id, job.attempt + 1, acquire=needs, lease_owner=f"runner:{which % 3}"))
        elif what == "end":
            job = store.job(ids[which])
            batch.append(change(job.job_id, ends[amount], job.attempt, release=True))
        elif what == "renew":
            store.renew(f"runner:{which}")
        else:
            clock.now += which
        if len(batch) >= group:
            store.apply(batch, capacity=room)
            batch = []
        held = leases(store, clock)
        assert all(held[resource] <= room[resource] for resource in held), held
    for job_id in ids:
        job = store.job(job_id)
        store.apply([change(job_id, JobState.FAILED, job.attempt, release=True)])
    assert leases(store, clock) == {}
