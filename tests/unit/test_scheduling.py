"""The scheduler's machine: what it answers to each event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.queued_jobs import NOON, queued, started

from rayzyme.errors import QuotaExceeded, ValidationError
from rayzyme.jobs.demand import Entry
from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.lazy_heap import LazyHeap
from rayzyme.jobs.scheduling import REFUSAL_PAUSE_S, SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT, OwnerQuota, SchedulingConfig, check_queued_quota
from rayzyme.jobs.scheduling_events import (
    Cancel,
    CancelRequested,
    CapacityChanged,
    Command,
    ConfigChanged,
    Drain,
    Event,
    Fail,
    Finished,
    Held,
    Lost,
    Queued,
    Requeue,
    Restored,
    Start,
    StartRefused,
    Stop,
    StrategyChanged,
    Tick,
    Unheld,
)
from rayzyme.jobs.states import JobState

RUNNING, COMPLETED, CANCELLED = JobState.RUNNING, JobState.COMPLETED, JobState.CANCELLED


class Driven:
    """A machine whose invariants are checked after each event; `capacity` is what the cluster has."""

    def __init__(self, capacity: dict[str, float] | None = None, **config: Any) -> None:
        self.machine = SchedulerMachine(
            SchedulingConfig(**{"max_concurrent_jobs": 1, "strategy": "fifo", **config}), now=NOON
        )
        self.handle(CapacityChanged(capacity or {}))

    def handle(self, event: Event, at: float = 0.0) -> list[Command]:
        commands = self.machine.handle(event, NOON + at)
        self.machine.check_invariants()
        return commands

    def queue(self, *jobs: Job, at: float = 0.0) -> list[Command]:
        return self.handle(Queued(jobs), at)

    def finish(self, number: int, at: float, ran_s: float = 1.0) -> list[str]:
        return started(self.handle(Finished(f"job_{number}", COMPLETED, ran_s), at))

    def position(self, number: int, at: float = 0.0) -> int | None:
        return self.machine.explain(f"job_{number}", NOON + at).position


def needing(number: int, **needs: float) -> Job:
    return queued(number, needs={SLOT: 1.0, **needs})


def test_what_fits_starts_at_once_and_the_next_when_there_is_room() -> None:
    """D40"""
    driven = Driven(max_concurrent_jobs=2)
    assert driven.queue(queued(1), queued(2), queued(3)) == [
        Start("job_1", 1, {SLOT: 1.0}),
        Start("job_2", 1, {SLOT: 1.0}),
    ]
    assert driven.finish(2, at=10) == ["job_3"]


def test_jobs_start_by_score_then_submission_then_sequence() -> None:
    """D41"""
    driven = Driven(strategy="priority", max_concurrent_jobs=1)
    high = TaskPriority.HIGH
    driven.queue(queued(0))
    alike = [queued(number, priority=high, submitted_at=NOON) for number in (4, 3)]
    driven.queue(queued(1), *alike, queued(2, priority=high))
    order = [driven.finish(ended, at=10)[0] for ended in (0, 3, 4, 2)]
    assert order == ["job_3", "job_4", "job_2", "job_1"]


def test_what_does_not_fit_is_passed_over_by_what_does() -> None:
    """D40"""
    driven = Driven({"gpu": 1.0}, max_concurrent_jobs=3)
    assert started(driven.queue(needing(1, gpu=1), needing(2, gpu=1), needing(3))) == ["job_1", "job_3"]


def test_what_needs_name_and_the_cluster_lacks_does_not_start_until_the_cluster_has_it() -> None:
    """D40"""
    driven = Driven()
    assert driven.queue(needing(1, gpu=1)) == []
    assert started(driven.handle(CapacityChanged({"gpu": 1.0}))) == ["job_1"]


def test_a_cluster_that_shrinks_starts_nothing_more_and_takes_nothing_back() -> None:
    """D40"""
    driven = Driven({"cpu": 4.0}, max_concurrent_jobs=9)
    driven.queue(*(needing(number, cpu=2) for number in range(3)))
    assert driven.handle(CapacityChanged({"cpu": 2.0})) == []
    assert driven.finish(0, at=1) == []
    assert driven.finish(1, at=2) == ["job_2"]


def test_fractions_of_a_cpu_add_up() -> None:
    """D40"""
    driven = Driven({"cpu": 1.0}, max_concurrent_jobs=99)
    jobs = [needing(number, cpu=0.1) for number in range(30)]
    assert len(started(driven.queue(*jobs))) == 10
    for number in range(20):
        assert len(driven.finish(number, at=number)) == 1


def test_jobs_that_ran_before_a_restart_hold_what_they_need() -> None:
    """D19, D40"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=2)
    running = replace(needing(1, gpu=2), state=RUNNING, attempt=1, started_at=NOON - 60)
    unproven = replace(needing(2), state=JobState.UNKNOWN, attempt=1)
    assert driven.handle(Restored([running, unproven, needing(3, gpu=1)])) == []
    driven.finish(2, at=1)
    assert driven.finish(1, at=2) == ["job_3"]


