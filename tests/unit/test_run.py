"""What one attempt of a workflow does: order, retries, failures, timeouts, cancelling."""

from __future__ import annotations

import pytest
from tests.support.workflow_runs import Story, added, planned

from rayzyme.workflows import TaskPriority
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.run_events import TaskFinished, TaskLost, TaskStopped


def test_both_sides_of_a_diamond_run_at_once() -> None:
    """D32"""
    story = Story(planned("a"), planned("b", "a"), planned("c", "a"), planned("d", "b", "c"), max_parallel_tasks=2)
    assert story.begin() == ["start a.1"]
    assert story.complete("a") == ["a completed", "start b.1", "start c.1"]
    assert story.complete("c") == ["c completed"]
    assert story.complete("b") == ["b completed", "start d.1"]
    assert story.complete("d") == ["d completed", "completed"]
    assert story.finished is not None
    assert (story.finished.failed_tasks, story.finished.error) == ((), None)


@pytest.mark.parametrize(("in_workflow", "of_job", "at_once"), [(2, 9, 2), (9, 3, 3), (9, 9, 4)])
def test_no_more_run_at_once_than_both_limits_allow(in_workflow: int, of_job: int, at_once: int) -> None:
    """D32"""
    story = Story(*(planned(name) for name in "abcd"), max_parallel_tasks=in_workflow, max_workers=of_job)
    story.begin()
    assert len(story.running) == at_once


def test_what_can_start_starts_in_plan_order() -> None:
    """D32"""
    low, high = planned("low", priority=TaskPriority.LOW), planned("high", priority=TaskPriority.HIGH)
    story = Story(planned("first"), low, planned("second"), high, planned("child", "high"), max_parallel_tasks=1)
    assert story.begin() == ["start high.1"]
    for name in ("high", "first", "second", "low", "child"):
        story.complete(name)
    assert story.began == ["high.1", "first.1", "second.1", "low.1", "child.1"]


def test_a_failing_task_is_tried_so_often_and_waits_longer_each_time() -> None:
    """D16, D33"""
    story = Story(planned("a", max_retries=2, retry_delay=5), fail_fast=False)
    story.begin()
    waits = []
    for _ in range(2):
        assert story.fail("a") == ["a queued"]
        assert story.rows["a"].not_before == story.run.next_wake()
        waits.append((story.run.next_wake() or 0) - story.now)
        assert story.wait(waits[-1] - 0.01) == []
        assert len(story.wait(0.01)) == 1
    assert waits == [5, 10]
    assert story.fail("a") == ["a failed", "failed"]
    assert story.began == ["a.1", "a.2", "a.3"]
    assert story.rows["a"].error_message == "bad"
    assert story.finished is not None
    assert story.finished.error == "1 task failed: a (OddError: bad)"


def test_the_jitter_of_a_delay_is_the_same_in_every_process() -> None:
    """D16"""
    times = []
    for _ in range(2):
        story = Story(planned("a", retry_jitter=0.2))
        story.begin()
        story.fail("a")
        times.append(story.run.next_wake())
    assert times[0] == times[1]
    assert 4 <= (times[0] or 0) <= 6
    assert times[0] != 5


@pytest.mark.parametrize(
    ("error_class", "config", "is_final"),
    [
        ("OddError", {}, False),
        ("MemoryLimitExceeded", {}, False),
        ("MemoryLimitExceeded", {"retry_on_errors": [OSError]}, True),
        ("TaskTimeout", {"retry_on_errors": [TimeoutError]}, False),
        ("ConnectionError", {"retry_on_errors": ["their.module:ConnectionError"]}, False),
    ],
)
def test_an_error_that_is_not_worth_a_retry_is_final(
    error_class: str, config: dict[str, object], is_final: bool
) -> None:
    """D17"""
    story = Story(planned("a", **config))
    story.begin()
    assert story.fail("a", error_class) == (["a failed", "failed"] if is_final else ["a queued"])


def test_an_outcome_that_is_final_is_not_tried_again() -> None:
    """D17, D22"""
    story = Story(planned("a"))
    story.begin()
    assert story.fail("a", is_final=True) == ["a failed", "failed"]


def test_a_lost_process_spends_a_budget_of_its_own() -> None:
    """D17"""
    story = Story(planned("a", max_retries=0))
    story.begin()
    assert story.lose("a") == ["a queued", "start a.2"], "a first loss is no reason to wait"
    waits = []
    for _ in range(3):
        assert story.lose("a") == ["a queued"]
        waits.append((story.run.next_wake() or 0) - story.now)
        story.wake()
    assert waits[0] < waits[1] < waits[2]
    assert story.lose("a") == ["a failed", "failed"]
    assert story.finished is not None
    assert (story.finished.fault, story.finished.error_class) == ("site", "WorkerLost")
    assert "lost its worker 5 times" in (story.finished.error or "")
    assert story.rows["a"].site_faults == 5


