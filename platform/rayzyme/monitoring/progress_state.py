"""The deciding part of progress tracking: a tree of tasks, how far each is, and what is left. It knows no clock.

An update costs one step per level of the tree. Times are seconds since the tracker began; `wall` is the time of day in
seconds (POSIX).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from rayzyme.errors import ValidationError
from rayzyme.monitoring.eta import KnownPart, StepTimes
from rayzyme.monitoring.progress_figures import ENOUGH_UPDATES, Figures, Gain
from rayzyme.monitoring.progress_task import MOST_STEPS, WHOLE, Task, as_percent
from rayzyme.monitoring.saved_values import read_count, read_number, read_text

LAST_UPDATES: Final = 100
_MOST_UNSETTLED: Final = 256

_NO_TASK: Final = ""  # the tracker's own steps, in histories and saved states


class ProgressState:
    """Tasks and figures; methods that change something return a warning for the log, or None.

    Attributes:
        own: The tracker's own steps, which count while there is no task.
        tasks: By id, in the order of their starts.
        message: The latest message of anyone.
    """

    def __init__(self, total_steps: int, history: Mapping[str, StepTimes]) -> None:
        self.own = Task(_NO_TASK, "the tracker", total_steps, None, 0, 0.0)
        self.tasks: dict[str, Task] = {}
        self.message: str | None = None
        self._history = dict(history)
        self._percent = 0.0
        self._weights = 0
        self._weighted_done = 0
        self._overall = 0
        self._unsettled: list[tuple[Task, int, float]] = []
        self._gains: deque[Gain] = deque(maxlen=LAST_UPDATES)
        self._progressed = 0.0
        self._heard = 0.0

    def start_task(self, task_id: str, name: str, total: int, parent_id: str | None, weight: float, now: float) -> None:
        """Add a task.

        Raises:
            ValidationError: The id is taken.
            KeyError: No such parent.
        """
        if task_id in self.tasks:
            raise ValidationError(f"task_id {task_id!r} was started before; every task needs an id of its own")
        parent = None if parent_id is None else self.task(parent_id, "parent_task")
        self.settle()
        task = Task(task_id, name, total, parent, max(1, int(weight * (1 << 64))), now, updated=now)
        before = self._overall
        self._percent = self.percent()
        self._heard = now
        self.tasks[task_id] = task
        if parent is None:
            self._weights += task.weight
        else:
            parent.children.append(task_id)
            self._bubble(parent, now, 0.0)
        if len(self.tasks) == 1:
            # The tracker's own steps no longer count.
            self._gains.clear()
            self._progressed = now
        self._overall = self._measure()
        if before > self._overall > 0:
            # The whole has grown: the same work is a smaller share of it.
            shrunk = self._overall / before
            smaller = (Gain(gain.share * shrunk, gain.seconds, gain.steps) for gain in self._gains)
            self._gains = deque(smaller, LAST_UPDATES)

    def task(self, task_id: str, argument: str = "task_id") -> Task:
        """The task of an id.

        Raises:
            KeyError: There is none.
        """
        try:
            return self.tasks[task_id]
        except (KeyError, TypeError):
            raise KeyError(f"{argument} {task_id!r} is not the id of a started task") from None

    def advance(self, task: Task, steps: int, message: str | None, now: float, wall: Callable[[], float]) -> str | None:
        """Add steps, up to the task's total."""
        if task.closed is not None or (task.given == task.total and task.done == WHOLE):
            return task.warn_once(f"{task.id or task.name!r} is {task.status}; updates after that are ignored")
        warning = None
        self._heard = now
        left = task.total - task.given
        if steps > left:
            steps = left
            warning = task.warn_once(
                f"{task.id or task.name!r} has only {task.total} steps; what goes beyond is not counted"
            )
        if steps:
            task.given += steps
            self._unsettled.append((task, steps, now))
            if steps == left:
                self.settle(wall())
            elif len(self._unsettled) == _MOST_UNSETTLED:
                self.settle()
        if message is not None:
            self._say(task, message, wall())
        return warning

    def end(
        self, task: Task, how: Literal["completed", "failed"], message: str | None, now: float, wall: float
    ) -> str | None:
        """Declare a task completed, whatever its steps, or failed."""
        if task.closed is not None:
            return task.warn_once(f"task {task.id!r} is {task.closed} already and stays so")
        self.settle()
        task.closed = how
        self._heard = now
        if how == "completed":
            task.current = task.given = task.total
        if task.ended is None:
            task.ended, task.completion_time = now, wall
        self._note_gain(task, 1, now, wall)
        if message is not None:
            self._say(task, message, wall)
        return None

    def settle(self, wall: float | None = None) -> None:
        """Work out what the updates so far amount to; to be called before anything is read.

        They wait for this in order to cost next to nothing themselves.

        Args:
            wall: When the last of them was, where it may complete a task.
        """
        for task, steps, now in self._unsettled:
            task.current += steps
            task.times.add(steps, now - task.updated)
            task.updated = now
            self._note_gain(task, steps, now, wall)
        self._unsettled.clear()

    def percent(self) -> float:
        """Percent of the whole, 2 decimals; never falls, though the whole may grow."""
        self.settle()
        return max(self._percent, as_percent(self._overall))

    def figures(self, now: float) -> Figures:
        """What an answer is made of, as it stands."""
        self._percent = self.percent()
        return Figures(
            current_step=self.own.current,
            total_steps=self.own.total,
            percent=self._percent,
            raw_percent=as_percent(self._overall),
            overall=self._overall / WHOLE,
            active_tasks=sum(task.status == "running" for task in self.tasks.values()),
            task_progress={task_id: task.done / WHOLE for task_id, task in self.tasks.items()},
            message=self.message,
            gains=list(self._gains),
            silence=now - self._heard,
            known_parts=self._known_parts() if len(self._gains) < ENOUGH_UPDATES and self._history else [],
        )

    def history(self) -> dict[str, StepTimes]:
        """Times per step by task name, of earlier runs and this one together; "" are the tracker's own steps."""
        together = self.history_of_this_run()
        for name, times in self._history.items():
            together.setdefault(name, StepTimes()).merge(times)
        return together

    def history_of_this_run(self) -> dict[str, StepTimes]:
        """The same of this run alone."""
        self.settle()
        observed: dict[str, StepTimes] = {}
        for name, times in [(_NO_TASK, self.own.times), *((task.name, task.times) for task in self.tasks.values())]:
            if times.updates:
                observed.setdefault(name, StepTimes()).merge(times)
        return observed

    def _say(self, task: Task, message: str, wall: float) -> None:
        task.messages.append((wall, message))
        self.message = message

    def _note_gain(self, task: Task, steps: int, now: float, wall: float | None) -> None:
        self._bubble(task, now, wall)
        overall = self._measure()
        if overall > self._overall:
            self._gains.append(Gain((overall - self._overall) / WHOLE, now - self._progressed, steps))
            self._progressed = now
        self._overall = overall

    def _measure(self) -> int:
        return self._weighted_done // self._weights if self._weights else self.own.done

    def _bubble(self, task: Task | None, now: float, wall: float | None) -> None:
        """Take a task's change up to the top."""
        while task is not None:
            done = task.measure()
            gain = done - task.done
            if not gain:
                return
            task.done = done
            if task.closed is None:
                task.ended, task.completion_time = (now, wall) if done == WHOLE else (None, None)
            if task.parent is not None:
                task.parent.children_done += gain
            elif task is not self.own:
                self._weighted_done += gain * task.weight
            task = task.parent

    def _known_parts(self) -> list[KnownPart]:
        leaves = [task for task in self.tasks.values() if not task.children] or ([self.own] if not self.tasks else [])
        parts = []
        for task in leaves:
            times = self._history.get(task.name if task is not self.own else _NO_TASK)
            if times is not None and task.status == "running" and task.total:
                parts.append(KnownPart(self._share_left(task), task.total - task.current, times))
        return parts

    def _share_left(self, task: Task) -> float:
        """How much of the whole a leaf's remaining steps are."""
        share = 1.0 - task.done / WHOLE
        while task.parent is not None:
            task = task.parent
            share /= max(task.total, len(task.children))
        return share if task is self.own else share * task.weight / self._weights

    def save(self) -> dict[str, Any]:
        """The state as JSON."""
        self.settle()
        return {
            "own": self.own.save(),
            "tasks": [task.save() for task in self.tasks.values()],
            "message": self.message,
            "history": {name: times.save() for name, times in self._history.items()},
            "percent": self.percent(),
            "gains": list(self._gains),
            "progressed": self._progressed,
            "heard": self._heard,
        }

    @classmethod
    def restore(cls, saved: Mapping[str, Any]) -> ProgressState:
        """The state that `save` gave; anything else is an AttributeError, KeyError, TypeError or ValueError."""
        state = cls(0, {name: StepTimes.restore(times) for name, times in saved["history"].items()})
        state.own = Task.restore(saved["own"], None)
        for described in saved["tasks"]:
            parent = None if described["parent"] is None else state.tasks[described["parent"]]
            task = Task.restore(described, parent)
            if task.id in state.tasks or task.weight < 1:
                raise ValueError(f"task {task.id!r} was saved twice, or without a weight")
            state.tasks[task.id] = task
            if parent is None:
                state._weights += task.weight
            else:
                parent.children.append(task.id)
        # Children come after their parents, so that backwards every sum is complete when it is used.
        for task in [*reversed(state.tasks.values()), state.own]:
            task.done = task.measure()
            if task.parent is not None:
                task.parent.children_done += task.done
            elif task is not state.own:
                state._weighted_done += task.done * task.weight
        state.message = None if saved["message"] is None else read_text(saved["message"])
        state._percent = read_number(saved["percent"], 0.0, 100.0)
        state._progressed, state._heard = read_number(saved["progressed"]), read_number(saved["heard"])
        for share, seconds, steps in saved["gains"]:
            share = read_number(share, at_least=math.ulp(0.0))
            state._gains.append(Gain(share, read_number(seconds), read_count(steps, 1, MOST_STEPS)))
        state._overall = state._measure()
        return state
