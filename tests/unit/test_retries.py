"""When a failed attempt is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzyme.errors import ValidationError
from rayzyme.jobs.retries import RetryPolicy


def test_delays_double_up_to_their_maximum() -> None:
    """D16"""
    policy = RetryPolicy(jitter=0.0)
    assert [policy.delay_before(retry, "job/task") for retry in range(1, 9)] == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_backoff_of_one_keeps_the_delay() -> None:
    """D16"""
    assert {RetryPolicy(backoff=1.0, jitter=0.0).delay_before(retry, "job/task") for retry in range(1, 50)} == {5.0}


@given(st.integers(1, 10_000), st.text(max_size=20))
def test_jitter_stays_within_its_part_of_the_delay(retry: int, seed: str) -> None:
    """D16"""
    plain = RetryPolicy(jitter=0.0).delay_before(retry, seed)
    assert 0.8 * plain <= RetryPolicy().delay_before(retry, seed) <= 1.2 * plain


def test_jitter_depends_on_the_job_the_task_and_the_retry_alone() -> None:
    """D16"""
    delays = [RetryPolicy(backoff=1.0).delay_before(retry, seed) for retry in (1, 2) for seed in ("a/x", "a/y", "b/x")]
    assert len(set(delays)) == 6
    assert delays == [
        RetryPolicy(backoff=1.0).delay_before(retry, seed) for retry in (1, 2) for seed in ("a/x", "a/y", "b/x")
    ]
    # Another process must come to the same: this figure was computed once.
    assert RetryPolicy().delay_before(1, "job_000000000000/task") == pytest.approx(4.68675954310177, abs=1e-9)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_retries": -1},
        {"max_retries": True},
        {"delay": -1.0},
        {"backoff": 0.5},
        {"max_delay": float("inf")},
        {"jitter": 1.5},
    ],
)
def test_figures_that_make_no_sense_are_refused_by_name(fields: dict[str, float]) -> None:
    """D16"""
    with pytest.raises(ValidationError, match=next(iter(fields))):
        RetryPolicy(**fields)  # type: ignore[arg-type]


def test_the_first_retry_is_number_one() -> None:
    """D16"""
    with pytest.raises(ValidationError, match="retry"):
        RetryPolicy().delay_before(0, "job/task")
