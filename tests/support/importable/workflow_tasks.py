"""Tasks that every process can import, for tests of what is stored of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayzyme.workflows import Task, TaskConfig, TaskContext, TaskResult

CALLS: list[str] = []
"""What was executed in this process."""


def double(context: TaskContext) -> int:
    """Twice the parameter `number`."""
    CALLS.append(context.task_name)
    return 2 * int(context.config.get("number", 1))


def answer() -> int:
    """Takes no context."""
    return 42


def another_key(context: TaskContext) -> str:
    """A cache key that only the name decides."""
    return context.task_name


def not_a_task(*_: Any) -> None:
    """A function of a module."""


class PlainClass:
    """A class that is no task."""


class Join(Task):
    """Joins texts; `cleanup` notes that it ran."""

    local_arguments = ("progress_callback",)
    cpu_capable = True

    def __init__(
        self,
        config: TaskConfig,
        texts: list[str],
        /,
        folder: Path | None = None,
        *more: str,
        separator: str = " ",
        progress_callback: Any = None,
        **named: str,
    ) -> None:
        super().__init__(config)
        self.texts = [*texts, *more, *named.values()]
        self.folder, self.separator = folder, separator
        self.progress_callback = progress_callback

    def execute(self, context: TaskContext) -> TaskResult:
        """Join them."""
        CALLS.append(context.task_name)
        context.progress_callback(100, "joined")
        return TaskResult(output=self.separator.join(self.texts), metrics={"texts": len(self.texts)})

    def cleanup(self, context: TaskContext) -> None:
        """Note it."""
        CALLS.append(f"cleanup of {context.task_name}")

    def estimate_duration(self) -> float:
        """A second per text."""
        return float(len(self.texts))
