"""What a task can be told about how to run, and what is refused at construction."""

from __future__ import annotations

from typing import Any

import pytest

from rayzyme.errors import TaskTimeout, ValidationError
from rayzyme.workflows import FunctionTask, TaskConfig, TaskPriority


def test_the_defaults_are_the_documented_ones() -> None:
    """D21"""
    config = TaskConfig("name")
    assert (config.description, config.priority, config.timeout) == ("", TaskPriority.NORMAL, None)
    assert (config.max_retries, config.retry_delay, config.retry_backoff) == (3, 5, 2.0)
    assert (config.retry_jitter, config.retry_max_delay, config.retry_on_errors) == (0.2, 300, [Exception])
    assert (config.gpu_required, config.min_gpus, config.max_gpus, config.memory_mb) == (False, 0, 1, None)
    assert (config.depends_on, config.cache_enabled, config.cache_key_fn, config.task_params) == ([], False, None, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("description", 3),
        ("priority", 7),
        ("priority", "high"),
        ("timeout", 0),
        ("timeout", "10"),
        ("timeout", True),
        ("max_retries", -1),
        ("max_retries", 1.5),
        ("retry_delay", -1),
        ("retry_backoff", 0.5),
        ("retry_jitter", 1.5),
        ("retry_max_delay", float("inf")),
        ("retry_on_errors", ValueError),
        ("retry_on_errors", [3]),
        ("gpu_required", 1),
        ("min_gpus", -1),
        ("memory_mb", 0),
        ("memory_mb", "1GB"),
        ("depends_on", "other"),
        ("depends_on", [3]),
        ("cache_enabled", "yes"),
        ("cache_key_fn", 3),
        ("task_params", [1]),
        ("task_params", {1: 2}),
        ("num_cpus", 0),
        ("gpu_memory_mb", 0),
    ],
)
def test_a_wrong_type_or_value_is_refused_by_name(field: str, value: Any) -> None:
    """D21"""
    with pytest.raises(ValidationError, match=field.replace("_", ".")):
        TaskConfig(**{"name": "t", field: value})


def test_more_gpus_at_least_than_at_most_are_refused() -> None:
    """D21"""
    with pytest.raises(ValidationError, match=r"min_gpus of task 't' is 2 and max_gpus 1"):
        TaskConfig("t", min_gpus=2)
    with pytest.raises(ValidationError, match="give it at least one"):
        TaskConfig("t", gpu_required=True, max_gpus=0)


def test_what_was_given_is_copied() -> None:
    """D21"""
    params: dict[str, Any] = {"sizes": [1]}
    first, second = TaskConfig("a", task_params=params), TaskConfig("b", task_params=params)
    params["sizes"].append(2)
    params["more"] = 1
    first.task_params["sizes"].append(3)  # type: ignore[index]
    assert first.task_params == {"sizes": [1, 3]}
    assert second.task_params == {"sizes": [1]}
    assert TaskConfig("c").task_params == {}


def test_errors_worth_a_retry_are_known_by_class_and_base_class() -> None:
    """D17"""

    class Local(KeyError):
        pass

    config = TaskConfig("t", retry_on_errors=[LookupError, "builtins:OSError"])
    assert config.retries_on(KeyError)
    assert config.retries_on(Local)
    assert config.retries_on(FileNotFoundError)
    assert config.retries_on(TaskTimeout), "a TaskTimeout is a TimeoutError, which is an OSError"
    assert not config.retries_on(ValueError)


def test_a_config_comes_back_from_its_document_without_any_import() -> None:
    """D29"""
    config = TaskConfig(
        "t",
        priority=TaskPriority.HIGH,
        timeout=2,
        retry_on_errors=[ValueError],
        task_params={"size": (1, 2)},
        num_cpus=2,
    )
    document = config.to_document()
    assert document == {
        "name": "t", "priority": 2, "timeout": 2, "retry_on_errors": ["builtins:ValueError"], "num_cpus": 2,
        "task_params": {"size": {"$": "tuple", "value": [1, 2]}},
    }  # fmt: skip
    again = TaskConfig.from_document(document)
    assert again.task_params == config.task_params
    assert again.retries_on(ValueError)
    assert not again.retries_on(TypeError)
    assert again.to_document() == document
    with pytest.raises(ValidationError, match="nonsense"):
        TaskConfig.from_document({"name": "t", "nonsense": 1})


def test_the_name_of_a_function_task_beats_that_of_its_config() -> None:
    """D22"""
    task = FunctionTask("mine", lambda: 1, TaskConfig("shared", max_retries=1))
    assert (task.name, task.config.max_retries) == ("mine", 1)
    with pytest.raises(ValidationError, match="plain function"):
        FunctionTask("t", 3)  # type: ignore[arg-type]
