"""Decayed usage, and that equal shares come out equal over a week."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.queued_jobs import NOON, queued, started

from rayzyme.jobs.fair_share import OwnerUsage, UsageBook
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT, SchedulingConfig
from rayzyme.jobs.scheduling_events import CapacityChanged, Finished, Queued
from rayzyme.jobs.states import JobState

DAY = 86400.0


def test_what_ended_a_day_ago_counts_half() -> None:
    """D49"""
    book = UsageBook(rows=[OwnerUsage("anna", 3600.0, 600.0, NOON)])
    assert book.slot_seconds("anna", NOON + DAY) == pytest.approx(1800.0)
    assert book.gpu_seconds("anna", NOON + DAY) == pytest.approx(300.0)
    assert book.slot_seconds("anna", NOON + 2 * DAY) == pytest.approx(900.0)
    assert book.slot_seconds("nobody", NOON) == 0.0


def test_what_runs_counts_as_far_as_it_has_come() -> None:
    """D49"""
    book = UsageBook()
    book.begin("job_1", "anna", {SLOT: 1.0, "gpu": 2.0}, NOON)
    book.begin("job_2", "anna", {SLOT: 2.0}, NOON + 50)
    assert book.slot_seconds("anna", NOON + 100) == pytest.approx(200.0)
    assert book.gpu_seconds("anna", NOON + 100) == pytest.approx(200.0)
    assert book.running("anna") == 2
    book.end("job_1", NOON + 100)
    book.end("job_2", NOON + 100, ran_s=10.0)
    assert book.running("anna") == 0
    assert book.rows() == [OwnerUsage("anna", pytest.approx(120.0), pytest.approx(200.0), NOON + 100)]


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-10 * DAY, 0)), max_size=8), st.randoms())
def test_the_order_of_rows_does_not_matter(parts: list[tuple[float, float]], random: object) -> None:
    """D49"""
    rows = [OwnerUsage("anna", amount, 0.0, NOON + at) for amount, at in parts]
    expected = sum(row.slot_s * 0.5 ** ((NOON - row.at) / DAY) for row in rows)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert UsageBook(DAY, rows).slot_seconds("anna", NOON) == pytest.approx(expected, abs=1e-6)


def test_a_book_goes_on_from_its_stored_rows() -> None:
    """D49"""
    book = UsageBook()
    book.begin("job_1", "anna", {SLOT: 1.0}, NOON)
    book.end("job_1", NOON + 1000)
    again = UsageBook(rows=book.rows())
    assert again.slot_seconds("anna", NOON + DAY) == book.slot_seconds("anna", NOON + DAY)


def test_one_who_comes_second_runs_second() -> None:
    """D45"""
    machine = SchedulerMachine(SchedulingConfig(max_concurrent_jobs=1, strategy="fair_share"), now=NOON)
    assert started(machine.handle(Queued([queued(number) for number in range(10)]), NOON)) == ["job_0"]
    machine.handle(Queued([queued(10, owner="bert")]), NOON + 1)
    assert started(machine.handle(Finished("job_0", JobState.COMPLETED, 60.0), NOON + 60)) == ["job_10"]


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.25)])
def test_shares_come_out_over_a_week_whatever_jobs_their_owners_submit(weight: float, share: float) -> None:
    """D49"""
    config = SchedulingConfig(max_concurrent_jobs=4, strategy="fair_share", weights={"bert": weight})
    machine = SchedulerMachine(config, now=NOON)
    machine.handle(CapacityChanged({"gpu": 4.0}), NOON)
    numbers = itertools.count()
    # anna's jobs are short and bert's are long; both keep the queue full, and each slot has its GPU.
    length = {"anna": 300.0, "bert": 1900.0}
    used = dict.fromkeys(length, 0.0)
    owners: dict[str, str] = {}
    ends: list[tuple[float, str]] = []

    def submit(owner: str, now: float) -> list[str]:
        job = queued(next(numbers), owner=owner, submitted_at=now, needs={SLOT: 1.0, "gpu": 1.0})
        owners[job.job_id] = owner
        return started(machine.handle(Queued([job]), now))

    def begin(job_ids: list[str], now: float) -> None:
        for job_id in job_ids:
            heapq.heappush(ends, (now + length[owners[job_id]], job_id))

    for _ in range(8):
        for owner in length:
            begin(submit(owner, NOON), NOON)
    while ends[0][0] < NOON + 7 * DAY:
        now, job_id = heapq.heappop(ends)
        owner = owners.pop(job_id)
        used[owner] += length[owner]
        begin(submit(owner, now), now)
        begin(started(machine.handle(Finished(job_id, JobState.COMPLETED, length[owner]), now)), now)
    assert used["anna"] / sum(used.values()) == pytest.approx(share, rel=0.05)
    assert sum(used.values()) > 0.99 * 4 * 7 * DAY
