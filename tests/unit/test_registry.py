"""Task types by name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.workflow_tasks import Join, double

from rayzyme.workflows import FunctionTask, TaskConfig, TaskRegistry, get_registry, task


@pytest.fixture
def registry() -> Iterator[TaskRegistry]:
    yield get_registry()
    get_registry().clear()


def test_types_factories_and_functions_are_made_by_name(registry: TaskRegistry) -> None:
    """D28"""
    registry.register_task("type", Join, config=TaskConfig("default", max_retries=1))
    registry.register_task("factory", factory=lambda config, **more: Join(config, ["x"], **more))
    registry.register_function_task("function", double)
    assert registry.list_tasks() == ["factory", "function", "type"]
    made = registry.create_task("factory", TaskConfig("mine"), separator="-")
    assert isinstance(made, Join)
    assert (made.name, made.separator) == ("mine", "-")
    function = registry.create_task("function")
    assert isinstance(function, FunctionTask)
    assert (function.name, function.func) == ("function", double)


def test_neither_type_nor_factory_is_a_value_error(registry: TaskRegistry) -> None:
    """D28"""
    with pytest.raises(ValueError, match="either a task_type or a factory"):
        registry.register_task("nothing")
    with pytest.raises(ValueError, match="derived from Task"):
        registry.register_task("int", int)  # type: ignore[arg-type]


def test_an_unknown_name_is_a_key_error_that_lists_near_ones(registry: TaskRegistry) -> None:
    """D28"""
    registry.register_function_task("run_screening", double)
    with pytest.raises(KeyError, match="run_screening"):
        registry.create_task("run_screning")


def test_decorated_classes_and_functions_stay_what_they_are(registry: TaskRegistry) -> None:
    """D28"""

    @task("decorated", TaskConfig("decorated", max_retries=0))
    def function() -> int:
        return 1

    assert function() == 1
    assert registry.create_task("decorated").config.max_retries == 0
    assert task("join")(Join) is Join
    assert registry.list_tasks() == ["decorated", "join"]
    assert registry.unregister("join")
    assert not registry.unregister("join")
    assert registry.list_tasks() == ["decorated"]


def test_a_name_that_is_given_to_something_else_is_logged(
    registry: TaskRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """D28"""
    registry.register_function_task("name", double)
    registry.register_function_task("name", double)
    assert not caplog.records
    registry.register_task("name", Join)
    assert "is <class" in caplog.text


def test_threads_may_register_and_make_at_once(registry: TaskRegistry) -> None:
    """D28"""

    def work(number: int) -> str:
        registry.register_function_task(f"task-{number}", double)
        registry.list_tasks()
        return registry.create_task(f"task-{number}").name

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(200))) == [f"task-{number}" for number in range(200)]
    assert len(registry.list_tasks()) == 200
