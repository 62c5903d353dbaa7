"""Task types by name, for programs and documents that name a task in place of constructing it."""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rayzyme.workflows.task import FunctionTask, Task
from rayzyme.workflows.task_config import TaskConfig

logger = logging.getLogger(__name__)

Factory = Callable[..., Task]
Registered = TypeVar("Registered", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Entry:
    make: Factory
    what: Any
    config: TaskConfig | None


class TaskRegistry:
    """Names and what they make; threads may share one."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def register_task(
        self,
        name: str,
        task_type: type[Task] | None = None,
        factory: Factory | None = None,
        config: TaskConfig | None = None,
    ) -> None:
        """Give a type of task a name; what had it before gives way, which is logged.

        Args:
            name: The name.
            task_type: A class; called with `config=` and further arguments.
            factory: In place of a class, a function; called with the config and further arguments.
            config: For tasks that are made without one.

        Raises:
            ValueError: Neither a type nor a factory is given, or both.
        """
        if (task_type is None) == (factory is None):
            raise ValueError(f"task {name!r} needs either a task_type or a factory")
        if task_type is not None:
            if not (isinstance(task_type, type) and issubclass(task_type, Task)):
                raise ValueError(f"task {name!r} must have a class derived from Task, not {task_type!r}")
            kind = task_type
            self._register(name, _Entry(lambda config, **more: kind(config=config, **more), task_type, config))
        elif factory is not None:
            self._register(name, _Entry(factory, factory, config))

    def register_function_task(self, name: str, func: Callable[..., Any], config: TaskConfig | None = None) -> None:
        """Give a function a name; see `FunctionTask`."""
        self._register(name, _Entry(lambda config: FunctionTask(config.name, func, config), func, config))

    def create_task(self, name: str, config: TaskConfig | None = None, **more: Any) -> Task:
        """Make a task.

        Args:
            name: Of its type.
            config: None takes the one that was registered, or a plain one of that name.
            more: Further arguments of its constructor.

        Raises:
            KeyError: There is no such type; lists names that are near.
        """
        with self._lock:
            entry = self._entries.get(name)
            names = sorted(self._entries)
        if entry is None:
            near = ", ".join(difflib.get_close_matches(name, names, 3)) or "none; see list_tasks()"
            raise KeyError(f"no task is registered as {name!r}; near names: {near}")
        return entry.make(config or entry.config or TaskConfig(name), **more)

    def list_tasks(self) -> list[str]:
        """All names, sorted."""
        with self._lock:
            return sorted(self._entries)

    def unregister(self, name: str) -> bool:
        """Take a name away; whether there was one."""
        with self._lock:
            return self._entries.pop(name, None) is not None

    def clear(self) -> None:
        """Take all names away."""
        with self._lock:
            self._entries.clear()

    def _register(self, name: str, entry: _Entry) -> None:
        with self._lock:
            before = self._entries.get(name)
            self._entries[name] = entry
        if before is not None and before.what is not entry.what:
            logger.warning("task %r was %r and is %r from now on", name, before.what, entry.what)


_registry = TaskRegistry()


def get_registry() -> TaskRegistry:
    """The registry of this process."""
    return _registry


def task(name: str, config: TaskConfig | None = None) -> Callable[[Registered], Registered]:
    """Register what follows, a class derived from `Task` or a function, which stays as it is."""

    def register(decorated: Registered) -> Registered:
        if isinstance(decorated, type):
            get_registry().register_task(name, decorated, config=config)
        else:
            get_registry().register_function_task(name, decorated, config)
        return decorated

    return register
