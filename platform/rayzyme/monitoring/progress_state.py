"""The deciding part of progress tracking: a tree of tasks, how far each is, and what is left. It knows no clock.

Fractions are whole numbers of 2^-60 inside, so that sums are exact in whatever order updates arrive, and an update costs
one step per level of the tree. Times are seconds since the tracker began; `wall` is the time of day in seconds (POSIX).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rayzyme.errors import ValidationError
from rayzyme.monitoring.eta import KnownPart, Remaining, Spread, StepTimes, remaining_time, remaining_time_from

TaskStatus = Literal["running", "completed", "failed"]

WHOLE: Final = 1 << 60
LAST_MESSAGES: Final = 1000
LAST_UPDATES: Final = 100
STALLED_AFTER: Final = 10
"""Silence, in mean times between updates, after which nobody can say when the rest will be done."""

_SHORTEST_STALL_S: Final = 0.1  # a burst of quick updates is no promise that the next follows as quickly
_ENOUGH_UPDATES: Final = 10  # until then earlier runs say more
_NO_TASK: Final = ""  # the tracker's own steps, in histories and saved states


@dataclass(slots=True)
class Task:
    """A task, or the tracker's own steps.

    Attributes:
        weight: Its part of the whole beside the other top-level tasks, in 2^-64.
        children_done: Sum of its children's `done`.
        done: Its fraction, in 2^-60.
        updated: When its own steps were last updated.
        ended: When it was completed or failed.
        completion_time: The same as time of day.
        closed: How it was declared to have ended.
        warned: What its caller was already warned about.
    """

    id: str
    name: str
    total: int
    parent: Task | None
    weight: int
    started: float
    current: int = 0
    children: list[str] = field(default_factory=list)
    children_done: int = 0
    done: int = 0
    updated: float = 0.0
    ended: float | None = None
    completion_time: float | None = None
    closed: Literal["completed", "failed"] | None = None
    messages: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=LAST_MESSAGES))
    times: StepTimes = field(default_factory=StepTimes)
    warned: set[str] = field(default_factory=set)

    @property
    def status(self) -> TaskStatus:
        """A task whose fraction is 1 is completed, declared or not."""
        return self.closed or ("completed" if self.done == WHOLE else "running")

    @property
    def percent(self) -> float:
        """The fraction in percent, 2 decimals."""
        return _percent(self.done)

    def measure(self) -> int:
        """The fraction that steps and children amount to."""
        if self.closed == "completed":
            return WHOLE
        if not self.children:
            return self.current * WHOLE // self.total if self.total else 0
        best = max(self.current * WHOLE, self.children_done)
        return min(WHOLE, best // max(self.total, len(self.children)))

    def warn_once(self, warning: str) -> str | None:
        """The warning, unless it was given before."""
        if warning in self.warned:
            return None
        self.warned.add(warning)
        return warning


@dataclass(frozen=True, slots=True)
class Figures:
    """All that an answer is made of, taken at one moment.

    Attributes:
        percent: 0 to 100, never lower than before.
        raw_percent: The same without that promise.
        overall: The same from 0 to 1, not rounded.
        window: Share of the whole and seconds of the last updates.
        spread: Deviation in s of the time for the whole, as neighbouring updates add up.
        silence: Seconds since the last update.
        known_parts: What earlier runs say about the running tasks.
    """

    current_step: int
    total_steps: int
    percent: float
    raw_percent: float
    overall: float
    active_tasks: int
    task_progress: dict[str, float]
    message: str | None
    window: list[tuple[float, float]]
    spread: float
    silence: float
    known_parts: list[KnownPart]

    def is_stalled(self) -> bool:
        """Whether updates stopped: nothing for ten times the mean time between the last ones."""
        if not self.window or self.overall == 1.0:
            return False
        between = sum(seconds for _share, seconds in self.window) / len(self.window)
        return self.silence > max(STALLED_AFTER * between, _SHORTEST_STALL_S)

    def remaining(self) -> Remaining | None:
        """Time that the rest takes; None before data and while stalled."""
        rest = 1.0 - self.overall
        if rest == 0.0:
            return Remaining(0.0, 0.0, 0.0)
        if self.is_stalled():
            return None
        if len(self.window) < _ENOUGH_UPDATES:
            known = remaining_time_from(self.known_parts, rest)
            if known is not None:
                return known
        if not self.window:
            return None
        times = StepTimes()
        for share, seconds in self.window:
            times.add(share, seconds)
        return remaining_time(rest, times, self.spread)


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
        self._window: deque[tuple[float, float]] = deque(maxlen=LAST_UPDATES)
        self._spread = Spread()
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
        task = Task(task_id, name, total, parent, max(1, int(weight * (1 << 64))), now, updated=now)
        before = self._overall
        self._percent = self.percent()
        self.tasks[task_id] = task
        if parent is None:
            self._weights += task.weight
        else:
            parent.children.append(task_id)
            self._bubble(parent, now, 0.0)
        if len(self.tasks) == 1:
            # The tracker's own steps no longer count.
            self._window.clear()
            self._spread = Spread()
            self._progressed = now
        self._overall = self._measure()
        if before > self._overall > 0:
            # The whole has grown: the same work is a smaller share of it.
            shrunk = self._overall / before
            self._window = deque(((share * shrunk, seconds) for share, seconds in self._window), LAST_UPDATES)
            self._spread.change_unit(shrunk)

    def task(self, task_id: str, argument: str = "task_id") -> Task:
        """The task of an id.

        Raises:
            KeyError: There is none.
        """
        try:
            return self.tasks[task_id]
        except (KeyError, TypeError):
            raise KeyError(f"{argument} {task_id!r} is not the id of a started task") from None

    def advance(self, task: Task, steps: int, message: str | None, now: float, wall: float) -> str | None:
        """Add steps, up to the task's total."""
        if task.closed is not None:
            return task.warn_once(f"task {task.id!r} is {task.closed}; updates after that are ignored")
        warning = None
        self._heard = now
        done = task.total - task.current
        if steps <= done:
            done = steps
        else:
            warning = task.warn_once(
                f"{task.id or task.name!r} has only {task.total} steps; what goes beyond is not counted"
            )
        if done:
            task.current += done
            task.times.add(done, now - task.updated)
            task.updated = now
            self._note_gain(task, now, wall)
        if message is not None:
            self._say(task, message, wall)
        return warning

    def end(
        self, task: Task, how: Literal["completed", "failed"], message: str | None, now: float, wall: float
    ) -> str | None:
        """Declare a task completed, whatever its steps, or failed."""
        if task.closed is not None:
            return task.warn_once(f"task {task.id!r} is {task.closed} already and stays so")
        task.closed = how
        self._heard = now
        if how == "completed":
            task.current = task.total
        if task.ended is None:
            task.ended, task.completion_time = now, wall
        self._note_gain(task, now, wall)
        if message is not None:
            self._say(task, message, wall)
        return None

    def percent(self) -> float:
        """Percent of the whole, 2 decimals; never falls, though the whole may grow."""
        return max(self._percent, _percent(self._overall))

    def figures(self, now: float) -> Figures:
        """What an answer is made of, as it stands."""
        self._percent = self.percent()
        return Figures(
            current_step=self.own.current,
            total_steps=self.own.total,
            percent=self._percent,
            raw_percent=_percent(self._overall),
            overall=self._overall / WHOLE,
            active_tasks=sum(task.status == "running" for task in self.tasks.values()),
            task_progress={task_id: task.done / WHOLE for task_id, task in self.tasks.items()},
            message=self.message,
            window=list(self._window),
            spread=self._spread.deviation,
            silence=now - self._heard,
            known_parts=self._known_parts() if len(self._window) < _ENOUGH_UPDATES and self._history else [],
        )

    def history(self) -> dict[str, StepTimes]:
        """Times per step by task name, of earlier runs and this one together; "" are the tracker's own steps."""
        together = self.history_of_this_run()
        for name, times in self._history.items():
            together.setdefault(name, StepTimes()).merge(times)
        return together

    def history_of_this_run(self) -> dict[str, StepTimes]:
        """The same of this run alone."""
        observed: dict[str, StepTimes] = {}
        for name, times in [(_NO_TASK, self.own.times), *((task.name, task.times) for task in self.tasks.values())]:
            if times.updates:
                observed.setdefault(name, StepTimes()).merge(times)
        return observed

    def _say(self, task: Task, message: str, wall: float) -> None:
        task.messages.append((wall, message))
        self.message = message

    def _note_gain(self, task: Task, now: float, wall: float) -> None:
        self._bubble(task, now, wall)
        overall = self._measure()
        if overall > self._overall:
            share, seconds = (overall - self._overall) / WHOLE, now - self._progressed
            self._window.append((share, seconds))
            self._spread.add(share, seconds)
            self._progressed = now
        self._overall = overall

    def _measure(self) -> int:
        return self._weighted_done // self._weights if self._weights else self.own.done

    def _bubble(self, task: Task | None, now: float, wall: float) -> None:
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

    def save(self, now: float) -> dict[str, Any]:
        """The state as JSON."""
        return {
            "own": _saved(self.own),
            "tasks": [_saved(task) for task in self.tasks.values()],
            "message": self.message,
            "history": {name: times.save() for name, times in self._history.items()},
            "percent": self.percent(),
            "window": list(self._window),
            "spread": self._spread.save(),
            "progressed": self._progressed,
            "heard": self._heard,
            "now": now,
        }

    @classmethod
    def restore(cls, saved: Mapping[str, Any]) -> ProgressState:
        """The state that `save` gave; parts that are not there are KeyErrors, TypeErrors or ValueErrors."""
        state = cls(0, {name: StepTimes.restore(times) for name, times in saved["history"].items()})
        state.own = _restored(saved["own"], None)
        for described in saved["tasks"]:
            parent = None if described["parent"] is None else state.tasks[described["parent"]]
            task = _restored(described, parent)
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
        state.message = saved["message"]
        state._percent, state._progressed, state._heard = saved["percent"], saved["progressed"], saved["heard"]
        state._window.extend((share, seconds) for share, seconds in saved["window"])
        state._spread = Spread.restore(saved["spread"])
        state._overall = state._measure()
        return state


def _percent(done: int) -> float:
    return round(100 * done / WHOLE, 2)


_PLAIN: Final = ("id", "name", "total", "weight", "started", "current", "updated", "ended", "completion_time", "closed")


def _saved(task: Task) -> dict[str, Any]:
    plain = {name: getattr(task, name) for name in _PLAIN}
    parent = None if task.parent is None else task.parent.id
    messages, warned = list(task.messages), sorted(task.warned)
    return plain | {"parent": parent, "messages": messages, "warned": warned, "times": task.times.save()}


def _restored(saved: Mapping[str, Any], parent: Task | None) -> Task:
    task = Task(parent=parent, **{name: saved[name] for name in _PLAIN})
    task.messages.extend((wall, message) for wall, message in saved["messages"])
    task.times, task.warned = StepTimes.restore(saved["times"]), set(saved["warned"])
    return task
