"""What a tracker tracks, in its time and behind its lock, and how it gets to disk and to the database.

The threads that write hold on to this and not to the tracker. So a tracker may be dropped without a word, or the
interpreter end: what was pending is still written.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayzyme.errors import CheckpointError
from rayzyme.monitoring.delayed_writer import DelayedWriter
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.monitoring.performance_figures import PerformanceFigures
from rayzyme.monitoring.progress_answers import told_messages, told_progress, told_task
from rayzyme.monitoring.progress_file import add_checkpoint
from rayzyme.monitoring.progress_sharing import PUBLISH_INTERVAL_S, PUBLISHED_MESSAGES, Publication
from rayzyme.monitoring.progress_state import ProgressState
from rayzyme.monitoring.saved_values import read_number, read_truth

logger = logging.getLogger(__name__)


class ProgressRun:
    """State, time and writers of a tracker.

    Attributes:
        turn: Whoever updates waits for it before `lock`, so that a reader, who does not, has one writer before it and
            not all.
        lock: Held while anything below is read or changed.
        state: Tasks and figures.
        measures: What running costs.
        has_begun: Whether anything has happened yet.
        publication: Where the run is told of, if anywhere.
    """

    def __init__(self, state: ProgressState, clock: Callable[[], float]) -> None:
        """Time counts from now until something begins."""
        self.turn, self.lock = threading.Lock(), threading.Lock()
        self.state, self.measures = state, PerformanceFigures()
        self.has_begun = False
        self.publication: Publication | None = None
        self._clock, self._origin, self._before = clock, clock(), 0.0
        self._ended: float | None = None
        self._is_dropped = False
        self._checkpoints: DelayedWriter | None = None
        self._news: DelayedWriter | None = None
        _unfinished.add(self)

    def elapsed(self) -> float:
        """Seconds of the run."""
        if self._ended is not None:
            return self._ended
        return self._before + (self._clock() - self._origin)

    def begin(self) -> float:
        """Note that something happens; the time of it."""
        if not self.has_begun:
            self.has_begun, self._origin, self._before = True, self._clock(), 0.0
        return self.elapsed()

    def note_change(self) -> None:
        """Have it written by all who write."""
        # Nearly always there is a change already that waits to be written.
        if self._checkpoints is not None and not self._checkpoints.is_pending:
            self._checkpoints.changed()
        if self._news is not None and not self._news.is_pending:
            self._news.changed()

    def save(self) -> dict[str, Any]:
        """All of it, as JSON."""
        with self.lock:
            state, measures, now = self.state.save(), self.measures.save(), self.elapsed()
            return {"state": state, "begun": self.has_begun, "measures": measures, "now": now}

    def restore(self, saved: Mapping[str, Any], source: Path) -> None:
        """Become what was saved.

        Raises:
            CheckpointError: This was not; nothing was changed.
        """
        try:
            state, measures = ProgressState.restore(saved["state"]), PerformanceFigures(saved["measures"])
            now, has_begun = read_number(saved["now"]), read_truth(saved["begun"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source} is not a progress checkpoint: {error!r:.300}") from error
        with self.lock:
            self.state, self.measures, self.has_begun = state, measures, has_begun
            self._origin, self._before = self._clock(), now
            if self._ended is not None:
                self._ended = now
            if self._news is not None:
                self._news.changed()

    def write_checkpoints(self, folder: Path, interval_s: float) -> None:
        """Write a file into `folder` within `interval_s` of each change from now on."""
        self._checkpoints = DelayedWriter("progress-checkpoints", lambda: self._write_checkpoint(folder), interval_s)

    def publish(self, publication: Publication) -> None:
        """Tell the database now, and from now on within a second of each change.

        Raises:
            DatabaseError: The database cannot be used now; nothing is published.
        """
        self.publication = publication
        try:
            self._tell()
        except BaseException:
            self.publication = None
            publication.close()
            raise
        with self.lock:
            if self._ended is None:
                self._news = DelayedWriter("progress-publishing", self._tell, PUBLISH_INTERVAL_S)
                return
        publication.close()  # nothing more will be told

    def drop(self) -> None:
        """Have the threads write everything, without waiting: for a garbage collector, which may interrupt any code."""
        self._is_dropped = True
        if self._checkpoints is not None:
            self._checkpoints.stop()
        if self._news is not None:
            self._news.is_pending = True
            self._news.stop()

    def close(self) -> None:
        """Write everything, end the threads and stop the time; what cannot be written is logged."""
        with self.lock:
            self._ended = self.elapsed()
            checkpoints, news = self._checkpoints, self._news
            self._checkpoints = self._news = None
        if checkpoints is not None:
            checkpoints.close()
        if news is not None:
            news.is_pending = True  # the last news: that the time has stopped
            news.close()
        if self.publication is not None:
            self.publication.close()
        _unfinished.discard(self)

    def _write_checkpoint(self, folder: Path) -> None:
        add_checkpoint(folder, self.save())
        self._set_gauge()

    def _tell(self) -> None:
        publication = self.publication
        if publication is None:
            return
        with self.lock:
            now = self.elapsed()
            figures = self.state.figures(now)
            tasks = {task_id: told_task(task, now, PUBLISHED_MESSAGES) for task_id, task in self.state.tasks.items()}
            messages = list(self.state.own.messages)[-PUBLISHED_MESSAGES:]
            elapsed = now if self.has_begun else 0.0
            goes_on = self.has_begun and self._ended is None and not self._is_dropped
        for told in tasks.values():
            told["messages"] = told_messages(told["messages"])
        publication.tell(
            {
                "progress": told_progress(figures, elapsed),
                "tasks": tasks,
                "messages": told_messages(messages),
                "goes_on": goes_on,
                "silence": figures.silence,
                "stalled_after": figures.stalled_after(),
            }
        )
        self._set_gauge()

    def _set_gauge(self) -> None:
        with self.lock:
            percent = self.state.percent()
        get_metrics_collector().set_gauge("rayzyme_progress_percent", percent)


_unfinished: weakref.WeakSet[ProgressRun] = weakref.WeakSet()


def _finish_all() -> None:
    for run in list(_unfinished):
        try:
            run.close()
        except Exception:
            logger.exception("closing a progress tracker at the end of the program failed")


# What the parent of a fork tracks is the parent's to write.
os.register_at_fork(after_in_child=_unfinished.clear)
atexit.register(_finish_all)
