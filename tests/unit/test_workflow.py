"""Workflows and their builder: order, and what is no workflow."""

from __future__ import annotations

from typing import Any

import pytest

from rayzyme.errors import ValidationError
from rayzyme.workflows import FunctionTask, TaskConfig, TaskPriority, Workflow, WorkflowBuilder, WorkflowConfig


def named(name: str, *depends_on: str, priority: TaskPriority = TaskPriority.NORMAL) -> FunctionTask:
    return FunctionTask(name, lambda: None, TaskConfig(name, depends_on=depends_on, priority=priority))


def test_the_plan_goes_by_level_then_priority_then_insertion() -> None:
    """D30, D32"""
    workflow = Workflow(WorkflowConfig("w"))
    workflow.add_tasks([named("d", "b", "c"), named("b", "a"), named("late"), named("a")])
    workflow.add_task(named("c", priority=TaskPriority.CRITICAL), depends_on=["a"])
    workflow.add_task(named("urgent", priority=TaskPriority.HIGH))
    assert workflow.get_execution_plan() == [["urgent", "late", "a"], ["c", "b"], ["d"]]
    assert workflow.get_task_count() == 6
    assert workflow.get_task("c") in workflow.tasks
    assert workflow.get_task("nobody") is None


def test_given_dependencies_beat_those_of_the_config() -> None:
    """D30"""
    workflow = Workflow()
    workflow.add_tasks([named("a"), named("b")])
    workflow.add_task(named("c", "a"), depends_on=["b"])
    workflow.add_task(named("d", "a"), depends_on=[])
    assert workflow.dependencies == {"a": (), "b": (), "c": ("b",), "d": ()}


def test_every_builder_method_gives_the_builder_back() -> None:
    """D31"""
    told: list[Any] = []
    builder = WorkflowBuilder("w", "what for")
    workflow = (
        builder.add_task(named("second"), depends_on=["first"])
        .add_task(named("first"))
        .set_max_parallel(2)
        .set_fail_fast(False)
        .set_continue_on_error(True)
        .set_timeout(3)
        .on_task_complete(lambda *_: told.append(1))
        .on_task_failed(lambda *_: told.append(2))
        .on_workflow_complete(lambda _: told.append(3))
        .build()
    )
    config = workflow.config
    assert (config.name, config.description, config.max_parallel_tasks, config.timeout) == ("w", "what for", 2, 3)
    assert (config.fail_fast, config.continue_on_error) == (False, True)
    assert config.on_task_complete is not None
    assert workflow.has_callbacks()
    assert not WorkflowBuilder("x").add_task(named("a")).build().has_callbacks()


def test_what_is_no_workflow_is_refused_by_build() -> None:
    """D31"""
    with pytest.raises(ValueError, match=r"'w' has no task"):
        WorkflowBuilder("w").build()
    with pytest.raises(ValueError, match="two tasks named 'a'"):
        WorkflowBuilder("w").add_task(named("a")).add_task(named("a")).build()
    with pytest.raises(ValueError, match=r"'b' depends on 'prepar', .*did you mean 'prepare'"):
        WorkflowBuilder("w").add_task(named("b", "prepar")).add_task(named("prepare")).build()


def test_a_circle_is_named() -> None:
    """D31"""
    builder = WorkflowBuilder("w").add_task(named("start")).add_task(named("a", "c", "start")).add_task(named("b", "a"))
    with pytest.raises(ValueError, match=r"circle: (a -> c -> b -> a|b -> a -> c -> b|c -> b -> a -> c)$"):
        builder.add_task(named("c", "b")).add_task(named("behind", "c")).build()
    with pytest.raises(ValueError, match="circle: x -> x"):
        WorkflowBuilder("w").add_task(named("x", "x")).build()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("max_parallel_tasks", 0),
        ("max_parallel_tasks", True),
        ("fail_fast", 1),
        ("max_workflow_retries", -1),
        ("timeout", -1),
        ("on_task_complete", 3),
    ],
)
def test_settings_that_cannot_hold_are_refused_by_name(field: str, value: Any) -> None:
    """D30"""
    with pytest.raises(ValidationError, match=field.split("_")[0]):
        WorkflowConfig(**{field: value})


def test_only_tasks_and_lists_of_names_can_be_added() -> None:
    """D30"""
    with pytest.raises(ValidationError, match="wrap a function"):
        Workflow().add_task(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="list of names"):
        Workflow().add_task(named("a"), depends_on="b")
