"""How far a long run is and when it will be done: a tree of tasks that many threads update and anyone may read.

Updates cost microseconds and wait for no disk, database or callback. What is to be kept is written by a daemon thread:
checkpoint files that a later process goes on from, and a row in the database that other processes read.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from rayzyme.checks import folder_path, positive_number, short_text, truth_value, whole_number
from rayzyme.errors import CheckpointError, ValidationError
from rayzyme.monitoring.announcements import Announcements, Callback
from rayzyme.monitoring.eta import StepTimes
from rayzyme.monitoring.performance_figures import checked_measures, gpu_utilization, resident_memory
from rayzyme.monitoring.progress_answers import read_history, told_history, told_messages, told_progress, told_task
from rayzyme.monitoring.progress_file import (
    add_checkpoint,
    checkpoints_in,
    read_checkpoint,
    remove_leftovers_of_dead_writers,
    write_checkpoint,
)
from rayzyme.monitoring.progress_run import ProgressRun
from rayzyme.monitoring.progress_sharing import Publication, SharedProgress
from rayzyme.monitoring.progress_state import ProgressState
from rayzyme.monitoring.progress_task import MOST_STEPS, Task

if TYPE_CHECKING:
    from types import TracebackType

    from rayzyme.database import Database

logger = logging.getLogger(__name__)

_LONGEST_TEXT = 1000
_LARGEST_WEIGHT = 1e12
_MEMORY_INTERVAL_S = 1.0


class ProgressTracker:
    """Tracks tasks, nested to any depth, and the whole that they make up. Safe to share between threads."""

    def __init__(
        self,
        total_steps: int = 100,
        checkpoint_dir: str | Path | None = None,
        auto_checkpoint: bool = True,
        checkpoint_interval: float = 300,
        clock: Callable[[], float] = time.monotonic,
        *,
        callback: Callback | None = None,
        history: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Nothing is written and no thread started before the first change.

        Args:
            total_steps: Steps of the whole, for trackers without tasks.
            checkpoint_dir: Folder of checkpoint files; None writes none.
            auto_checkpoint: Whether they are written by themselves.
            checkpoint_interval: Seconds from a change to the file that holds it.
            clock: Seconds from any origin, never falling.
            callback: Called as (percentage, message) after each update, outside all locks and in the order of the
                updates; one that falls 1,000 calls behind misses the oldest of them. Updates that it makes itself are
                not called back; after it failed three times it is dropped.
            history: What `history` gave at the end of an earlier run: estimates start from it.

        Raises:
            ValidationError: An argument cannot be used; the message names it.
        """
        total_steps = _checked_total(total_steps)
        self._folder = None if checkpoint_dir is None else folder_path("checkpoint_dir", checkpoint_dir)
        truth_value("auto_checkpoint", auto_checkpoint)
        checkpoint_interval = positive_number("checkpoint_interval", checkpoint_interval)
        for name, value in (("clock", clock), ("callback", callback)):
            if not callable(value) and not (name == "callback" and value is None):
                raise ValidationError(f"{name} must be a function, not {value!r}")
        self._run = ProgressRun(ProgressState(total_steps, read_history(history)), clock)
        weakref.finalize(self, self._run.drop).atexit = False  # by then it has been closed
        self._announcements = None if callback is None else Announcements(callback)
        self._memory_due, self._memory_is_due = 0.0, False
        if self._folder is not None:
            remove_leftovers_of_dead_writers(self._folder)
            if auto_checkpoint:
                self._run.write_checkpoints(self._folder, checkpoint_interval)

    def start(self) -> None:
        """Count time from now; without it, time counts from the first task, or from construction where there is none.

        Does nothing once something has happened.
        """
        with self._run.lock:
            self._run.begin()

    def start_task(
        self, task_id: str, task_name: str, total_steps: int, parent_task: str | None = None, weight: float = 1.0
    ) -> None:
        """Start a task.

        Args:
            task_id: Its id, new in this tracker.
            task_name: For people; runs of the same name share their history.
            total_steps: How many steps it has. With 0 it is complete when it is declared to be.
            parent_task: Id of the task that it is part of.
            weight: Its part of the whole beside the other tasks without a parent.

        Raises:
            KeyError: No such parent.
            ValidationError: The id is taken, or an argument cannot be used; it is a ValueError.
        """
        short_text("task_id", task_id, at_most=_LONGEST_TEXT)
        short_text("task_name", task_name, at_most=_LONGEST_TEXT)
        total_steps = _checked_total(total_steps)
        weight = positive_number("weight", weight)
        if weight > _LARGEST_WEIGHT:
            raise ValidationError(f"weight must be at most {_LARGEST_WEIGHT:g}, not {weight:g}")
        if parent_task is not None and weight != 1:
            raise ValidationError("weight counts only for tasks without a parent; the children of a task count alike")
        run = self._run
        with run.turn, run.lock:
            run.state.start_task(task_id, task_name, total_steps, parent_task, weight, run.begin())
            run.note_change()

    def update_task(self, task_id: str, steps: int = 1, message: str | None = None) -> None:
        """Add steps to a task; beyond its total they are dropped, with one warning, as are updates after its end.

        Args:
            task_id: The task.
            steps: Steps done since its last update; 0 only tells the message.
            message: What it is doing.

        Raises:
            KeyError: No such task.
            ValidationError: `steps` is no whole number of at least 0.
        """
        # Nearly all are a plain int and no message, and an update is to cost next to nothing.
        if type(steps) is not int or steps < 0:
            steps = whole_number("steps", steps, at_least=0)
        if message is not None:
            message = _checked_message(message)
        run = self._run
        with run.turn, run.lock:
            warning = self._advance(run.state.task(task_id), steps, message)
        if warning is not None or self._memory_is_due or self._announcements is not None:
            self._finish_update(warning)

    def update(
        self, steps: int = 1, message: str | None = None, performance_metrics: dict[str, float] | None = None
    ) -> None:
        """Add steps to the tracker's own, which make up the whole while there are no tasks.

        Args:
            steps: Steps done since the last update.
            message: What is being done.
            performance_metrics: Measured values by name, such as `memory_usage` in MB (2^20 bytes) and
                `gpu_utilization` in percent.

        Raises:
            ValidationError: An argument cannot be used.
        """
        steps, message = whole_number("steps", steps, at_least=0), _checked_message(message)
        measures = checked_measures(performance_metrics)
        run = self._run
        with run.turn, run.lock:
            run.has_begun = True  # whoever never says start() has worked since construction
            run.measures.add(measures)
            warning = self._advance(run.state.own, steps, message)
        self._finish_update(warning)

    def complete_task(self, task_id: str, message: str | None = None) -> None:
        """Declare a task complete, whatever its steps.

        Raises:
            KeyError: No such task.
        """
        self._end_task(task_id, "completed", _checked_message(message))

    def fail_task(self, task_id: str, error: str | BaseException) -> None:
        """Declare a task failed; its fraction stays as it is, and the error becomes its last message.

        Raises:
            KeyError: No such task.
        """
        told = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else _checked_message(error)
        self._end_task(task_id, "failed", f"failed: {told}")

    def get_progress(self) -> dict[str, Any]:
        """The whole, at one moment.

        Returns:
            `current_step` and `total_steps` of the tracker's own steps; `percent`, which never falls, and `raw_percent`;
            `elapsed_time` in seconds; `active_tasks`, a count; `task_progress`, from 0 to 1 by id; `estimated_remaining`
            in seconds with `eta_low` and `eta_high`, between which the true figure lies four times in five (None before
            data, while stalled, and where what is left belongs to failed tasks; alike after a single update, which shows
            no spread); `stalled`: no update for the time of ten steps, while something is active; `message`, the latest.
        """
        run = self._run
        with run.lock:
            now = run.elapsed()
            figures, has_begun = run.state.figures(now), run.has_begun
        return told_progress(figures, now if has_begun else 0.0)

    def get_task_progress(self, task_id: str) -> dict[str, Any]:
        """One task.

        Returns:
            `name`, `current_step`, `total_steps`, `percent`, `elapsed_time` in seconds, `parent_task`, `subtasks` (ids in
            the order of their starts), `messages` as `get_messages`, `status` (running, completed, failed), and when it
            has ended `completion_time`, in seconds since 1970.

        Raises:
            KeyError: No such task.
        """
        run = self._run
        with run.lock:
            run.state.settle()
            told = told_task(run.state.task(task_id), run.elapsed())
        return told | {"messages": told_messages(told["messages"])}

    def get_messages(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """The last 1,000 messages of a task, oldest first; without a task those of `update`.

        Returns:
            Dicts of `time`, in seconds since 1970, and `message`.

        Raises:
            KeyError: No such task.
        """
        with self._run.lock:
            state = self._run.state
            messages = list((state.own if task_id is None else state.task(task_id)).messages)
        return told_messages(messages)

    def get_performance_metrics(self) -> dict[str, dict[str, float | None]]:
        """What the run costs so far.

        Returns:
            `step_times` in seconds per step, `memory_usage` of this process in MB (2^20 bytes), `gpu_utilization` in
            percent, and whatever else was passed to `update`; each with `mean` and `max`, None without data. The
            utilization is what was passed, or else what NVML says now.
        """
        self._sample_memory()
        with self._run.lock:
            steps = StepTimes()
            for times in self._run.state.history_of_this_run().values():
                steps.merge(times)
            told = self._run.measures.told()
        if told["gpu_utilization"]["mean"] is None:
            utilization = gpu_utilization()
            told["gpu_utilization"] = {"mean": utilization, "max": utilization}
        has_steps = steps.updates > 0
        return {
            "step_times": {"mean": steps.mean if has_steps else None, "max": steps.longest if has_steps else None}
        } | told

    @property
    def history(self) -> dict[str, dict[str, float]]:
        """Seconds per step by task name, over this run and the ones before: `mean`, `deviation`, `count` of steps.

        The tracker's own steps are under "". Plain JSON, for `ProgressTracker(history=...)` of a later run.
        """
        with self._run.lock:
            return told_history(self._run.state.history())

    def save_checkpoint(self, path: str | Path | None = None) -> str:
        """Write everything to a file.

        Args:
            path: The file; None makes a new `checkpoint_<epoch ms>.json` in the tracker's folder, where the newest 5 are
                kept.

        Returns:
            The file's path.

        Raises:
            ValidationError: No path here and no folder at construction.
            InsufficientSpace: The disk is full; what was there before stands.
        """
        if path is None and self._folder is None:
            raise ValidationError("path must be given, since the tracker was made without checkpoint_dir")
        saved = self._run.save()
        if path is None:
            assert self._folder is not None
            return str(add_checkpoint(self._folder, saved))
        write_checkpoint(Path(path).expanduser().absolute(), saved)
        return str(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Become what was saved; `elapsed_time` goes on from there.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is torn, altered or of another version; nothing was changed.
        """
        path = Path(path).expanduser()
        self._run.restore(read_checkpoint(path), path)
        self._memory_due = 0.0

    def load_latest(self) -> str | None:
        """Become what the newest valid checkpoint in the tracker's folder holds; bad ones are passed over with a warning.

        Returns:
            The path of the checkpoint; None where there is none, and nothing was changed.

        Raises:
            ValidationError: The tracker was made without checkpoint_dir.
        """
        if self._folder is None:
            raise ValidationError("load_latest needs a tracker that was made with checkpoint_dir")
        for path in checkpoints_in(self._folder):
            try:
                self.load_checkpoint(path)
            except FileNotFoundError:
                continue  # another process has just removed it as an old one
            except CheckpointError as error:
                logger.warning("%s", error)
            else:
                return str(path)
        return None

    def publish(self, job_id: str, attempt: int = 1, database: Database | None = None) -> None:
        """Tell the database how far a job is: now, then within a second of changes, and at `close`.

        Once a later attempt of the job has told, this one's news are ignored, with one warning.

        Args:
            job_id: The job's public id.
            attempt: Which attempt of it this is, from 1.
            database: Where to tell; None opens the one of the settings, which `close` closes.

        Raises:
            ValidationError: An argument cannot be used, or the tracker publishes already.
            DatabaseError: The database cannot be used. Later failures are logged and tried again.
        """
        if self._run.publication is not None:
            raise ValidationError(f"job_id: the tracker publishes already, for job {self._run.publication.job_id}")
        self._run.publish(Publication(job_id, attempt, database))

    @staticmethod
    def attach(job_id: str, database: Database | None = None, clock: Callable[[], float] = time.time) -> SharedProgress:
        """Read in any process what the tracker of a job publishes.

        Args:
            job_id: The job's public id.
            database: Where to read; None opens the one of the settings, which `close` of the answer closes.
            clock: Seconds since 1970. By it the run is stalled when no news come.

        Raises:
            ValidationError: The id is no id.
            DatabaseError: The database cannot be opened.
        """
        return SharedProgress(job_id, database, clock)

    def close(self) -> None:
        """Write what is not yet written, end the threads and stop the time; what cannot be written is logged.

        Without it this is done when the interpreter ends, and soon after the tracker was dropped.
        """
        self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, task: Task, steps: int, message: str | None) -> str | None:
        run = self._run
        now = run.elapsed()
        warning = run.state.advance(task, steps, message, now, time.time)
        run.note_change()
        if self._announcements is not None:
            self._announcements.add(run.state.percent(), message)
        if now >= self._memory_due:
            self._memory_due, self._memory_is_due = now + _MEMORY_INTERVAL_S, True
        return warning

    def _end_task(self, task_id: str, how: Literal["completed", "failed"], message: str | None) -> None:
        run = self._run
        with run.turn, run.lock:
            warning = run.state.end(run.state.task(task_id), how, message, run.elapsed(), time.time())
            run.note_change()
            if self._announcements is not None:
                self._announcements.add(run.state.percent(), message)
        self._finish_update(warning)

    def _finish_update(self, warning: str | None) -> None:
        """What an update brings about outside of the lock."""
        if warning is not None:
            logger.warning("%s", warning)
        if self._memory_is_due:
            self._sample_memory()
        if self._announcements is not None:
            self._announcements.deliver()

    def _sample_memory(self) -> None:
        self._memory_is_due = False
        memory = resident_memory()
        if memory is not None:
            with self._run.lock:
                self._run.measures.add({"memory_usage": memory})


def _checked_total(total_steps: Any) -> int:
    steps: int = whole_number("total_steps", total_steps, at_least=0)
    if steps > MOST_STEPS:
        raise ValidationError(f"total_steps must be at most {MOST_STEPS}; count in larger steps")
    return steps


def _checked_message(message: Any) -> str | None:
    if message is None or isinstance(message, str):
        return message
    raise ValidationError(f"message must be a text, not {message!r}")