def test_a_held_job_waits_until_it_is_released() -> None:
    """D60"""
    driven = Driven()
    driven.queue(queued(0), queued(1), queued(2))
    driven.handle(Held("job_1"))
    assert driven.finish(0, at=1) == ["job_2"]
    assert driven.finish(2, at=2) == []
    assert started(driven.handle(Unheld("job_1"), 3)) == ["job_1"]


def test_a_job_is_not_tried_before_its_time() -> None:
    """D16"""
    driven = Driven()
    assert driven.queue(queued(1, not_before=NOON + 30)) == []
    assert driven.machine.next_wake(NOON) == NOON + 30
    assert driven.handle(Tick(), 29.9) == []
    assert started(driven.handle(Tick(), 30)) == ["job_1"]
    assert driven.machine.next_wake(NOON + 30) is None


def test_a_cancelled_queued_job_never_runs() -> None:
    """D46"""
    driven = Driven()
    driven.queue(queued(0), queued(1))
    assert driven.handle(CancelRequested("job_1")) == [Cancel("job_1")]
    assert driven.finish(0, at=1) == []
    assert driven.queue(queued(2, cancel_requested=True)) == [Cancel("job_2")]


def test_a_cancelled_running_job_is_stopped_once_and_holds_its_slot_until_it_has_stopped() -> None:
    """D46"""
    driven = Driven()
    driven.queue(queued(0), queued(1))
    assert driven.handle(CancelRequested("job_0")) == [Stop("job_0")]
    assert driven.handle(CancelRequested("job_0")) == []
    assert started(driven.handle(Finished("job_0", CANCELLED, 5.0), 5)) == ["job_1"]


def test_a_wish_to_cancel_survives_a_restart() -> None:
    """D46"""
    row = replace(queued(1), state=RUNNING, attempt=1, cancel_requested=True)
    assert Driven().handle(Restored([row])) == [Stop("job_1")]


def test_a_lost_job_is_tried_again_after_a_while() -> None:
    """D17"""
    driven = Driven()
    driven.queue(queued(1))
    (requeue,) = driven.handle(Lost("job_1", 1, "node b2 is gone"), 100)
    assert isinstance(requeue, Requeue)
    assert (requeue.attempt, requeue.reason, requeue.site_faults) == (1, "node b2 is gone", 1)
    assert NOON + 104 <= requeue.not_before <= NOON + 106
    assert driven.machine.next_wake(NOON + 100) == requeue.not_before
    assert driven.handle(Tick(), 106) == [Start("job_1", 2, {SLOT: 1.0})]


def test_a_job_that_lost_its_worker_five_times_fails() -> None:
    """D17"""
    driven = Driven()
    driven.queue(queued(1), queued(2, submitted_at=NOON + 9999))
    now, told = 0.0, []
    for attempt in range(1, 6):
        told += driven.handle(Lost("job_1", attempt, "the runner died"), now)
        now += 1000
        told += driven.handle(Finished("job_2", COMPLETED, 1.0), now)
    assert [type(command) for command in told].count(Requeue) == 4
    (failed,) = [command for command in told if isinstance(command, Fail)]
    assert (failed.job_id, failed.attempt, failed.error_class) == ("job_1", 5, "WorkerLost")
    assert "lost its worker 5 times" in failed.message
    assert "the runner died" in failed.message


