"""The runner: carries out the attempts of jobs that the scheduler gives it.

Each attempt is a `RunningJob`. What they want written goes to the store in groups, what they want done goes to one pool of
processes. A runner that is killed loses nothing: its processes end with it, its leases lapse, and the scheduler, which notices
at once, starts its jobs again, which keep what was committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

from rayzyme.errors import DatabaseError
from rayzyme.settings import Settings
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.committing import Committer
from rayzyme_actors.running_job import Ended, RunningJob, RunOrder
from rayzyme_actors.scheduler_settings import runner_name, store_of
from rayzyme_actors.task_pool import TaskPool

logger = logging.getLogger(__name__)

_NEWS_WAIT_S = 10.0


class WorkflowRunner:
    """An async actor; everything in it happens in Ray's event loop but for what waits for the database."""

    def __init__(self, settings: Settings, only: Sequence[str] = ()) -> None:
        """Open the store; nothing runs yet."""
        set_up_actor(settings)
        self._settings = settings
        # Of this incarnation: leases of one that was killed are not this one's.
        only = tuple(only)
        self.runner_id = f"{runner_prefix(settings, *only)}{os.getpid()}:{secrets.token_hex(4)}"
        self._store = store_of(settings)
        self._committer = Committer(self._store.apply)
        self._jobs: dict[str, RunningJob] = {}
        self._ended: list[Ended] = []
        self._has_news = asyncio.Event()
        self._pool: TaskPool | None = None
        self._kept: set[asyncio.Task[None]] = set()

    async def begin(self) -> str:
        """Get ready, with a warm process; the id under which this incarnation holds leases."""
        if self._pool is None:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            self._pool = TaskPool(self._settings, ray.get_runtime_context().current_actor, max(1, cpus))
            self._pool.warm()
            self._keep(self._look_after())
        return self.runner_id

    async def run(self, orders: Sequence[RunOrder]) -> None:
        """Carry out attempts; returns at once."""
        assert self._pool is not None, "begin() comes first"
        for order in orders:
            before = self._jobs.get(order.job_id)
            if before is not None:
                before.give_up("a later attempt of its job begins here")
            job = RunningJob(order, self._settings, self._committer, self._pool, self._store, self.runner_id)
            self._jobs[order.job_id] = job
            self._keep(self._carry_out(job))

    async def stop(self, job_id: str, reason: str) -> None:
        """Cancel a job; it is over when the news say so."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.cancel(reason)

    async def news(self) -> list[Ended]:
        """Attempts that have ended since the last call; waits for some, at most 10 s."""
        if not self._ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), _NEWS_WAIT_S)
        self._has_news.clear()
        ended, self._ended = self._ended, []
        return ended

    async def configure(self, settings: Settings) -> None:
        """Carry out jobs from now on by other settings."""
        self._settings = settings

    async def running(self) -> dict[str, int]:
        """Attempt numbers of the jobs that run here, by job id."""
        return {job_id: job.order.attempt for job_id, job in self._jobs.items()}

    async def progress(
        self, job_id: str, job_attempt: int, task: str, attempt: int, percentage: float, message: str
    ) -> None:
        """A task says how far it is."""
        job = self._jobs.get(job_id)
        if job is not None and job.order.attempt == job_attempt:
            job.progress.told(task, percentage, message)

    async def note_death(self, marker: str, error_class: str, message: str) -> None:
        """A process says why it is about to end itself."""
        assert self._pool is not None
        self._pool.note_death(marker, error_class, message)

    async def describe(self) -> dict[str, Any]:
        """Where this is and what it does."""
        pool = self._pool.statistics() if self._pool is not None else {}
        return {"pid": os.getpid(), "runner_id": self.runner_id, "jobs": len(self._jobs), "processes": pool}

    async def _carry_out(self, job: RunningJob) -> None:
        ended = Ended(job.order.job_id, job.order.attempt, None, 0.0)
        try:
            ended = await job.carry_out()
        except Exception:
            # The store still says that it runs; the scheduler finds that it does not.
            logger.exception("the end of job %s could not be written", job.order.job_id)
        finally:
            if self._jobs.get(job.order.job_id) is job:
                del self._jobs[job.order.job_id]
        self._ended.append(ended)
        self._has_news.set()

    async def _look_after(self) -> None:
        """Renew the leases of what runs, and let idle processes go."""
        next_renewal = 0.0
        while True:
            await asyncio.sleep(1.0)
            assert self._pool is not None
            self._pool.retire_idle()
            if time.monotonic() < next_renewal or not self._jobs:
                continue
            next_renewal = time.monotonic() + self._settings.leases.renew
            try:
                await asyncio.to_thread(self._store.renew, self.runner_id)
                await self._give_up_lost()
            except DatabaseError as error:
                logger.warning("the leases of %d running jobs could not be renewed: %s", len(self._jobs), error)
            except Exception:
                # Whoever stops renewing here loses all jobs.
                logger.exception("looking after the leases failed")

    async def _give_up_lost(self) -> None:
        """Whoever lost its lease stops: the job may be another runner's by now."""
        running = {job_id: job.order.attempt for job_id, job in self._jobs.items()}
        for job_id in await asyncio.to_thread(self._store.no_longer_running, running):
            job = self._jobs.get(job_id)
            if job is not None and job.order.attempt == running[job_id]:
                job.give_up("its lease was lost, or somebody else ended it")

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        task.add_done_callback(_tell_failure)


def start_runner(settings: Settings, *only: str) -> Any:
    """Find or start the runner of the connected cluster, or the one for some jobs; it lives on when its scheduler dies."""
    return (
        ray.remote(WorkflowRunner)
        .options(
            name=runner_name(settings, *only), namespace=settings.ray.namespace,
            lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=-1, max_task_retries=0, enable_task_events=False,
        )
        .remote(settings, only)
    )  # fmt: skip


def runner_prefix(settings: Settings, *only: str) -> str:
    """How the ids of all incarnations of a runner begin, by its name and its cluster."""
    return f"{runner_name(settings, *only)}@{ray.get_runtime_context().gcs_address}#"


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("in a runner", exc_info=task.exception())
