"""Tasks that no spec can hold: they live in the scheduler's memory until their jobs are over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class TransientTasks:
    """Tasks by the key that a spec names them with."""

    def __init__(self) -> None:
        self._tasks: dict[str, Mapping[str, Any]] = {}
        self._key_of: dict[str, str] = {}
        self._users: Counter[str] = Counter()

    def keep(self, key: str, tasks: Mapping[str, Any]) -> None:
        """Keep them; several jobs may have tasks that are the same to the last byte."""
        self._tasks[key] = tasks
        self._users[key] += 1

    def bind(self, key: str, job_id: str) -> None:
        """They are this job's, and go with it."""
        self._key_of[job_id] = key

    def drop(self, key: str) -> None:
        """One job fewer has them."""
        self._users[key] -= 1
        if self._users[key] <= 0:
            del self._users[key]
            self._tasks.pop(key, None)

    def forget_job(self, job_id: str) -> None:
        """The job is over."""
        key = self._key_of.pop(job_id, None)
        if key is not None:
            self.drop(key)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The tasks, by name; None where they are gone."""
        return self._tasks.get(key)