def test_a_lost_job_whose_user_cancelled_it_is_not_tried_again() -> None:
    """D17, D46"""
    driven = Driven()
    driven.queue(queued(1))
    driven.handle(CancelRequested("job_1"))
    requeue, cancel = driven.handle(Lost("job_1", 1, "the runner died"))
    assert isinstance(requeue, Requeue)
    assert cancel == Cancel("job_1")


def test_the_loss_of_an_older_attempt_does_not_touch_the_one_that_runs() -> None:
    """D14, D17"""
    driven = Driven()
    driven.queue(queued(1))
    driven.handle(Queued([replace(queued(1), state=RUNNING, attempt=2, version=9)]))
    assert driven.handle(Lost("job_1", 1, "its runner is gone")) == []
    assert driven.machine.jobs["job_1"].state is RUNNING


def test_late_news_of_jobs_that_are_over_change_nothing() -> None:
    """D19"""
    driven = Driven()
    late = [
        Finished("job_9", COMPLETED, 1.0),
        Lost("job_9", 1, ""),
        CancelRequested("job_9"),
        Held("job_9"),
        Unheld("job_9"),
    ]
    for event in [*late, StartRefused("job_9", None)]:
        assert driven.handle(event) == []


def test_an_end_that_is_none_is_refused() -> None:
    """D1"""
    driven = Driven()
    driven.queue(queued(1))
    with pytest.raises(ValueError, match="job_1 has not finished, it is queued"):
        driven.handle(Finished("job_1", JobState.QUEUED, 1.0))


def test_a_row_that_is_older_than_the_decision_on_it_starts_nothing_twice() -> None:
    """D47"""
    driven = Driven(max_concurrent_jobs=5)
    driven.queue(queued(1))
    assert driven.queue(queued(1)) == []
    assert driven.queue(queued(1, version=7)) == []
    assert driven.queue(queued(1, version=8, attempt=1)) == [Start("job_1", 2, {SLOT: 1.0})]


def test_a_row_in_a_final_state_ends_its_job() -> None:
    """D19"""
    driven = Driven()
    driven.queue(queued(1), queued(2))
    assert started(driven.queue(queued(1, state=COMPLETED, attempt=1, version=3))) == ["job_2"]


def test_after_a_refused_start_jobs_with_the_same_needs_pause() -> None:
    """D15"""
    driven = Driven({"gpu": 4.0}, max_concurrent_jobs=2)
    driven.queue(needing(1, gpu=1))
    assert driven.handle(StartRefused("job_1", needing(1, gpu=1))) == []
    assert started(driven.queue(needing(2, gpu=1), needing(3))) == ["job_3"]
    assert driven.machine.next_wake(NOON) == NOON + REFUSAL_PAUSE_S
    assert driven.handle(Tick(), REFUSAL_PAUSE_S) == [Start("job_1", 1, {SLOT: 1.0, "gpu": 1.0})]


def test_a_refused_start_of_a_job_that_is_gone_frees_its_slot() -> None:
    """D15"""
    driven = Driven()
    driven.queue(queued(1), queued(2))
    assert started(driven.handle(StartRefused("job_1", None))) == ["job_2"]


def test_draining_starts_nothing_more() -> None:
    """D59"""
    driven = Driven()
    driven.queue(queued(1), queued(2))
    assert driven.handle(Drain()) == []
    assert driven.finish(1, at=1) == []
    assert driven.machine.next_wake(NOON) is None


def test_what_was_left_behind_in_a_heap_does_not_pile_up() -> None:
    """D40"""
    jobs: LazyHeap[Entry] = LazyHeap()
    entry = Entry(queued(1), None)  # type: ignore[arg-type]
    for entry.ticket in range(10_000):
        jobs.push(float(entry.ticket), entry.job, entry, 1)
        assert len(jobs) < 100
    assert jobs.first() is entry
    assert jobs.first_place() == 9999.0


def test_the_strategy_and_the_limits_change_while_jobs_wait() -> None:
    """D41"""
    driven = Driven()
    driven.queue(*(queued(number) for number in range(4)))
    assert driven.handle(StrategyChanged("lifo")) == []
    assert driven.finish(0, at=1) == ["job_3"]
    wider = replace(driven.machine.config, max_concurrent_jobs=3, strategy="fifo")
    assert started(driven.handle(ConfigChanged(wider), 2)) == ["job_1", "job_2"]


