"""Which tasks of a run may start now, in plan order, and which wait: for other tasks, or for their time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from rayzyme.jobs.states import JobState
from rayzyme.workflows.plan import Plan
from rayzyme.workflows.run_events import TaskRun


class StartOrder:
    """Follows the tasks' states; whoever changes one says so here."""

    def __init__(self) -> None:
        """Know nothing; `rebuild` comes first."""
        self._plan: Plan
        self._tasks: Mapping[str, TaskRun] = {}
        self._unmet: dict[str, int] = {}
        self._ready: list[tuple[int, str]] = []
        self._delayed: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anything starts without another task having completed first."""
        return bool(self._ready or self._delayed)

    @property
    def next_time(self) -> float | None:
        """When the first of the delayed tasks may start."""
        return min(self._delayed.values(), default=None)

    @property
    def has_ready(self) -> bool:
        """Whether a task may start now."""
        return bool(self._ready)

    def rebuild(self, plan: Plan, tasks: Mapping[str, TaskRun]) -> None:
        """Look at everything anew: the plan has changed, or the run begins."""
        self._plan, self._tasks = plan, tasks
        self._unmet = {task.name: len(self._unmet_of(task.name)) for task in plan.tasks}
        self._ready, self._delayed = [], {}
        for name in plan.tasks_by_name:
            self._file(name)

    def note_completed(self, name: str) -> None:
        """One that others wait for has completed."""
        for dependent in self._plan.dependents[name]:
            self._unmet[dependent] -= 1
            self._file(dependent)

    def note_delayed(self, name: str) -> None:
        """One is tried again, at its `not_before`."""
        self._file(name)

    def note_cancelled(self) -> None:
        """Some will not start any more."""
        self._ready = [entry for entry in self._ready if self._tasks[entry[1]].state is JobState.QUEUED]
        heapq.heapify(self._ready)

    def note_time(self, now: float) -> None:
        """The time of delayed tasks may have come."""
        for name in [name for name, time in self._delayed.items() if time <= now]:
            del self._delayed[name]
            self._add(name)

    def take(self, at_most: int) -> Iterator[str]:
        """Tasks to start, the first in plan order first."""
        for _ in range(min(at_most, len(self._ready))):
            yield heapq.heappop(self._ready)[1]

    def clear(self) -> None:
        """Nothing starts any more."""
        self._ready, self._delayed = [], {}

    def check(self) -> None:
        """Recompute everything from the tasks' states.

        Raises:
            AssertionError: Something does not fit.
        """
        for name, count in self._unmet.items():
            assert count == len(self._unmet_of(name)), f"{name} waits for {self._unmet_of(name)}"
        ready = {name for _, name in self._ready}
        assert not ready & self._delayed.keys(), "ready and delayed at once"
        startable = {
            name for name, task in self._tasks.items() if task.state is JobState.QUEUED and not self._unmet[name]
        }
        assert ready | self._delayed.keys() == startable, "what can start is not what is filed"

    def _unmet_of(self, name: str) -> list[str]:
        depends_on = self._plan.tasks_by_name[name].depends_on
        return [one for one in depends_on if self._tasks[one].state is not JobState.COMPLETED]

    def _file(self, name: str) -> None:
        task = self._tasks[name]
        if task.state is not JobState.QUEUED or self._unmet[name]:
            return
        if task.not_before is not None:
            self._delayed[name] = task.not_before
        else:
            self._add(name)

    def _add(self, name: str) -> None:
        heapq.heappush(self._ready, (self._plan.positions[name], name))