def test_with_fail_fast_nothing_starts_any_more_and_what_runs_is_stopped_and_awaited() -> None:
    """D33"""
    story = Story(planned("a", max_retries=0), planned("b"), planned("c", "a"), planned("d"), max_parallel_tasks=2)
    story.begin()
    assert story.fail("a") == ["a failed", "stop b.1", "c cancelled"]
    assert story.run.next_wake() is None
    assert story.wait(100) == []
    assert story.stopped("b") == ["b cancelled", "d cancelled", "failed"]
    assert story.finished is not None
    assert story.finished.failed_tasks == ("a",)
    assert story.finished.error == "task a failed in attempt 1: OddError: bad"
    assert story.rows["c"].metadata == {"reason": "dependency_failed", "culprit": "a"}
    assert story.rows["d"].metadata == {"reason": "fail_fast", "culprit": "a"}


def test_without_fail_fast_only_dependents_are_cancelled_and_the_workflow_has_failed() -> None:
    """D33"""
    story = Story(
        planned("a", max_retries=0),
        planned("b"),
        planned("c", "a"),
        planned("d", "c", "b"),
        planned("e", "b"),
        fail_fast=False,
    )
    story.begin()
    assert story.fail("a") == ["a failed", "c cancelled", "d cancelled"]
    assert story.rows["d"].metadata == {"reason": "dependency_failed", "culprit": "a"}
    assert story.complete("b") == ["b completed", "start e.1"]
    assert story.complete("e") == ["e completed", "failed"]


def test_with_continue_on_error_it_has_completed_and_names_what_failed() -> None:
    """D33"""
    story = Story(planned("a", max_retries=0), planned("b"), fail_fast=False, continue_on_error=True)
    story.begin()
    story.fail("a")
    assert story.complete("b") == ["b completed", "completed"]
    assert story.finished is not None
    assert story.finished.failed_tasks == ("a",)


def test_a_task_that_takes_too_long_is_stopped_and_has_failed() -> None:
    """D25"""
    story = Story(planned("a", timeout=1, max_retries=1, retry_delay=0))
    story.begin()
    assert story.wake() == ["stop a.1"]
    assert story.now == 1
    assert story.wait(50) == []
    assert story.stopped("a") == ["a queued", "start a.2"]
    story.wake()
    assert story.stopped("a", "sleep (pid 7)") == ["a failed", "failed"]
    assert story.finished is not None
    assert story.finished.error_class == "TaskTimeout"
    assert "task a ran longer than its timeout of 1 s" in (story.finished.error or "")
    assert (story.rows["a"].metadata or {})["survivors"] == ["sleep (pid 7)"]
    assert story.remarks == ["processes of task a, attempt 2, could not be stopped: sleep (pid 7)"]


def test_the_time_that_a_task_waits_for_its_process_does_not_count() -> None:
    """D25"""
    story = Story(planned("a", timeout=1), has_processes=False)
    story.begin()
    assert story.run.next_wake() is None
    assert story.wait(50) == []
    story.begins("a")
    assert story.wake() == ["stop a.1"]
    assert story.now == 51


def test_what_a_task_gives_while_it_is_being_stopped_does_not_count() -> None:
    """D18, D20"""
    story = Story(planned("a", timeout=1, max_retries=0))
    story.begin()
    story.wake()
    assert story.handle(TaskFinished("a", 1, TaskOutcome.cancelled("timeout"))) == []
    assert story.handle(TaskLost("a", 1, "it was killed")) == []
    assert story.stopped("a") == ["a failed", "failed"]


def test_a_workflow_that_takes_too_long_is_stopped_and_the_error_names_the_timeout() -> None:
    """D34"""
    story = Story(planned("a"), planned("b", "a"), timeout=2)
    story.begin()
    assert story.wake() == ["stop a.1"]
    assert story.now == 2
    assert story.stopped("a") == ["a cancelled", "b cancelled", "failed"]
    assert story.finished is not None
    assert (story.finished.error_class, story.finished.fault) == ("TaskTimeout", "job")
    assert story.finished.error == "workflow w ran longer than its timeout of 2 s"
    assert story.rows["b"].metadata == {"reason": "workflow_timeout"}


def test_a_cancelled_job_stops_what_runs_and_names_what_is_left() -> None:
    """D18, D46"""
    story = Story(planned("a"), planned("b", "a"), planned("c", max_retries=1))
    story.begin()
    story.fail("c")
    assert story.cancel() == ["stop a.1"]
    assert story.cancel() == [], "once is enough"
    assert story.stopped("a", "sh (pid 3)") == ["a cancelled", "c cancelled", "b cancelled", "cancelled"]
    assert story.rows["a"].metadata == {"reason": "cancelled", "survivors": ["sh (pid 3)"]}
    assert story.run.next_wake() is None


