"""Progress as figures: how steps and tasks add up to a whole that never falls back."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.timing import Clock

from rayzyme.errors import ValidationError
from rayzyme.monitoring.progress import ProgressTracker

PROGRESS_KEYS = {
    "current_step", "total_steps", "percent", "raw_percent", "elapsed_time", "active_tasks", "task_progress",
    "estimated_remaining", "eta_low", "eta_high", "stalled", "message",
}  # fmt: skip
TASK_KEYS = {
    "name", "current_step", "total_steps", "percent", "elapsed_time", "parent_task", "subtasks", "messages", "status",
}  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> ProgressTracker:
    return ProgressTracker(clock=clock)


def percents(tracker: ProgressTracker) -> tuple[float, float]:
    progress = tracker.get_progress()
    return progress["percent"], progress["raw_percent"]


def test_the_example_of_the_documentation(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """C42"""
    monkeypatch.chdir(tmp_path)
    tracker = ProgressTracker(total_steps=100, checkpoint_dir="checkpoints", auto_checkpoint=True)
    tracker.start_task(task_id="protein1", task_name="Protein Analysis", total_steps=3)
    tracker.start_task(task_id="prediction", task_name="Structure Prediction", total_steps=100, parent_task="protein1")
    tracker.update_task(task_id="prediction", steps=10, message="Processing MSA")
    progress = tracker.get_progress()
    print(f"Overall progress: {progress['percent']}%")  # noqa: T201 - the document does
    assert capsys.readouterr().out == "Overall progress: 3.33%\n"
    assert progress["task_progress"] == {"protein1": pytest.approx(0.1 / 3), "prediction": 0.1}
    assert progress["message"] == "Processing MSA"
    tracker.close()


def test_tasks_under_a_task_share_it(tracker: ProgressTracker) -> None:
    """C42"""
    tracker.start_task("protein1", "Protein Analysis", 3)
    tracker.start_task("prediction", "Structure Prediction", 100, "protein1")
    tracker.update_task("prediction", 10)
    assert percents(tracker) == (3.33, 3.33)
    tracker.complete_task("prediction")
    assert percents(tracker) == (33.33, 33.33)
    tracker.start_task("dynamics", "Dynamics", 50, "protein1")
    assert percents(tracker) == (33.33, 33.33)
    tracker.update_task("dynamics", 25)
    assert percents(tracker) == (50.0, 50.0)
    tracker.complete_task("dynamics")
    tracker.start_task("analysis", "Analysis", 0, "protein1")
    tracker.complete_task("analysis")
    assert percents(tracker) == (100.0, 100.0)


@pytest.mark.parametrize("looked_at_before", [True, False])
def test_percent_never_falls_where_the_whole_grows(tracker: ProgressTracker, looked_at_before: bool) -> None:
    """C42"""
    tracker.start_task("one", "One", 10)
    tracker.update_task("one", 5)
    if looked_at_before:
        assert percents(tracker) == (50.0, 50.0)
    tracker.start_task("two", "Two", 10)
    assert percents(tracker) == (50.0, 25.0)
    tracker.update_task("two", 6)
    assert percents(tracker) == (55.0, 55.0)


def test_top_level_tasks_count_by_weight(tracker: ProgressTracker) -> None:
    """C41"""
    tracker.start_task("short", "Short", 1, weight=0.5)
    tracker.start_task("long", "Long", 1, weight=1.5)
    tracker.complete_task("short")
    assert percents(tracker) == (25.0, 25.0)
    tracker.complete_task("long")
    assert percents(tracker) == (100.0, 100.0)
    with pytest.raises(ValidationError, match="weight counts only for tasks without a parent"):
        tracker.start_task("part", "Part", 1, "long", weight=2)


def test_without_tasks_the_tracker_counts_its_own_steps(tracker: ProgressTracker) -> None:
    """C41"""
    tracker.update(30, "a third")
    progress = tracker.get_progress()
    assert (progress["current_step"], progress["total_steps"], progress["percent"]) == (30, 100, 30.0)
    assert progress["message"] == "a third"
    assert [entry["message"] for entry in tracker.get_messages()] == ["a third"]


@pytest.mark.parametrize("total", [0, 100])
def test_a_fresh_tracker_answers_zeros_and_none(total: int) -> None:
    """C44"""
    progress = ProgressTracker(total).get_progress()
    assert set(progress) == PROGRESS_KEYS
    zeros = ("current_step", "percent", "raw_percent", "elapsed_time", "active_tasks")
    assert {name: progress[name] for name in zeros} == dict.fromkeys(zeros, 0)
    nothing = ("estimated_remaining", "eta_low", "eta_high", "message")
    assert {name: progress[name] for name in nothing} == dict.fromkeys(nothing)
    assert progress["task_progress"] == {}
    assert progress["stalled"] is False
    assert progress["total_steps"] == total


def test_what_is_told_of_a_task(tracker: ProgressTracker, clock: Clock) -> None:
    """C43"""
    tracker.start_task("parent", "Parent", 2)
    clock.now += 1
    for name in ("b", "a"):
        tracker.start_task(name, name.upper(), 4, "parent")
    clock.now += 2
    tracker.update_task("b", 3, "three")
    told = tracker.get_task_progress("b")
    assert set(told) == TASK_KEYS
    assert (told["name"], told["current_step"], told["total_steps"], told["percent"]) == ("B", 3, 4, 75.0)
    assert (told["elapsed_time"], told["parent_task"], told["status"]) == (2.0, "parent", "running")
    assert [entry["message"] for entry in told["messages"]] == ["three"]
    assert tracker.get_task_progress("parent")["subtasks"] == ["b", "a"]
    assert tracker.get_progress()["active_tasks"] == 3
    tracker.complete_task("b", "done")
    clock.now += 5
    told = tracker.get_task_progress("b")
    assert set(told) == TASK_KEYS | {"completion_time"}
    assert (told["elapsed_time"], told["status"], told["current_step"]) == (2.0, "completed", 4)
    assert tracker.get_progress()["active_tasks"] == 2
    tracker.fail_task("a", RuntimeError("no more memory"))
    told = tracker.get_task_progress("a")
    assert (told["status"], told["percent"]) == ("failed", 0.0)
    assert told["messages"][-1]["message"] == "failed: RuntimeError: no more memory"


def test_a_task_with_all_its_steps_is_completed(tracker: ProgressTracker, clock: Clock) -> None:
    tracker.start_task("parent", "Parent", 1)
    tracker.start_task("one", "One", 2, "parent")
    clock.now += 3
    tracker.update_task("one", 2)
    clock.now += 3
    for task in ("one", "parent"):
        told = tracker.get_task_progress(task)
        assert (told["status"], told["elapsed_time"], "completion_time" in told) == ("completed", 3.0, True)
    tracker.start_task("two", "Two", 2, "parent")
    told = tracker.get_task_progress("parent")
    assert (told["status"], told["percent"], "completion_time" in told) == ("running", 50.0, False)


def test_a_task_without_steps_is_complete_when_it_is_declared_to_be(tracker: ProgressTracker) -> None:
    """C39"""
    tracker.start_task("empty", "Empty", 0)
    assert tracker.get_progress()["task_progress"] == {"empty": 0.0}
    tracker.complete_task("empty")
    assert tracker.get_progress()["task_progress"] == {"empty": 1.0}


def test_tasks_that_cannot_be_started(tracker: ProgressTracker) -> None:
    """C39"""
    tracker.start_task("a", "A", 1)
    with pytest.raises(ValueError, match="'a' was started before"):
        tracker.start_task("a", "Again", 1)
    with pytest.raises(KeyError, match="parent_task 'nobody'"):
        tracker.start_task("b", "B", 1, parent_task="nobody")
    for wrong in (-1, 1.5, True, "3", 10**400, 2**53 + 1):
        with pytest.raises(ValueError, match="total_steps"):
            tracker.start_task("c", "C", wrong)
    for wrong in (0, -1.0, math.inf, "1", 1e300):
        with pytest.raises(ValidationError, match="weight"):
            tracker.start_task("c", "C", 1, weight=wrong)
    with pytest.raises(ValidationError, match="task_id"):
        tracker.start_task("", "C", 1)
    assert list(tracker.get_progress()["task_progress"]) == ["a"]


def test_the_largest_figures_are_reckoned_with(tracker: ProgressTracker, clock: Clock) -> None:
    """C2"""
    tracker.start_task("a", "A", 2**53, weight=1e12)
    tracker.start_task("b", "B", 2**53, "a")
    for steps in (1, 2**52, 10**400):
        clock.now += 1
        tracker.update_task("b", steps)
    assert tracker.get_task_progress("b")["current_step"] == 2**53
    assert tracker.get_progress()["task_progress"]["b"] == 1.0


def test_deep_nesting(tracker: ProgressTracker) -> None:
    """C39"""
    tracker.start_task("0", "level", 1)
    for level in range(1, 500):
        tracker.start_task(str(level), "level", 1, str(level - 1))
    tracker.complete_task("499")
    assert percents(tracker) == (100.0, 100.0)


def test_updates_that_are_refused(tracker: ProgressTracker) -> None:
    """C40"""
    tracker.start_task("a", "A", 10)
    for call in (tracker.update_task, tracker.complete_task, tracker.get_task_progress, tracker.get_messages):
        with pytest.raises(KeyError, match="'nobody' is not the id of a started task"):
            call("nobody")
    with pytest.raises(KeyError, match="nobody"):
        tracker.fail_task("nobody", "why")
    for wrong in (-1, 0.5, True, None):
        with pytest.raises(ValueError, match="steps"):
            tracker.update_task("a", wrong)
        with pytest.raises(ValueError, match="steps"):
            tracker.update(wrong)
    with pytest.raises(ValidationError, match="message"):
        tracker.update_task("a", 1, 7)
    for wrong in ({"memory_usage": math.nan}, {"memory_usage": "much"}, {1: 1.0}, [1.0]):
        with pytest.raises(ValidationError, match="performance_metrics"):
            tracker.update(1, performance_metrics=wrong)
    assert percents(tracker) == (0.0, 0.0)
    assert tracker.get_progress()["current_step"] == 0


def test_steps_beyond_the_total_are_dropped_with_one_warning(
    tracker: ProgressTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """C40"""
    tracker.start_task("a", "A", 10)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tracker.update_task("a", 7, "on")
    assert [record.getMessage() for record in caplog.records] == [
        "'a' has only 10 steps; what goes beyond is not counted"
    ]
    assert tracker.get_task_progress("a")["current_step"] == 10
    assert len(tracker.get_messages("a")) == 2


@pytest.mark.parametrize("task", ["a", None])
def test_updates_after_the_last_step_are_ignored_with_a_warning(
    tracker: ProgressTracker, caplog: pytest.LogCaptureFixture, task: str | None
) -> None:
    """C40"""

    def update(steps: int, message: str) -> None:
        tracker.update(steps, message) if task is None else tracker.update_task(task, steps, message)

    if task is not None:
        tracker.start_task(task, "A", 100)
    update(100, "all")
    before = tracker.get_progress()
    with caplog.at_level(logging.WARNING):
        for steps in (0, 1, 1):
            update(steps, "late")
    assert [record.getMessage() for record in caplog.records] == [
        f"{task or 'the tracker'!r} is completed; updates after that are ignored"
    ]
    assert [entry["message"] for entry in tracker.get_messages(task)] == ["all"]
    assert tracker.get_progress()["message"] == before["message"]


def test_a_parent_that_its_children_completed_may_still_count_its_own_steps(
    tracker: ProgressTracker, caplog: pytest.LogCaptureFixture
) -> None:
    """C41"""
    tracker.start_task("all", "All", 2)
    for name in ("one", "two"):
        tracker.start_task(name, name, 1, "all")
        tracker.update_task(name)
        tracker.update_task("all", 1, f"{name} is done")
    assert caplog.records == []
    assert tracker.get_task_progress("all")["current_step"] == 2


@pytest.mark.parametrize("end", ["complete", "fail"])
def test_updates_after_the_end_are_ignored_with_a_warning(
    tracker: ProgressTracker, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """C40"""
    tracker.start_task("a", "A", 10)
    tracker.update_task("a", 4)
    if end == "complete":
        tracker.complete_task("a")
    else:
        tracker.fail_task("a", "broken")
    before = tracker.get_task_progress("a")
    with caplog.at_level(logging.WARNING):
        tracker.update_task("a", 1, "late")
        tracker.fail_task("a", "late")
    assert "updates after that are ignored" in caplog.text
    assert "already and stays so" in caplog.text
    assert tracker.get_task_progress("a") == before


def test_the_last_thousand_messages_are_kept_in_order(tracker: ProgressTracker) -> None:
    """C40"""
    tracker.start_task("a", "A", 1)
    for number in range(1005):
        tracker.update_task("a", 0, str(number))
    told = tracker.get_messages("a")
    assert [entry["message"] for entry in told] == [str(number) for number in range(5, 1005)]
    times = [entry["time"] for entry in told]
    assert times == sorted(times)


def test_time_counts_from_the_first_task_or_from_start(tracker: ProgressTracker, clock: Clock) -> None:
    clock.now += 5
    assert tracker.get_progress()["elapsed_time"] == 0.0
    tracker.start_task("a", "A", 1)
    clock.now += 2
    assert tracker.get_progress()["elapsed_time"] == 2.0
    tracker.start()
    assert tracker.get_progress()["elapsed_time"] == 2.0
    tracker.close()
    clock.now += 2
    assert tracker.get_progress()["elapsed_time"] == 2.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("total_steps", {"total_steps": -1}),
        ("total_steps", {"total_steps": True}),
        ("total_steps", {"total_steps": 1.0}),
        ("total_steps", {"total_steps": 10**400}),
        ("checkpoint_dir", {"checkpoint_dir": 7}),
        ("checkpoint_dir", {"checkpoint_dir": __file__}),
        ("auto_checkpoint", {"auto_checkpoint": 1}),
        ("checkpoint_interval", {"checkpoint_interval": 0}),
        ("checkpoint_interval", {"checkpoint_interval": True}),
        ("clock", {"clock": 1.0}),
        ("callback", {"callback": "print"}),
        ("history", {"history": {"a": {"mean": 1.0}}}),
        ("history", {"history": {"a": {"mean": -1.0, "deviation": 0.0, "count": 3}}}),
        ("history", {"history": {"a": {"mean": 1.0, "deviation": 1e200, "count": 3}}}),
    ],
)
def test_arguments_are_checked_at_construction(name: str, arguments: dict[str, Any]) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=name):
        ProgressTracker(**arguments)


class Naive:
    """The same figures, worked out anew from the rules with exact fractions."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}

    def fraction(self, task_id: str) -> Fraction:
        task = self.tasks[task_id]
        if task["completed"]:
            return Fraction(1)
        children = [name for name, other in self.tasks.items() if other["parent"] == task_id]
        parts = max(task["total"], len(children))
        done = max(Fraction(task["current"]), sum(map(self.fraction, children), Fraction(0)))
        return min(Fraction(1), done / parts) if parts else Fraction(0)

    def overall(self) -> Fraction:
        top = [name for name, task in self.tasks.items() if task["parent"] is None]
        weights = [self.tasks[name]["weight"] for name in top]
        return sum((w * self.fraction(name) for w, name in zip(weights, top, strict=True)), Fraction(0)) / sum(weights)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_events_gives_the_figures_of_the_rules(data: st.DataObject) -> None:
    """C41, C66"""
    tracker, naive, percent = ProgressTracker(), Naive(), 0.0
    for number in range(data.draw(st.integers(1, 30))):
        known = list(naive.tasks)
        event = data.draw(st.sampled_from(["start", "update", "update", "complete", "fail"])) if known else "start"
        if event == "start":
            parent = data.draw(st.sampled_from([None, *known]))
            weight = data.draw(st.sampled_from([1, Fraction(1, 4), 3])) if parent is None else 1
            total = data.draw(st.integers(0, 7))
            tracker.start_task(str(number), "task", total, parent, weight=float(weight))
            naive.tasks[str(number)] = {
                "total": total, "parent": parent, "weight": Fraction(weight), "current": 0, "completed": False, "closed": False,
            }  # fmt: skip
        else:
            name = data.draw(st.sampled_from(known))
            task = naive.tasks[name]
            if event == "update":
                steps = data.draw(st.integers(0, 5))
                tracker.update_task(name, steps)
                task["current"] += 0 if task["closed"] else min(steps, task["total"] - task["current"])
            else:
                tracker.complete_task(name) if event == "complete" else tracker.fail_task(name, "x")
                if event == "complete" and not task["closed"]:
                    task.update(completed=True, current=task["total"])
                task["closed"] = True
        progress = tracker.get_progress()
        assert progress["task_progress"] == {name: pytest.approx(float(naive.fraction(name))) for name in naive.tasks}
        assert progress["raw_percent"] == pytest.approx(float(100 * naive.overall()), abs=0.0051)
        assert percent <= progress["percent"] <= 100.0
        assert progress["percent"] == max(percent, progress["raw_percent"])
        percent = progress["percent"]


@settings(max_examples=30, deadline=None)
@given(st.permutations([(f"t{number % 7}", number % 3) for number in range(60)]))
def test_the_end_does_not_depend_on_the_order_of_updates(updates: list[tuple[str, int]]) -> None:
    """C66"""
    tracker = ProgressTracker()
    tracker.start_task("all", "All", 7)
    for number in range(7):
        tracker.start_task(f"t{number}", "Part", sum(s for name, s in updates if name == f"t{number}"), "all")
    last = 0.0
    for name, steps in updates:
        tracker.update_task(name, steps)
        assert tracker.get_progress()["percent"] >= last
        last = tracker.get_progress()["percent"]
    progress = tracker.get_progress()
    assert (progress["raw_percent"], progress["active_tasks"], progress["estimated_remaining"]) == (100.0, 0, 0.0)
    assert progress["task_progress"]["all"] == 1.0
