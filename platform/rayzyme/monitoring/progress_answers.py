"""Progress as the dicts that callers, files and other processes see: plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayzyme.errors import ValidationError
from rayzyme.monitoring.eta import StepTimes, known_times
from rayzyme.monitoring.progress_figures import Figures
from rayzyme.monitoring.progress_task import LAST_MESSAGES, Task


def told_progress(figures: Figures, elapsed: float) -> dict[str, Any]:
    """What `ProgressTracker.get_progress` answers."""
    remaining = figures.remaining()
    return {
        "current_step": figures.current_step,
        "total_steps": figures.total_steps,
        "percent": figures.percent,
        "raw_percent": figures.raw_percent,
        "elapsed_time": elapsed,
        "active_tasks": figures.active_tasks,
        "task_progress": figures.task_progress,
        "estimated_remaining": None if remaining is None else remaining.expected,
        "eta_low": None if remaining is None else remaining.low,
        "eta_high": None if remaining is None else remaining.high,
        "stalled": figures.is_stalled(),
        "message": figures.message,
    }


def told_task(task: Task, now: float, messages: int = LAST_MESSAGES) -> dict[str, Any]:
    """What `ProgressTracker.get_task_progress` answers, its last `messages` as `told_messages` takes them."""
    told = {
        "name": task.name,
        "current_step": task.current,
        "total_steps": task.total,
        "percent": task.percent,
        "elapsed_time": (now if task.ended is None else task.ended) - task.started,
        "parent_task": None if task.parent is None else task.parent.id,
        "subtasks": list(task.children),
        "messages": list(task.messages)[-messages:],
        "status": task.status,
    }
    return told if task.completion_time is None else told | {"completion_time": task.completion_time}


def told_messages(messages: list[tuple[float, str]]) -> list[dict[str, Any]]:
    """What `ProgressTracker.get_messages` answers."""
    return [{"time": wall, "message": message} for wall, message in messages]


def told_history(times_by_name: Mapping[str, StepTimes]) -> dict[str, dict[str, float]]:
    """What `ProgressTracker.history` is."""
    return {
        name: {"mean": times.mean, "deviation": times.deviation, "count": times.work}
        for name, times in times_by_name.items()
    }


def read_history(history: Any) -> dict[str, StepTimes]:
    """The step times that `told_history` told of.

    Raises:
        ValidationError: It did not tell this.
    """
    try:
        return {
            str(name): known_times(told["mean"], told["deviation"], told["count"])
            for name, told in ({} if history is None else history).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValidationError(
            f"history must give mean, deviation and count by task name, as a tracker's `history` does: {error!r}"
        ) from error
