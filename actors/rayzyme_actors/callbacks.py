"""The callbacks of workflows, called in the program that submitted them, in the order of the events in the store.

What happens is read from the store, so it reaches the program through every loss but its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayzyme.errors import DatabaseError, NotFound, UnknownJob
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.store import JobStore
from rayzyme.monitoring import ProgressTracker
from rayzyme.workflows import Workflow
from rayzyme_actors.job_results import workflow_result

logger = logging.getLogger(__name__)

_POLL_S = 0.3


@dataclass(slots=True)
class _Watched:
    workflow: Workflow
    last_event: int = 0
    told: dict[str, float] = field(default_factory=dict)


class Callbacks:
    """One daemon thread that looks for news of the jobs that have callbacks; without such jobs there is none."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._is_idle = threading.Condition(self._lock)

    def watch(self, job_id: str, workflow: Workflow) -> None:
        """Call the workflow's callbacks, where it has any, for what happens to the job."""
        if not workflow.has_callbacks():
            return
        with self._lock:
            self._watched.setdefault(job_id, _Watched(workflow))
        self.resume()

    def resume(self) -> None:
        """Go on calling after `close`, where there is anybody to call."""
        with self._lock:
            if self._watched and self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(target=self._run, name="rayzyme-callbacks", daemon=True)
                self._thread.start()

    def wait_for(self, job_id: str, timeout: float) -> None:
        """Wait until everything that is known of a job's end was told."""
        if threading.current_thread() is self._thread:
            return  # a callback that asks for its own job
        with self._is_idle:
            self._is_idle.wait_for(lambda: job_id not in self._watched or self._thread is None, timeout)

    def close(self, tell_what_is_known: bool = False) -> None:
        """Call nobody any more, but first, if that is wanted, for everything that has happened already."""
        self._closing.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._thread = None
        if tell_what_is_known:
            self._look_at_all()
        with self._is_idle:
            self._is_idle.notify_all()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self._look_at_all()

    def _look_at_all(self) -> None:
        for job_id, watched in list(self._watched.items()):
            try:
                is_over = self._look(job_id, watched)
            except DatabaseError as error:
                logger.warning("news of job %s cannot be read now: %s", job_id, error)
                continue
            except UnknownJob:
                is_over = True  # it was removed
            if is_over:
                with self._is_idle:
                    del self._watched[job_id]
                    self._is_idle.notify_all()

    def _look(self, job_id: str, watched: _Watched) -> bool:
        """Tell what is new; whether that was the job's end."""
        config = watched.workflow.config
        self._tell_progress(job_id, watched)
        for event in self._store.events(job_id, after=watched.last_event):
            watched.last_event = event.id
            for task in event.data.get("tasks", ()):
                callback = {
                    JobState.COMPLETED: config.on_task_complete, JobState.FAILED: config.on_task_failed,
                }.get(task["state"])  # fmt: skip
                if task["state"] == JobState.COMPLETED:
                    self._tell_end(task["name"], watched)
                if callback is not None:
                    _call(callback, task["name"], workflow_result(self._store, job_id).get_task_result(task["name"]))
            if event.to_state in FINAL:
                if config.on_workflow_complete is not None:
                    _call(config.on_workflow_complete, workflow_result(self._store, job_id))
                return True
        return False

    @staticmethod
    def _tell_end(task: str, watched: _Watched) -> None:
        """A task that completed is at 100 %, also where its job was too short to tell of its progress."""
        callback = watched.workflow.progress_callbacks().get(task)
        if callback is not None and watched.told.get(task, -1.0) < 100.0:
            watched.told[task] = 100.0
            _call(callback, 100.0, "completed")

    def _tell_progress(self, job_id: str, watched: _Watched) -> None:
        wanted = watched.workflow.progress_callbacks()
        if not wanted:
            return
        with ProgressTracker.attach(job_id, self._store.database) as progress:
            for task, callback in wanted.items():
                try:
                    told = progress.get_task_progress(task)
                except (NotFound, KeyError):
                    continue
                if told["percent"] > watched.told.get(task, -1.0):
                    watched.told[task] = told["percent"]
                    messages = told["messages"]
                    _call(callback, told["percent"], messages[-1]["message"] if messages else "")


def _call(callback: Callable[..., Any], *arguments: Any) -> None:
    try:
        callback(*arguments)
    except Exception:
        logger.exception("a callback of a workflow failed; the job goes on")