def test_a_job_that_is_cancelled_while_nothing_runs_is_over_at_once() -> None:
    """D46"""
    story = Story(planned("a", max_retries=1))
    story.begin()
    story.fail("a")
    assert story.cancel() == ["a cancelled", "cancelled"]


def test_a_users_wish_goes_before_a_failure() -> None:
    """D46"""
    story = Story(planned("a", max_retries=0), planned("b"), max_workflow_retries=1)
    story.begin()
    story.fail("a")
    story.cancel()
    assert story.stopped("b") == ["a failed", "b cancelled", "cancelled"]


def test_late_messages_change_nothing() -> None:
    """D20"""
    story = Story(planned("a", max_retries=1), planned("b", "a"))
    story.begin()
    story.fail("a")
    late = TaskFinished("a", 1, TaskOutcome.failed("OddError", "bad"))
    assert story.handle(late) == []
    story.wake()
    assert story.handle(late) == []
    assert story.handle(TaskStopped("a", 1)) == []
    assert story.handle(TaskLost("nobody", 1, "")) == []
    story.complete("a")
    story.complete("b")
    assert story.handle(late) == []
    assert story.cancel() == []


def test_a_task_that_was_interrupted_without_being_told_so_is_lost() -> None:
    """D17"""
    story = Story(planned("a", max_retries=0))
    story.begin()
    assert story.finish("a", TaskOutcome.cancelled("it was interrupted")) == ["a queued", "start a.2"]


def test_of_two_parallel_writers_the_later_in_plan_order_wins_and_both_are_named() -> None:
    """D35"""
    story = Story(planned("a"), planned("b"), planned("c", "a", "b"))
    story.begin()
    story.complete("b", shared={"key": 2, "own": 1})
    assert story.remarks == []
    story.complete("a", shared={"key": 1})
    assert story.remarks == ["tasks b and a both wrote 'key' to the shared state; b, later in the plan, wins"]
    story.complete("c", shared={"key": 3})
    assert len(story.remarks) == 1, "what an ancestor wrote may be written anew"


def test_an_addition_runs_beside_the_rest_and_the_workflow_waits_for_it() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"))
    story.begin()
    assert story.complete("a", plan_change={"addition": [added("x")]}) == ["a completed", "start b.1", "start x.1"]
    assert story.complete("b") == ["b completed"]
    assert story.run.plan.ancestors("x") == ["a"]
    assert story.complete("x") == ["x completed", "completed"]


def test_a_detour_runs_before_what_depends_on_the_task() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"), planned("c"))
    story.begin()
    change = {"detour": [added("x"), added("y", "x")]}
    assert story.complete("a", plan_change=change) == ["a completed", "start x.1"]
    story.complete("c")
    assert story.complete("x") == ["x completed", "start y.1"]
    assert story.complete("y") == ["y completed", "start b.1"]
    assert story.run.plan.inputs_of("b") == {"a": "a", "y": "y"}


def test_replacements_take_the_place_of_the_task() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"))
    story.begin()
    assert story.complete("a", plan_change={"replace": [added("x"), added("y")]}) == [
        "a completed",
        "start x.1",
        "start y.1",
    ]
    story.complete("y")
    assert story.complete("x", plan_change={"replace": [added("z")]}) == ["x completed", "start z.1"]
    assert story.complete("z") == ["z completed", "start b.1"]
    assert story.run.plan.inputs_of("b") == {"a": "y", "x": "z", "y": "y", "z": "z"}


def test_stopping_the_children_is_no_failure() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"), planned("c", "b"), planned("d"))
    story.begin()
    change = {"stop_children": True, "addition": []}
    assert story.complete("a", plan_change=change) == ["a completed", "b cancelled", "c cancelled"]
    assert story.rows["c"].metadata == {"reason": "stopped_by", "culprit": "a"}
    assert story.complete("d") == ["d completed", "completed"]


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ([added("b")], "two tasks named 'b'"),
        ([added("x", "nobody")], "no task of this workflow"),
        ([added("x", "b")], "circle"),
    ],
)
def test_a_plan_change_that_cannot_be_fails_its_task(tasks: list[dict[str, object]], why: str) -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"))
    story.begin()
    assert story.complete("a", plan_change={"detour": tasks}) == ["a failed", "b cancelled", "failed"]
    assert story.rows["a"].error_class == "InvalidInput"
    assert why in (story.rows["a"].error_message or "")
