"""When it will be done: the range, what it is made of, and when nobody can say."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.timing import Clock

from rayzyme.monitoring.eta import StepTimes, largest_deviation, remaining_time
from rayzyme.monitoring.progress import ProgressTracker


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(tracker: ProgressTracker, clock: Clock, seconds: Iterable[float], task: str | None = None) -> None:
    for each in seconds:
        clock.now += each
        tracker.update() if task is None else tracker.update_task(task)


def answer(tracker: ProgressTracker) -> tuple[float | None, float | None, float | None]:
    progress = tracker.get_progress()
    return progress["estimated_remaining"], progress["eta_low"], progress["eta_high"]


def test_an_even_rate_leaves_no_range(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(100, clock=clock)
    assert answer(tracker) == (None, None, None)
    run(tracker, clock, [2.0] * 10)
    assert answer(tracker) == (180.0, 180.0, 180.0)


def test_many_steps_in_one_update_count_as_many(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(100, clock=clock)
    clock.now += 20
    tracker.update(10)
    assert answer(tracker) == (180.0, 180.0, 180.0)


@pytest.mark.parametrize("with_task", [False, True])
def test_uneven_steps_give_a_range(clock: Clock, with_task: bool) -> None:
    """C51"""
    tracker = ProgressTracker(10, clock=clock)
    if with_task:
        tracker.start_task("a", "A", 10)
    run(tracker, clock, [1, 2, 3, 2], "a" if with_task else None)
    expected, low, high = answer(tracker)
    assert expected == 12.0
    assert (low, high) == (pytest.approx(7.95, abs=0.005), pytest.approx(16.05, abs=0.005))


def test_with_tasks_a_percent_point_is_the_unit(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(clock=clock)
    tracker.start_task("all", "All", 4)
    tracker.start_task("one", "One", 10, "all")
    run(tracker, clock, [3.0] * 5, "one")
    assert answer(tracker) == (105.0, 105.0, 105.0)


def test_only_the_last_hundred_updates_count(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(300, clock=clock)
    run(tracker, clock, [50.0] * 100)
    run(tracker, clock, [1.0] * 100)
    assert answer(tracker)[0] == 100.0


def test_a_task_that_makes_the_whole_grow_makes_old_updates_a_smaller_share(clock: Clock) -> None:
    tracker = ProgressTracker(clock=clock)
    tracker.start_task("one", "One", 10)
    run(tracker, clock, [1.0] * 5, "one")
    assert answer(tracker)[0] == 5.0
    tracker.start_task("two", "Two", 10)
    assert answer(tracker) == (15.0, 15.0, 15.0)


def test_the_range_is_the_same_whenever_the_whole_grew(clock: Clock) -> None:
    answers = []
    for early in (True, False):
        tracker = ProgressTracker(clock=clock)
        tracker.start_task("one", "One", 40)
        if early:
            tracker.start_task("two", "Two", 40)
        run(tracker, clock, [1.0, 1.0, 5.0, 5.0] * 5, "one")
        if not early:
            tracker.start_task("two", "Two", 40)
        answers.append(answer(tracker))
    assert answers[0] == pytest.approx(answers[1])
    assert answers[0][0] == 180.0


def test_a_stalled_run_says_so_until_it_goes_on(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(clock=clock)
    tracker.start_task("a", "A", 10)
    run(tracker, clock, [2.0] * 3, "a")
    clock.now += 20
    assert (answer(tracker)[0], tracker.get_progress()["stalled"]) == (14.0, False)
    clock.now += 0.5
    assert (answer(tracker), tracker.get_progress()["stalled"]) == ((None, None, None), True)
    tracker.update_task("a", 0, "still here")
    assert tracker.get_progress()["stalled"] is False


def is_stalled_after(tracker: ProgressTracker, clock: Clock, silence: float) -> bool:
    before, clock.now = clock.now, clock.now + silence
    stalled: bool = tracker.get_progress()["stalled"]
    clock.now = before
    return stalled


def test_ten_steps_of_silence_are_a_stall_however_the_steps_came(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(100, clock=clock)
    clock.now += 20
    tracker.update(10)
    assert [is_stalled_after(tracker, clock, silence) for silence in (19.9, 21.0)] == [False, True]


def test_quick_steps_stall_quickly(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(1000, clock=clock)
    run(tracker, clock, [1.0] * 5)
    run(tracker, clock, [0.001] * 100)
    assert [is_stalled_after(tracker, clock, silence) for silence in (0.009, 0.011, 0.05)] == [False, True, True]
    run(tracker, clock, [1e-6] * 100)
    assert not is_stalled_after(tracker, clock, 0.009), "threads that take turns are silent for that long"


def test_updates_of_many_steps_are_not_late_before_their_time(clock: Clock) -> None:
    tracker = ProgressTracker(100_000, clock=clock)
    for seconds in (10.0, 11.0, 9.0):
        clock.now += seconds
        tracker.update(1000)
    assert [is_stalled_after(tracker, clock, silence) for silence in (10.9, 11.1)] == [False, True]


def test_the_start_of_a_task_is_a_sign_of_life(clock: Clock) -> None:
    tracker = ProgressTracker(clock=clock)
    tracker.start_task("a", "A", 10)
    run(tracker, clock, [1.0] * 3, "a")
    clock.now += 1000
    tracker.start_task("b", "B", 10)
    assert [is_stalled_after(tracker, clock, silence) for silence in (9.0, 11.0)] == [False, True]


def test_where_nothing_is_active_nothing_stalls_and_nothing_will_be_done(clock: Clock) -> None:
    """C45"""
    tracker = ProgressTracker(clock=clock)
    tracker.start_task("a", "A", 10)
    run(tracker, clock, [1.0] * 3, "a")
    tracker.fail_task("a", "broken")
    clock.now += 1000
    assert (answer(tracker), tracker.get_progress()["stalled"]) == ((None, None, None), False)
    tracker.start_task("again", "A", 10)
    assert answer(tracker)[0] is not None


def test_a_run_that_is_done_is_not_stalled(clock: Clock) -> None:
    tracker = ProgressTracker(2, clock=clock)
    run(tracker, clock, [1.0, 3.0])
    clock.now += 1000
    assert (answer(tracker), tracker.get_progress()["stalled"]) == ((0.0, 0.0, 0.0), False)


def test_earlier_runs_say_how_long_it_takes_before_the_first_update(clock: Clock) -> None:
    """C51"""
    first = ProgressTracker(clock=clock)
    first.start_task("a", "Encode", 4)
    run(first, clock, [1, 2, 3, 2], "a")
    history = json.loads(json.dumps(first.history))
    assert history == {"Encode": {"mean": 2.0, "deviation": pytest.approx(statistics.stdev([1, 2, 3, 2])), "count": 4}}

    second = ProgressTracker(clock=clock, history=history)
    second.start_task("b", "Encode", 6)
    expected, low, high = answer(second)
    assert expected == 12.0
    assert (low, high) == (pytest.approx(7.95, abs=0.005), pytest.approx(16.05, abs=0.005))
    second.start_task("c", "Never seen before", 6)
    assert answer(second)[0] == 24.0
    run(second, clock, [5.0] * 4, "b")
    assert second.history["Encode"] == {
        "mean": 3.5, "deviation": pytest.approx(statistics.stdev([1, 2, 3, 2, 5, 5, 5, 5])), "count": 8,
    }  # fmt: skip


def test_stages_of_known_and_different_rates_add_up(clock: Clock) -> None:
    """C51"""
    history = {
        "fast": {"mean": 1.0, "deviation": 0.0, "count": 50},
        "slow": {"mean": 20.0, "deviation": 0.0, "count": 50},
        "": {"mean": 0.5, "deviation": 0.0, "count": 9},
    }
    tracker = ProgressTracker(100, clock=clock, history=history)
    assert answer(tracker) == (50.0, 50.0, 50.0)
    tracker.start_task("all", "All", 2)
    tracker.start_task("1", "fast", 100, "all")
    tracker.start_task("2", "slow", 10, "all")
    assert answer(tracker) == (300.0, 300.0, 300.0)
    run(tracker, clock, [1.0] * 5, "1")
    assert answer(tracker)[0] == 295.0
    run(tracker, clock, [1.0] * 5, "1")
    assert answer(tracker)[0] == 190.0  # ten updates of its own: they alone count from here


def by_the_formula(seconds: list[float], remaining: float) -> list[float]:
    mean, deviation = statistics.fmean(seconds), statistics.stdev(seconds)
    margin = 1.2816 * deviation * math.sqrt(remaining + remaining**2 / len(seconds))
    return [mean * remaining, max(0.0, mean * remaining - margin), mean * remaining + margin]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=19), st.integers(1, 500), st.booleans())
@example([1.0, 1.0, 5.0, 5.0, 1.0, 1.0], 4, False)
def test_few_updates_give_exactly_the_range_of_the_formula(
    seconds: list[float], remaining: int, with_task: bool
) -> None:
    """C51"""
    clock = Clock()
    tracker = ProgressTracker(len(seconds) + remaining, clock=clock)
    if with_task:
        tracker.start_task("a", "A", len(seconds) + remaining)
    run(tracker, clock, seconds, "a" if with_task else None)
    assert answer(tracker) == pytest.approx(by_the_formula(seconds, remaining), rel=1e-6, abs=1e-5)


def test_the_range_is_made_of_the_same_hundred_updates_as_the_mean(clock: Clock) -> None:
    """C51"""
    tracker = ProgressTracker(1000, clock=clock)
    run(tracker, clock, [10.0] * 150)
    run(tracker, clock, [1.0] * 99)
    assert answer(tracker)[2] != answer(tracker)[1]
    run(tracker, clock, [1.0])
    assert answer(tracker) == (750.0, 750.0, 750.0)


def test_from_twenty_updates_on_neighbours_that_are_alike_widen_the_range(clock: Clock) -> None:
    """C51"""
    tracker, seconds = ProgressTracker(60, clock=clock), [1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 1.0] * 3
    run(tracker, clock, seconds[:19])
    assert answer(tracker) == pytest.approx(by_the_formula(seconds[:19], 41))
    run(tracker, clock, seconds[19:20])
    (mean, low, high), by_formula = answer(tracker), by_the_formula(seconds[:20], 40)
    assert mean == pytest.approx(by_formula[0])
    assert low is not None
    assert high is not None
    assert low < by_formula[1] - 10
    assert high > by_formula[2] + 10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 100)), min_size=20, max_size=40), st.floats(0.001, 1000))
def test_the_range_does_not_depend_on_the_unit(updates: list[tuple[int, float]], factor: float) -> None:
    answers = []
    for unit in (1.0, factor):
        times = StepTimes()
        for work, seconds in updates:
            times.add(work * unit, seconds)
        spread = largest_deviation([(work * unit, seconds) for work, seconds in updates])
        answers.append(remaining_time(70 * unit, times, spread))
    assert answers[1].expected == pytest.approx(answers[0].expected, rel=1e-6, abs=1e-5)
    assert answers[1].high == pytest.approx(answers[0].high, rel=1e-6, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.integers(0, 30))
def test_observations_may_be_merged(seconds: list[float], cut: int) -> None:
    one, two, whole = StepTimes(), StepTimes(), StepTimes()
    for number, each in enumerate(seconds):
        (one if number < cut else two).add(1, each)
        whole.add(1, each)
    one.merge(two)
    assert (one.work, one.updates, one.longest) == (whole.work, whole.updates, whole.longest)
    assert one.mean == pytest.approx(whole.mean)
    assert one.deviation == pytest.approx(whole.deviation, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_deviation_known_from_few_pieces_is_widened_as_students_t(seed: int) -> None:
    source = random.Random(seed)
    seconds = [source.random() * (1 + number // 20) for number in range(60)]
    quantiles = {2: 1.3114, 3: 1.3277, 5: 1.3634, 8: 1.4398, 12: 1.5332, 18: 1.8856}
    expected = []
    for length, quantile in quantiles.items():
        newest = seconds[60 % length :]
        pieces = [sum(newest[begin : begin + length]) for begin in range(0, len(newest), length)]
        expected.append(statistics.stdev(pieces) / math.sqrt(length) * quantile / 1.2816)
    assert largest_deviation([(1, each) for each in seconds]) == pytest.approx(max(expected), rel=0.004)
    assert largest_deviation([(1, each) for each in seconds[:19]]) == 0.0


def share_within(traces: Iterable[list[float]]) -> float:
    hits = []
    for trace in traces:
        clock = Clock()
        tracker = ProgressTracker(len(trace), clock=clock)
        run(tracker, clock, trace[: len(trace) // 2])
        _, low, high = answer(tracker)
        hits.append(low <= sum(trace[len(trace) // 2 :]) <= high)
    return sum(hits) / len(hits)


def test_the_range_holds_the_true_end_four_times_in_five() -> None:
    """C51: independent steps, and steps of which neighbours are alike."""
    source = random.Random(7)
    independent = [[source.lognormvariate(0, 0.5) for _ in range(200)] for _ in range(200)]
    assert 0.75 <= share_within(independent) <= 0.95
    alike = [
        [level for level in (source.lognormvariate(0, 0.3) for _ in range(40)) for _ in range(10)] for _ in range(200)
    ]
    assert 0.75 <= share_within(alike) <= 0.95