def test_a_job_that_waited_too_long_goes_first_the_oldest_first() -> None:
    """D44"""
    driven = Driven(strategy="priority", max_wait=100.0)
    low, critical = TaskPriority.LOW, TaskPriority.CRITICAL
    driven.queue(queued(0))
    driven.queue(queued(2, priority=low), queued(1, priority=low), queued(50, priority=critical))
    assert driven.finish(0, at=99) == ["job_50"]
    driven.queue(queued(60, priority=critical, submitted_at=NOON + 99), at=99)
    assert driven.finish(50, at=102) == ["job_1"]
    assert driven.finish(1, at=103) == ["job_2"]
    assert driven.finish(2, at=104) == ["job_60"]


def test_without_a_longest_wait_priorities_alone_decide() -> None:
    """D44"""
    driven = Driven(strategy="priority", max_wait=0.0)
    driven.queue(queued(0), queued(1, priority=TaskPriority.LOW), queued(2))
    assert driven.finish(0, at=1e6) == ["job_2"]


def test_a_job_is_passed_over_twenty_times_then_what_it_needs_is_kept_for_it() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=99)
    driven.queue(needing(0, gpu=1), needing(1, gpu=2))
    for number in range(2, 22):
        assert started(driven.queue(needing(number, gpu=1))) == [f"job_{number}"]
        driven.finish(number, at=0)
    assert driven.queue(needing(22, gpu=1)) == []
    assert driven.machine.statistics()["reserved"] == 1
    assert started(driven.queue(needing(23))) == ["job_23"], "it leaves the GPUs alone"
    assert started(driven.queue(needing(24, gpu=1, memory_mb=0))) == [], "other needs, the same GPU"
    assert driven.finish(0, at=1) == ["job_1"]


def test_a_pass_counts_for_all_that_need_the_same_and_stood_before_the_one_that_started() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=99, max_bypass=2)
    driven.queue(needing(0, gpu=1), needing(1, gpu=2), needing(2, gpu=2))
    for number in (3, 4):
        assert started(driven.queue(needing(number, gpu=1))) == [f"job_{number}"]
        driven.finish(number, at=0)
    driven.queue(needing(5, gpu=1), needing(6, gpu=2))
    assert driven.finish(0, at=1) == ["job_1"]
    assert driven.finish(1, at=2) == ["job_2"], "it was passed over twice as well"
    assert driven.finish(2, at=3) == ["job_5"], "the next one stood behind"


def test_a_job_that_was_first_passed_over_five_minutes_ago_is_passed_over_no_more() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=99)
    driven.queue(needing(0, gpu=1), needing(1, gpu=2), needing(2, gpu=1))
    driven.finish(2, at=10)
    assert started(driven.queue(needing(3, gpu=1), at=299)) == ["job_3"]
    driven.finish(3, at=299)
    assert driven.queue(needing(4, gpu=1), at=300) == []


def test_a_reservation_holds_what_is_free_already_too() -> None:
    """D44"""
    driven = Driven({"gpu": 1.0}, max_concurrent_jobs=2, max_bypass=1)
    driven.queue(needing(0, gpu=1), needing(1, gpu=1), needing(2))
    driven.finish(2, at=1)
    assert driven.queue(needing(3), at=1) == [], "the last slot is needed with the GPU"
    assert driven.finish(0, at=2) == ["job_1", "job_3"]


def test_a_job_that_others_go_before_is_not_passed_over() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=99, strategy="priority", max_bypass=1)
    driven.queue(needing(0, gpu=1), replace(needing(1, gpu=2), priority=TaskPriority.LOW))
    for number in range(2, 9):
        assert started(driven.queue(needing(number, gpu=1))) == [f"job_{number}"]
        driven.finish(number, at=number)
    assert driven.machine.explain("job_1", NOON).times_passed_over == 0


def test_passes_are_kept_when_another_job_comes_before_the_one_that_was_passed() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=99, strategy="priority", max_bypass=2)
    driven.queue(needing(0, gpu=1), needing(1, gpu=2), needing(2, gpu=1))
    driven.finish(2, at=1)
    assert started(driven.queue(replace(needing(3, gpu=2), priority=TaskPriority.HIGH), needing(4, gpu=1))) == ["job_4"]
    driven.finish(4, at=2)
    assert driven.queue(needing(5, gpu=1), at=3) == []
    assert driven.finish(0, at=4) == ["job_1"]


