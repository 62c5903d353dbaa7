"""How far a running job is, for people and other processes: a tracker with one part per task.

Many jobs end before anybody could look; only one whose tasks run for a second gets a tracker and a row in the database.
"""

from __future__ import annotations

import asyncio

from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.monitoring import ProgressTracker

_PUBLISHED_AFTER_S = 1.0
_STEPS = 100


class JobProgress:
    """The progress of one attempt; all methods in one event loop."""

    def __init__(self, job_id: str, attempt: int, store: JobStore) -> None:
        self._job_id, self._attempt, self._store = job_id, attempt, store
        self._percent: dict[str, float] = {}
        self._messages: dict[str, str] = {}
        self._tracker: ProgressTracker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[str] = []

    def begin(self, tasks: list[str], done: set[str]) -> None:
        """These are the job's tasks; `done` were committed by an earlier attempt."""
        self._tasks = tasks
        self._percent = {task: float(_STEPS) for task in done}

    def began(self) -> None:
        """A task has a process; what waits for one has nothing to tell."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PUBLISHED_AFTER_S, self._publish)

    def told(self, task: str, percentage: float, message: str) -> None:
        """A task says how far it is; what it said before is never taken back."""
        before = self._percent.get(task, 0.0)
        now = min(float(_STEPS), max(before, percentage))
        self._percent[task], self._messages[task] = now, message
        if self._tracker is not None:
            if task not in self._tasks:  # one that another task's plan change added
                self._add(task)
            self._advance(task, before, now, message or None)

    def ended(self, task: str, state: JobState) -> None:
        """A task's attempt has ended."""
        if state is JobState.COMPLETED:
            self.told(task, _STEPS, self._messages.get(task, ""))

    def close(self) -> None:
        """Nothing more will be told."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tracker is not None:
            # Its last news wait for the database.
            asyncio.get_running_loop().run_in_executor(None, self._tracker.close)
            self._tracker = None

    def _publish(self) -> None:
        self._tracker = ProgressTracker()
        tasks, self._tasks = [*self._tasks, *(self._percent.keys() - set(self._tasks))], []
        # All of them before any of them is far: what was told as done of a part would never be taken back.
        for task in tasks:
            self._add(task)
        for task in tasks:
            self._advance(task, 0.0, self._percent.get(task, 0.0), self._messages.get(task))
        self._tracker.publish(self._job_id, self._attempt, self._store.database)

    def _add(self, task: str) -> None:
        assert self._tracker is not None
        self._tasks.append(task)
        self._tracker.start_task(task, task, _STEPS)

    def _advance(self, task: str, before: float, now: float, message: str | None) -> None:
        assert self._tracker is not None
        self._tracker.update_task(task, int(now) - int(before), message)
