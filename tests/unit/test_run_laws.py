"""What holds for every workflow, whatever happens to it in whatever order."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.workflow_runs import Story, planned

from rayzyme.workflows import TaskPriority

ENDS = ("completed", "failed", "cancelled")


@st.composite
def stories(draw: st.DrawFn) -> Story:
    names = "abcdefg"[: draw(st.integers(1, 7))]
    tasks = []
    for number, name in enumerate(names):
        depends_on = draw(st.sets(st.sampled_from(names[:number]), max_size=3)) if number else set()
        tasks.append(
            planned(
                name,
                *sorted(depends_on),
                max_retries=draw(st.integers(0, 2)),
                priority=draw(st.sampled_from(TaskPriority)),
                timeout=draw(st.sampled_from([None, 7])),
            )
        )
    return Story(
        *draw(st.permutations(tasks)),
        max_workers=draw(st.integers(1, 4)),
        max_parallel_tasks=draw(st.integers(1, 4)),
        fail_fast=draw(st.booleans()),
        continue_on_error=draw(st.booleans()),
        max_workflow_retries=draw(st.integers(0, 1)),
        timeout=draw(st.sampled_from([None, None, 40])),
    )


def step(story: Story, data: st.DataObject) -> None:
    """Let something happen that can; a task that is being stopped does so sooner or later."""
    stopping = [name for name in story.running if story.run.tasks[name].stopping is not None]
    if stopping and data.draw(st.integers(0, 5)):
        story.stopped(data.draw(st.sampled_from(stopping)))
        return
    options: list[Any] = [story.begin]
    if story.run.next_wake() is not None:
        options += [story.wake] * 2
    for name in [name for name in story.running if name not in stopping]:
        options += [partial(story.complete, name)] * 4
        options += [partial(story.fail, name), partial(story.lose, name)]
    if data.draw(st.integers(0, 30)) == 30:
        options = [story.cancel]
    data.draw(st.sampled_from(options))()


def settle(story: Story) -> None:
    """Let everything go well from here on."""
    for _ in range(100):
        if story.finished is not None:
            return
        name = next(iter(story.running), None)
        if name is None:
            story.wake()
        elif story.run.tasks[name].stopping is not None:
            story.stopped(name)
        else:
            story.complete(name)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=stories(), data=st.data())
def test_every_run_comes_to_an_end_that_fits_its_tasks(story: Story, data: st.DataObject) -> None:
    """D32, D33, D34, D38"""
    committed: set[str] = set()
    story.begin()
    for number in range(80):
        if story.finished is not None:
            if not story.finished.retry_workflow:
                break
            assert story.plan.config.max_workflow_retries == 1
            story.begin()
        elif number < 40:
            step(story, data)
        else:
            settle(story)
        for name in story.told:
            if name.startswith("start"):
                assert name.split()[1].split(".")[0] not in committed, "what is committed does not run again"
        committed |= {name for name, state in story.states().items() if state == "completed"}
    finished = story.finished
    assert finished is not None, "it goes on for ever"
    assert not story.running
    states = story.states()
    assert set(states.values()) <= set(ENDS), "each task that has a row is at its end"
    assert finished.failed_tasks == tuple(
        task.name for task in story.run.plan.tasks if states.get(task.name) == "failed"
    )
    if finished.state.value == "completed":
        assert set(states) == set(story.plan.tasks_by_name)
        assert not finished.failed_tasks or story.plan.config.continue_on_error
        assert finished.failed_tasks or set(states.values()) == {"completed"}
    assert len(set(story.began)) == len(story.began), "no attempt begins twice"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=stories(), data=st.data())
def test_the_same_events_give_the_same_commands(story: Story, data: st.DataObject) -> None:
    """D32"""
    tasks = list(story.plan.tasks)
    config = {name: getattr(story.plan.config, name) for name in ("max_parallel_tasks", "fail_fast", "timeout")}
    outcomes = data.draw(st.lists(st.sampled_from(["complete", "fail", "lose"]), min_size=30, max_size=30))

    def told() -> list[list[str]]:
        again = Story(*tasks, **config)
        seen = [again.begin()]
        for outcome in outcomes:
            running = [name for name in again.running if again.run.tasks[name].stopping is None]
            if again.finished is not None or not running:
                break
            seen.append(getattr(again, outcome)(running[0]))
        return seen

    assert told() == told()