def test_nothing_is_reserved_for_a_job_that_waits_for_its_own_owner() -> None:
    """D44, D50"""
    driven = Driven(max_concurrent_jobs=2, quotas={"anna": OwnerQuota(running=1)}, max_bypass=1)
    driven.queue(queued(0), queued(1))
    for number in range(2, 9):
        assert started(driven.queue(queued(number, owner="bert"), at=number)) == [f"job_{number}"]
        driven.finish(number, at=number)


def test_nothing_is_reserved_for_a_job_that_cannot_ever_fit() -> None:
    """D44"""
    driven = Driven({"gpu": 2.0}, max_concurrent_jobs=1, max_bypass=1)
    driven.queue(needing(0, gpu=3))
    for number in range(1, 30):
        assert started(driven.queue(needing(number, gpu=1))) == [f"job_{number}"]
        driven.finish(number, at=number)


def test_a_held_job_loses_its_reservation() -> None:
    """D44"""
    driven = Driven({"gpu": 1.0}, max_concurrent_jobs=2, max_bypass=1)
    driven.queue(needing(0, gpu=1), needing(1, gpu=1), needing(2))
    driven.finish(2, at=1)
    assert driven.queue(needing(3), at=1) == []
    assert started(driven.handle(Held("job_1"), 2)) == ["job_3"]


def test_an_owner_at_the_quota_waits_and_others_do_not() -> None:
    """D50"""
    driven = Driven(max_concurrent_jobs=9, quotas={"anna": OwnerQuota(running=2)}, max_bypass=1)
    jobs = [*(queued(number) for number in range(4)), *(queued(number, owner="bert") for number in range(4, 8))]
    assert started(driven.queue(*jobs)) == ["job_0", "job_1", "job_4", "job_5", "job_6", "job_7"]
    assert driven.machine.capacity["quota:running:anna"] == 2
    assert driven.finish(0, at=1) == ["job_2"]


def test_the_quota_of_gpu_memory_counts_what_running_jobs_ask_for() -> None:
    """D50"""
    driven = Driven({"gpu_memory_mb": 80_000.0}, max_concurrent_jobs=9, default_quota=OwnerQuota(gpu_memory_mb=10_000))
    jobs = [needing(1, gpu_memory_mb=8000), needing(2, gpu_memory_mb=8000), needing(3)]
    first, second = driven.queue(*jobs)
    assert first == Start("job_1", 1, {SLOT: 1.0, "gpu_memory_mb": 8000, "quota:gpu_memory_mb:anna": 8000})
    assert second == Start("job_3", 1, {SLOT: 1.0})


def test_too_many_queued_jobs_are_refused_with_the_figures() -> None:
    """D50"""
    config = SchedulingConfig(default_quota=OwnerQuota(queued=10), quotas={"bert": OwnerQuota()})
    check_queued_quota("anna", 9, config)
    check_queued_quota("bert", 10_000, config)
    with pytest.raises(QuotaExceeded, match=r"anna has 8 queued jobs and may have 10: 3 more"):
        check_queued_quota("anna", 8, config, new=3)


def test_a_flood_of_one_owner_does_not_keep_another_waiting_under_fair_share() -> None:
    """D50"""
    driven = Driven(strategy="fair_share", max_concurrent_jobs=2)
    driven.machine.handle(Queued([queued(number) for number in range(10_000)]), NOON)
    driven.machine.handle(Queued([queued(10_000, owner="bert")]), NOON)
    assert started(driven.machine.handle(Finished("job_0", COMPLETED, 60.0), NOON + 60)) == ["job_10000"]


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "random"},
        {"max_concurrent_jobs": 0},
        {"max_bypass": 0},
        {"half_life": 0.0},
        {"max_wait": -1.0},
        {"weights": {"anna": 0.0}},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(fields: dict[str, Any]) -> None:
    """D41"""
    with pytest.raises(ValidationError, match="random|anna|" + next(iter(fields))):
        SchedulingConfig(**fields)


def test_a_clock_that_goes_back_changes_no_order() -> None:
    """D11"""
    driven = Driven(strategy="weighted")
    driven.queue(queued(0), queued(1), at=5000)
    assert driven.finish(0, at=-5000) == ["job_1"]
