"""What the tests of the dispatcher share: a dispatcher with a scheduler of its own, workflows of sample tasks, and waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

IMPORTABLE = Path(__file__).resolve().parent.parent / "support" / "importable"
sys.path.append(str(IMPORTABLE))

import sample_tasks  # noqa: E402 - found by the line above

from rayzyme.settings import use_settings  # noqa: E402
from rayzyme.workflows import FunctionTask, TaskConfig, Workflow, WorkflowBuilder  # noqa: E402

__all__ = ["IMPORTABLE", "dispatcher_of_its_own", "function_task", "lines", "sample_tasks", "until", "workflow_of"]


@contextmanager
def dispatcher_of_its_own(**sections: Any) -> Iterator[Any]:
    """A dispatcher whose scheduler nobody else has, with short leases; both end with the block."""
    from rayzyme_actors import DispatcherAPI
    from rayzyme_actors.scheduler import stop_scheduler

    config: dict[str, Any] = {
        "ray": {"namespace": f"test-{uuid4().hex[:8]}"},
        "leases": {"ttl": 6.0, "renew": 1.0},
        "cancel": {"grace": 1.0},
        **sections,
    }
    dispatcher = DispatcherAPI(config=config)
    try:
        yield dispatcher
    finally:
        dispatcher.stop(wait=False)
        stop_scheduler(dispatcher.settings)
        use_settings(None)


def function_task(
    name: str, function: Callable[..., Any], depends_on: list[str] | None = None, **config: Any
) -> FunctionTask:
    """A task of a sample function; `params` are its parameters, retries come at once."""
    parameters = config.pop("params", {})
    defaults: dict[str, Any] = {"retry_delay": 0.01, "retry_jitter": 0.0}
    return FunctionTask(
        name, function, TaskConfig(name=name, depends_on=depends_on or [], task_params=parameters, **defaults | config)
    )


def workflow_of(*tasks: FunctionTask, name: str = "sample", **config: Any) -> Workflow:
    """A workflow of these tasks; `config` are setters of the builder, `max_parallel=2` for `set_max_parallel(2)`."""
    builder = WorkflowBuilder(name)
    for task in tasks:
        builder.add_task(task)
    for setter, value in config.items():
        method = getattr(builder, setter if setter.startswith("on_") else f"set_{setter}")
        method(value)
    return builder.build()


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` gives once that is true; fails when it does not become true in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def lines(file: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return file.read_text().splitlines() if file.exists() else []
