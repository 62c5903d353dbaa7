"""Why a job waits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.support.queued_jobs import NOON, queued

from rayzyme.errors import UnknownJob
from rayzyme.jobs.durations import DurationBook, JobDuration
from rayzyme.jobs.explanation import Explanation
from rayzyme.jobs.job import Job
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT, OwnerQuota, SchedulingConfig
from rayzyme.jobs.scheduling_events import CapacityChanged, Drain, Held, Lost, Queued, StartRefused
from rayzyme.jobs.states import JobState


def machine(*jobs: Job, gpu: float = 4.0, slots: int = 2, **config: object) -> SchedulerMachine:
    """One that was told of `jobs` at noon, when a job of `screening` took 100 s."""
    settings = SchedulingConfig(max_concurrent_jobs=slots, strategy="fifo", **config)  # type: ignore[arg-type]
    made = SchedulerMachine(
        settings, now=NOON, durations=DurationBook([JobDuration("workflow", "screening", 1, 100.0)] * 3)
    )
    made.handle(CapacityChanged({"gpu": gpu}), NOON)
    for job in jobs:
        made.handle(Queued([job]), NOON)
    return made


def why(made: SchedulerMachine, number: int, at: float = 0.0) -> Explanation:
    return made.explain(f"job_{number}", NOON + at)


def needing(number: int, **needs: float) -> Job:
    return queued(number, needs={SLOT: 1.0, **needs})


def test_position_is_counted_in_the_order_of_the_strategy() -> None:
    """D51"""
    made = machine(*(queued(number) for number in range(6)))
    assert [(why(made, number).position, why(made, number).waiting) for number in (2, 3, 5)] == [(1, 4), (2, 4), (4, 4)]
    assert "number 2 of 4 waiting jobs, by the strategy fifo" in why(made, 3).to_text()


def test_what_is_lacking_is_told_by_name_and_amount_and_who_holds_it() -> None:
    """D51"""
    made = machine(needing(1, gpu=3), needing(2, gpu=2))
    (lack,) = why(made, 2).lacking
    assert (lack.resource, lack.needed, lack.free, lack.total, lack.missing) == ("gpu", 2.0, 1.0, 4.0, 1.0)
    assert lack.holders == ("job_1",)
    assert "lacks 1 gpu: it needs 2, and 1 of 4 are free; the others are held by job_1." in why(made, 2).to_text()


def test_what_the_cluster_does_not_have_is_told_and_no_start_is_promised() -> None:
    """D27, D51"""
    explanation = why(machine(needing(1, gpu=5)), 1)
    assert "needs 5 gpu and there are 4 in all" in explanation.to_text()
    assert explanation.expected_start is None


def test_a_quota_is_told_as_such() -> None:
    """D50, D51"""
    made = machine(queued(1), queued(2), quotas={"anna": OwnerQuota(running=1)})
    assert "owner anna has reached the quota running of 1; the others are held by job_1" in why(made, 2).to_text()


def test_a_reservation_is_told_to_the_one_who_has_it_and_to_those_who_wait_for_it() -> None:
    """D44, D51"""
    made = machine(needing(1, gpu=4), needing(2, gpu=1), needing(3), slots=3, max_bypass=1)
    made.handle(Queued([needing(4)]), NOON)
    mine, others = why(made, 2), why(made, 4)
    assert mine.is_reserved
    assert (mine.position, others.position) == (1, 2)
    assert "passed over 1 times, so what it needs is reserved for it" in mine.to_text()
    assert "slot:workflow" in [lack.resource for lack in others.lacking]
    assert "reserved for job_2" in others.to_text()


def test_the_expected_start_lies_between_room_now_and_everybody_else_first() -> None:
    """D51"""
    made = machine(*(queued(number) for number in range(8)))
    # Two run for 100 s each; four stand before the last but one, two by two.
    assert why(made, 6).expected_start == (NOON + 100, NOON + 300)
    assert why(made, 2, at=40).expected_start == (NOON + 100, NOON + 100)
    assert why(made, 2, at=130).expected_start == (NOON + 130, NOON + 130), "those that run have overrun their time"
    assert "expected to start between 2027-01-15T08:01:40.000Z and 2027-01-15T08:05:00.000Z" in why(made, 6).to_text()


def test_an_estimate_counts_where_no_job_of_the_kind_was_recorded() -> None:
    """D22, D51"""
    made = machine(queued(1, job_type="new", estimated_seconds=40.0), queued(2), slots=1)
    assert why(made, 2).expected_start == (NOON + 40, NOON + 40)


def test_a_job_with_a_next_try_tells_when() -> None:
    """D16, D17, D51"""
    made = machine(queued(1))
    made.handle(Lost("job_1", 1, "gone"), NOON)
    explanation = why(made, 1)
    assert explanation.position is None
    assert explanation.next_try_at == made.next_wake(NOON)
    assert explanation.expected_start == (explanation.next_try_at, explanation.next_try_at)
    assert "lost its worker 1 of at most 5 times" in explanation.to_text()
    assert "tried again at 2027-01-15T08:00:0" in explanation.to_text()


def test_a_held_job_and_a_draining_scheduler_promise_nothing() -> None:
    """D51, D59"""
    made = machine(queued(1), queued(2), queued(3))
    made.handle(Held("job_3"), NOON)
    assert why(made, 3).expected_start is None
    assert "is held" in why(made, 3).to_text()
    made.handle(Drain(), NOON)
    assert "draining" in why(made, 3).to_text()


def test_a_refused_start_is_told_by_its_next_try() -> None:
    """D15, D51"""
    made = machine(queued(1))
    made.handle(StartRefused("job_1", queued(1)), NOON)
    assert why(made, 1).next_try_at == NOON + 1


def test_a_running_job_is_told_so_and_an_unknown_one_is_refused() -> None:
    """D51"""
    made = machine(queued(1))
    assert why(made, 1).to_text() == "job_1 is running since 2027-01-15T08:00:00.000Z, attempt 1."
    assert why(made, 1).position is None
    with pytest.raises(UnknownJob, match="job_9"):
        why(made, 9)


def test_the_same_in_json() -> None:
    """D51"""
    made = machine(needing(1, gpu=3), needing(2, gpu=2))
    document = json.loads(json.dumps(why(made, 2).to_dict()))
    assert document["state"] == "queued"
    assert document["lacking"][0]["holders"] == ["job_1"]
    assert document["sentences"] == list(why(made, 2).sentences)


def test_an_aged_job_is_told_why_it_goes_first() -> None:
    """D44, D51"""
    made = machine(queued(1), queued(2), replace(queued(3), submitted_at=NOON - 30_000, state=JobState.QUEUED))
    assert "number 1 of 1 waiting jobs, because it waited for so long" in why(made, 3).to_text()
