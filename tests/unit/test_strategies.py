"""The eight strategies: what each of them scores."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.queued_jobs import NOON, queued

from rayzyme.jobs.durations import DurationBook, JobDuration
from rayzyme.jobs.fair_share import OwnerUsage, UsageBook
from rayzyme.jobs.job import TaskPriority
from rayzyme.jobs.scheduling_config import SLOT
from rayzyme.jobs.strategies import STRATEGIES, View, create_priority_strategy


def score(strategy: str, view: View | None = None, now: float = NOON, **fields: Any) -> float:
    return create_priority_strategy(strategy).score(queued(0, **fields), view or View(), now)


def test_there_are_eight_and_an_unknown_name_lists_them() -> None:
    """D41"""
    assert set(STRATEGIES) == {"fifo", "lifo", "priority", "sjf", "weighted", "fair_share", "edf", "adaptive"}
    with pytest.raises(ValueError, match=r"'random'.*fifo, lifo, priority, sjf, weighted, fair_share, edf, adaptive"):
        create_priority_strategy("random")
    with pytest.raises(ValueError, match=r"'fairshare'.*; did you mean 'fair_share'\?$"):
        create_priority_strategy("fairshare")


def test_by_submission_by_priority_and_by_expected_duration() -> None:
    """D42"""
    assert score("fifo", submitted_at=12.0) == -12.0
    assert score("lifo", submitted_at=12.0) == 12.0
    assert score("priority", priority=TaskPriority.HIGH) == 2.0
    assert score("sjf", task_count=7) == -420.0


@pytest.mark.parametrize(
    ("priority", "waited_s", "tasks", "expected"),
    [
        (TaskPriority.HIGH, 1800.0, 5, 0.673333),
        (TaskPriority.LOW, 3600.0, 1, 0.498),
        (TaskPriority.CRITICAL, 0.0, 100, 0.5),
        (TaskPriority.HIGH, 0.0, 5, 0.523333),
        (TaskPriority.LOW, 7200.0, 5, 0.49),
        (TaskPriority.CRITICAL, 3600.0, 1000, 0.8),
    ],
)
def test_the_weighted_sum(priority: TaskPriority, waited_s: float, tasks: int, expected: float) -> None:
    """D42, D43"""
    given = score("weighted", now=NOON + waited_s, submitted_at=NOON, priority=priority, task_count=tasks)
    assert given == pytest.approx(expected, abs=5e-7)


def test_fair_share_counts_what_the_owner_used_and_runs() -> None:
    """D42, D49"""
    usage = UsageBook(rows=[OwnerUsage("anna", 3600.0, 0.0, NOON - 86400.0)])
    for number in range(2):
        usage.begin(f"job_{number}", "anna", {SLOT: 1.0}, NOON)
    assert score("fair_share", View(usage=usage)) == pytest.approx(-1802.0)
    assert score("fair_share", View(usage=usage, weights={"anna": 2.0})) == pytest.approx(-901.0)
    assert score("fair_share", View(usage=usage), owner="bert") == 0.0


def test_jobs_without_a_deadline_come_after_all_that_have_one() -> None:
    """D42"""
    assert score("edf", deadline=NOON + 60.0) == -60.0
    assert score("edf", deadline=NOON - 60.0) == 60.0
    assert score("edf") < score("edf", deadline=NOON + 1e9)


@pytest.mark.parametrize(
    ("load", "expected"),
    [(0.8, 0.7 * 0.6 + 0.2), (0.2, 0.7 * 0.4 + 0.2), (0.3, 0.7 * 0.25 + 0.2), (0.7, 0.7 * 0.25 + 0.2)],
)
def test_adaptive_prefers_small_jobs_under_load_large_ones_without_and_old_ones_between(
    load: float, expected: float
) -> None:
    """D42"""
    view = View(load=load, fifo_rank=lambda _job: 0.25)
    assert score("adaptive", view, priority=TaskPriority.HIGH, task_count=40) == pytest.approx(expected)


def records(job_type: str, *seconds: float, task_count: int = 1) -> list[JobDuration]:
    return [JobDuration("workflow", job_type, task_count, second) for second in seconds]


def test_the_expected_duration_is_the_median_of_the_last_fifty_of_its_like() -> None:
    """D48"""
    book = DurationBook(records("screening", *[9000.0] * 30, *range(100, 150)))
    assert book.expected_s(queued(0)) == 124.5


def test_jobs_of_another_kind_type_or_size_are_not_of_its_like() -> None:
    """D48"""
    book = DurationBook([*records("screening", 10, 20, 30), *records("screening", 500, 600, 700, task_count=8)])
    assert book.expected_s(queued(0)) == 20
    assert book.expected_s(queued(0, task_count=15)) == 600
    for other in ({"job_type": "evaluation"}, {"kind": "command"}, {"task_count": 2}):
        assert book.expected_s(queued(0, **other)) == 700


def test_an_unknown_kind_neither_goes_before_the_short_nor_after_the_longest() -> None:
    """D48"""
    book = DurationBook([*records("screening", *range(1, 11)), *records("new", 1, 1)])
    assert book.expected_s(queued(0, job_type="new")) == 9
    assert book.expected_s(queued(0, job_type="never seen", task_count=1000)) == 9


def test_what_its_submitter_estimates_counts_until_enough_of_its_like_are_recorded() -> None:
    """D22, D42, D48"""
    job = queued(0, job_type="new", task_count=1, estimated_seconds=7.0)
    assert DurationBook().expected_s(job) == 7.0
    assert DurationBook([*records("screening", 100, 100), *records("new", 30, 30)]).expected_s(job) == 7.0
    assert DurationBook(records("new", 30, 30, 30)).expected_s(job) == 30.0


def test_with_no_records_a_task_takes_a_minute() -> None:
    """D42, D48"""
    assert DurationBook().expected_s(queued(0, task_count=3)) == 180
