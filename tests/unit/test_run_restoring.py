"""A run that goes on from what was written: after its runner was lost, and when the workflow itself is retried."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.support.workflow_runs import Story, added, planned


def chain(*names: str, **config: Any) -> list[Any]:
    return [planned(name, *names[number - 1 : number][:number], **config) for number, name in enumerate(names)]


def test_what_was_committed_is_not_run_again_and_what_ran_is() -> None:
    """D19, D38"""
    story = Story(*chain("a", "b", "c", "d", "e"))
    story.begin()
    story.complete("a")
    story.complete("b")
    assert story.running == {"c": 1}
    assert story.begin() == ["c queued", "start c.2"]
    assert story.rows["c"].site_faults == 1
    for name in "cde":
        story.complete(name)
    assert story.told == ["e completed", "completed"]
    assert story.began == ["a.1", "b.1", "c.1", "c.2", "d.1", "e.1"]


def test_a_job_whose_tasks_have_all_been_committed_is_over_at_once() -> None:
    """D19"""
    story = Story(planned("a"))
    story.begin()
    story.complete("a")
    assert story.begin() == ["completed"]


def test_a_finished_task_whose_needed_output_was_not_durable_is_run_again_and_says_so() -> None:
    """D38"""
    story = Story(*chain("a", "b", "c"))
    story.begin()
    story.complete("a", output=threading.Lock())
    story.complete("b")
    assert not story.rows["a"].durable
    assert story.begin() == ["c queued", "start c.2"], "nobody needs the output of a any more"

    story = Story(*chain("a", "b", "c"))
    story.begin()
    story.complete("a", output=threading.Lock())
    assert story.begin() == ["b queued", "start a.2"]
    assert "could not be stored" in (story.rows["a"].metadata or {})["run_again"]
    assert story.complete("a", output=1) == ["a completed", "start b.2"]


def test_what_such_a_task_needs_is_run_again_too() -> None:
    """D38"""
    story = Story(*chain("a", "b", "c"))
    story.begin()
    story.complete("a", output=threading.Lock())
    story.complete("b", output=threading.Lock())
    assert story.begin() == ["c queued", "start a.2"]
    assert story.complete("a") == ["a completed", "start b.2"]
    assert story.complete("b") == ["b completed", "start c.2"]


def test_shared_state_that_was_not_durable_is_needed_by_remoter_descendants() -> None:
    """D35, D38"""
    story = Story(*chain("a", "b", "c"), planned("d"))
    story.begin()
    story.complete("a", shared={"lock": threading.Lock()})
    story.complete("b")
    assert story.begin() == ["d queued", "c queued", "start a.2", "start d.2"]
    assert story.complete("a", shared={"key": 1}) == ["a completed", "start c.2"]


def test_retries_delays_and_site_faults_are_remembered() -> None:
    """D16, D17"""
    story = Story(planned("a", max_retries=2), planned("b", "a"))
    story.begin()
    story.fail("a")
    assert story.begin() == []
    assert story.run.next_wake() == 5
    story.wake()
    story.fail("a")
    story.begin()
    story.wake()
    assert story.begin() == ["a queued", "start a.4"], "a lost attempt is none of the retries"
    assert story.fail("a") == ["a failed", "b cancelled", "failed"]
    assert story.began == ["a.1", "a.2", "a.3", "a.4"]


def test_the_fifth_lost_runner_fails_the_task_that_ran() -> None:
    """D17"""
    story = Story(planned("a"))
    story.begin()
    for _ in range(4):
        story.begin()
        if not story.running:
            story.wake()
    assert story.begin() == ["a failed", "failed"]
    assert "lost its worker 5 times" in (story.rows["a"].error_message or "")


def test_what_has_failed_stays_failed() -> None:
    """D33"""
    story = Story(planned("a", max_retries=0), planned("b", "a"), planned("c"), fail_fast=False)
    story.begin()
    story.fail("a")
    assert story.begin() == ["b cancelled", "c queued", "start c.2"]
    assert story.complete("c") == ["c completed", "failed"]
    assert story.finished is not None
    assert story.finished.error == "1 task failed: a (OddError: bad)"
    assert story.finished.failed_tasks == ("a",)


def test_a_runner_that_was_lost_while_it_stopped_the_rest_ends_it_all_the_same() -> None:
    """D33"""
    story = Story(planned("a", max_retries=0), planned("b"))
    story.begin()
    story.fail("a")
    assert story.begin()[-1] == "failed"
    assert story.states() == {"a": "failed", "b": "cancelled"}


def test_plan_changes_survive_those_of_added_tasks_too() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"))
    story.begin()
    story.complete("a", plan_change={"detour": [added("x")]})
    story.complete("x", plan_change={"replace": [added("y")]})
    assert story.begin() == ["y queued", "start y.2"]
    assert story.complete("y") == ["y completed", "start b.1"]
    assert story.run.plan.inputs_of("b") == {"a": "a", "x": "y", "y": "y"}
    assert story.run.plan.tasks_by_name["y"].added_by == "x"


def test_children_that_were_stopped_stay_so() -> None:
    """D39"""
    story = Story(planned("a"), planned("b", "a"), planned("c"))
    story.begin()
    story.complete("a", plan_change={"stop_children": True})
    story.begin()
    assert story.running == {"c": 2}
    assert story.states()["b"] == "cancelled"
    assert story.complete("c") == ["c completed", "completed"]


def test_a_task_that_only_had_to_give_its_output_again_does_not_change_the_plan_twice() -> None:
    """D38, D39"""
    story = Story(planned("a"), planned("b", "a"))
    story.begin()
    change = {"addition": [added("x")]}
    story.complete("a", output=threading.Lock(), plan_change=change)
    story.complete("x")
    story.begin()
    assert story.complete("a", output=1, plan_change=change) == ["a completed", "start b.2"]
    assert story.rows["a"].plan_change == change


def test_a_retried_workflow_runs_only_what_has_no_committed_result() -> None:
    """D34"""
    story = Story(
        planned("a"), planned("b", "a", max_retries=1, retry_delay=0), planned("c", "b"), max_workflow_retries=1
    )
    story.begin()
    story.complete("a")
    story.fail("b")
    assert story.fail("b") == ["b queued", "c queued", "again"]
    assert story.begin() == ["start b.3"]
    story.fail("b")
    assert story.fail("b") == ["b failed", "c cancelled", "failed"]
    assert story.began == ["a.1", "b.1", "b.2", "b.3", "b.4"]


def test_without_retry_failed_tasks_a_retried_workflow_runs_everything_again() -> None:
    """D34"""
    story = Story(planned("a"), planned("b", "a", max_retries=0), max_workflow_retries=1, retry_failed_tasks=False)
    story.begin()
    story.complete("a", plan_change={"addition": [added("x")]})
    story.complete("x")
    assert story.fail("b")[-1] == "again"
    assert story.begin() == ["start a.2"]
    story.complete("a", plan_change={"addition": [added("x")]})
    assert story.running == {"b": 2, "x": 2}
    story.complete("x")
    assert story.fail("b")[-1] == "failed"


@pytest.mark.parametrize("fail_fast", [True, False])
def test_the_workflows_retries_are_counted_through_lost_runners(fail_fast: bool) -> None:
    """D34"""
    story = Story(
        *chain("a", "b", max_retries=0), planned("c"), max_workflow_retries=2, fail_fast=fail_fast, max_parallel_tasks=3
    )
    story.begin()
    ends = []
    for _ in range(3):
        story.begin()
        while "a" not in story.running:
            story.wake()
        story.fail("a")
        if "c" in story.running:
            story.stopped("c") if fail_fast else story.complete("c")
        ends.append(story.told[-1])
        if ends[-1] == "again":
            story.begin()
    assert ends == ["again", "again", "failed"]


def test_a_workflow_that_timed_out_may_be_retried() -> None:
    """D34"""
    story = Story(planned("a"), timeout=2, max_workflow_retries=1)
    story.begin()
    story.wake()
    assert story.stopped("a") == ["a queued", "again"]
    assert story.begin() == ["start a.2"]
    story.wake()
    assert story.stopped("a") == ["a cancelled", "failed"]
