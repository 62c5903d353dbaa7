"""A scheduler for as long as a command runs: what `rayzyme start` and a `rayzyme screen` without a scheduler stand on."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray

from rayzyme.errors import NotFound
from rayzyme.settings import Settings
from rayzyme.workflows import Workflow, WorkflowResult
from rayzyme_actors.connection import connect
from rayzyme_actors.dispatcher import Dispatcher
from rayzyme_actors.scheduler import ask_scheduler, start_scheduler, stop_scheduler

_LOOK_S = 0.5


class SchedulerInForeground:
    """The scheduler of the connected Ray, or of one that is started here and ends with this program.

    Attributes:
        address: Of that Ray.
    """

    def __init__(self, settings: Settings, *only: str) -> None:
        """Connect to Ray and start the scheduler, for all jobs or for some alone."""
        self._settings, self._only = settings, only
        self.address: str = connect(settings)["address"]
        self._scheduler: Any = start_scheduler(settings, *only)
        ask_scheduler(settings, "configure", settings, only=only)

    def drain(self) -> None:
        """Start nothing more."""
        ray.get(self._scheduler.drain.remote())

    def wait_until_stopped(self) -> None:
        """Until it was told to stop, and nothing runs any more. Ray starts it again when it is killed."""
        while True:
            if ask_scheduler(self._settings, "describe", only=self._only, absent={"stopped": True})["stopped"]:
                return
            time.sleep(_LOOK_S)

    def __enter__(self) -> SchedulerInForeground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_scheduler(self._settings, *self._only)


def run_here(
    settings: Settings, workflow: Workflow, name: str, progress: Callable[[int, int], None]
) -> tuple[str, WorkflowResult]:
    """Submit a workflow and carry it out in the foreground, with a scheduler for it alone.

    Should this program be killed, the job is taken up by the next scheduler of the database.

    Args:
        settings: In force.
        workflow: What to run.
        name: Of the job.
        progress: Called with (percent, 100).

    Returns:
        The job's id, and its result. Errors as `Dispatcher.submit_workflow`.
    """
    connect(settings)
    dispatcher = Dispatcher(auto_start=False)
    job_id = dispatcher.submit_workflow(workflow, name=name)
    try:
        with SchedulerInForeground(settings, job_id):
            try:
                return job_id, _followed(dispatcher, job_id, progress)
            except KeyboardInterrupt:
                dispatcher.cancel_job(job_id)
                _followed(dispatcher, job_id, progress)
                raise
    except KeyboardInterrupt:
        # It may have come before there was anybody to stop the job.
        dispatcher.cancel_job(job_id)
        raise


def _followed(dispatcher: Dispatcher, job_id: str, progress: Callable[[int, int], None]) -> WorkflowResult:
    while True:
        try:
            return dispatcher.wait_for_job(job_id, timeout=_LOOK_S)
        except TimeoutError:
            try:
                progress(int(dispatcher.get_job_progress(job_id)["percent"]), 100)
            except NotFound:
                continue
