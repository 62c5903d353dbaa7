"""What a task is: a class with `execute`, or a function.

A task is stored as its type's import path and the arguments that its constructor was called with, never as a pickle. So a
constructor does no more than keep its arguments.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

from rayzyme.errors import ValidationError
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.task_config import TaskConfig


class Task(ABC):
    """A piece of work. Subclasses define `execute`; their constructors pass the config on.

    Attributes:
        config: How it runs.
        uses_actors: It computes on the long-lived actors, which hold the GPUs, so its own process asks for none.
        cpu_capable: It can do without a GPU where the cluster has none and the settings allow that.
        local_arguments: Constructor arguments that stay in the program that submits, such as callbacks.
        code_version: Part of the cache's key; change it when the code gives other results that its own module does not show.
    """

    uses_actors: ClassVar[bool] = False
    cpu_capable: ClassVar[bool] = False
    local_arguments: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[str] = ""

    _called_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments that the constructor is called with."""
        task = super().__new__(cls)
        task._called_with = (args, kwargs)
        return task

    def __init__(self, config: TaskConfig) -> None:
        """Take the config.

        Raises:
            ValidationError: It is none.
        """
        if not isinstance(config, TaskConfig):
            raise ValidationError(f"the config of a {type(self).__name__} must be a TaskConfig, not {config!r}")
        self.config = config

    @property
    def name(self) -> str:
        """Its name in the workflow."""
        return self.config.name

    @abstractmethod
    def execute(self, context: TaskContext) -> Any:
        """Do the work.

        Returns:
            The output, a `TaskResult`, or a `PlanChange`.
        """

    def validate_inputs(self, context: TaskContext) -> bool:
        """Whether the work can begin; False ends the task as failed, without a retry."""
        return True

    def cleanup(self, context: TaskContext) -> None:  # noqa: B027 - most have nothing to clean up
        """Called once after every attempt, however it ended; what it raises is only logged."""

    def estimate_duration(self) -> float | None:
        """Seconds that it will take, as far as one can say."""
        return None

    def estimate_memory(self) -> int | None:
        """MB (2^20 bytes) that it will take; reserved where the config has no `memory_mb`."""
        return None

    def recorded_arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as it was called."""
        args, kwargs = self._called_with
        return dict(constructor_signature(type(self)).bind(*args, **kwargs).arguments)


class FunctionTask(Task):
    """A function as a task; it is called with the context, or with nothing where it takes nothing."""

    def __init__(self, name: str, func: Callable[..., Any], config: TaskConfig | None = None) -> None:
        """Wrap a function.

        Args:
            name: The task's name.
            func: What to call.
            config: How it runs; its name gives way to `name`.

        Raises:
            ValidationError: `func` cannot be called, or is a coroutine function.
        """
        if not callable(func) or inspect.iscoroutinefunction(func):
            raise ValidationError(f"task {name!r} must have a plain function, not {func!r}")
        if config is None:
            config = TaskConfig(name)
        super().__init__(config if config.name == name else replace(config, name=name))
        self.func = func

    def execute(self, context: TaskContext) -> Any:
        """Call the function."""
        return self.func(context) if takes_context(self.func) else self.func()


# Reading a signature takes longer than many tasks do.
@functools.lru_cache(maxsize=1024)
def constructor_signature(kind: type[Task]) -> inspect.Signature:
    """What the constructor of a class takes, without the object itself."""
    signature = inspect.signature(kind.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@functools.lru_cache(maxsize=1024)
def takes_context(function: Callable[..., Any]) -> bool:
    """Whether a function has a place for the context."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # built in, without a signature
        return True
    return any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL) for one in parameters)
