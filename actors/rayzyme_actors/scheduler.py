"""The scheduler: one named, detached actor that decides which job runs when, and is rebuilt from the store after any loss.

`rayzyme.jobs.SchedulerMachine` decides; here its commands are written down, each with its lease and its event, and then carried
out. Only the holder of the scheduler's role acts, one per database; any other only answers and waits for the role.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from rayzyme.errors import UnknownJob
from rayzyme.jobs.states import FINAL
from rayzyme.settings import Settings
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.scheduler_settings import runner_name, scheduler_name, store_of
from rayzyme_actors.scheduling_loop import SchedulingLoop

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 30.0
_ANSWER_S = 10.0


class Scheduler:
    """What other processes may ask of it. Answers come from Ray's event loop while the scheduling goes on in its own thread."""

    def __init__(self, settings: Settings, only: Sequence[str] = ()) -> None:
        """Begin at once: after a restart nobody calls."""
        set_up_actor(settings)
        context = ray.get_runtime_context()
        store = store_of(settings)
        info = {"address": context.gcs_address, "namespace": settings.ray.namespace, "host": os.uname().nodename}
        self._scheduling = SchedulingLoop(settings, store, info | {"pid": os.getpid()}, frozenset(only))
        self._store = store
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="rayzyme-scheduling", daemon=True).start()

    async def describe(self) -> dict[str, Any]:
        """Who this is and what it is doing; answered at any time."""
        return {"pid": os.getpid(), **self._scheduling.snapshot}

    async def poke(self) -> None:
        """There is something new in the store."""
        self._loop.call_soon_threadsafe(self._scheduling.wake)

    async def hand_over(self, key: str, tasks: Mapping[str, Any]) -> None:
        """Keep tasks that no spec can hold until their job starts. They are in memory only."""
        await self._in_scheduling(self._scheduling.keep_transient(key, tasks))

    async def bind(self, key: str, job_id: str) -> None:
        """What was handed over under `key` is this job's."""
        await self._in_scheduling(self._scheduling.bind_transient(key, job_id))

    async def wait_for(self, job_id: str) -> bool:
        """Whether the job is in a final state; waits for that, at most 30 s."""
        try:
            if self._store.job(job_id).state in FINAL:
                return True
        except UnknownJob:
            return True
        return await self._in_scheduling(self._scheduling.wait_for(job_id, _LONGEST_WAIT_S))

    async def explain(self, job_id: str) -> dict[str, Any]:
        """Why a job waits, as the last decision saw it."""
        return await self._in_scheduling(self._scheduling.explain(job_id))

    async def configure(self, settings: Settings) -> None:
        """Go on with the limits, quotas and strategy of other settings."""
        await self._in_scheduling(self._scheduling.configure(settings))

    async def drain(self) -> None:
        """Start nothing more."""
        await self._in_scheduling(self._scheduling.drain())

    async def _in_scheduling(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._scheduling.run())
        except Exception:
            # Ray starts the actor again, and that one begins with what the store says.
            logger.exception("the scheduler ends and is started again")
            os._exit(1)
        logger.info("the scheduler has stopped")


def start_scheduler(settings: Settings, *only: str) -> Any:
    """Find or start the scheduler of the connected cluster, or one that sees to some jobs alone."""
    return (
        ray.remote(Scheduler)
        .options(
            name=scheduler_name(settings, *only), namespace=settings.ray.namespace,
            lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=-1, max_task_retries=0, enable_task_events=False,
        )
        .remote(settings, only)
    )  # fmt: skip


def ask_scheduler(settings: Settings, method: str, *arguments: Any) -> Any:
    """The answer of the scheduler of the connected cluster; None where it has none, or that one does not answer."""
    try:
        handle = ray.get_actor(scheduler_name(settings), settings.ray.namespace)
        return ray.get(getattr(handle, method).remote(*arguments), timeout=_ANSWER_S)
    except (ValueError, RayError):
        return None


def stop_scheduler(settings: Settings, *only: str) -> None:
    """End the scheduler and its runner; what they did is in the store, and goes on with the next ones."""
    for name in (scheduler_name(settings, *only), runner_name(settings, *only)):
        with suppress(ValueError):
            ray.kill(ray.get_actor(name, settings.ray.namespace), no_restart=True)
