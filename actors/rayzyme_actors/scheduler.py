"""The scheduler: one named, detached actor that decides which job runs when, and is rebuilt from the store after any loss.

`rayzyme.jobs.SchedulerMachine` decides; here its commands are written down, each with its lease and its event, and then carried
out. Only the holder of the scheduler's role acts, one per database; any other only answers and waits for the role.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from rayzyme.errors import DatabaseError
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.scheduler_settings import runner_name, scheduler_name, store_of
from rayzyme_actors.scheduling_loop import ACTOR, SchedulingLoop

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 30.0
_ANSWER_S = 10.0
_DATABASE_RETRY_S = 2.0
_ASKED_AGAIN_S = 0.2
# Each program that waits for a job has a question open.
_MOST_QUESTIONS = 10_000


class Scheduler:
    """What other processes may ask of it. Answers come from Ray's event loop while the scheduling goes on in its own thread."""

    def __init__(self, settings: Settings, only: Sequence[str] = ()) -> None:
        """Begin at once: after a restart nobody calls."""
        set_up_actor(settings)
        self._settings, self._only = settings, frozenset(only)
        self._scheduling: SchedulingLoop | None = None
        self._is_ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="rayzyme-scheduling", daemon=True).start()

    async def describe(self) -> dict[str, Any]:
        """Who this is and what it is doing; answered at any time."""
        told = {"leads": False, "stopped": False} if self._scheduling is None else self._scheduling.snapshot
        return {"pid": os.getpid(), **told}

    async def poke(self) -> None:
        """There is something new in the store."""
        if self._scheduling is not None:
            self._loop.call_soon_threadsafe(self._scheduling.wake)

    async def hand_over(self, key: str, tasks: Mapping[str, Any]) -> None:
        """Keep tasks that no spec can hold until their job is over. They are in memory only.

        Raises:
            TaskNotSendable: Another scheduler, in another Ray, runs the jobs.
        """
        await self._ask("keep_transient", key, tasks)

    async def bind(self, key: str, job_id: str) -> None:
        """What was handed over under `key` is this job's."""
        await self._ask("bind_transient", key, job_id)

    async def drop(self, key: str) -> None:
        """What was handed over under `key` is nobody's: its job was refused."""
        await self._ask("drop_transient", key)

    async def wait_for(self, job_id: str, timeout: float) -> bool:
        """Whether the job is in a final state; waits for that, at most so many seconds."""
        return bool(await self._ask("wait_for", job_id, min(timeout, _LONGEST_WAIT_S)))

    async def explain(self, job_id: str) -> dict[str, Any]:
        """Why a job waits, as the last decision saw it."""
        explained: dict[str, Any] = await self._ask("explain", job_id)
        return explained

    async def configure(self, settings: Settings) -> None:
        """Go on with the limits, quotas and strategy of other settings."""
        await self._ask("configure", settings)

    async def drain(self) -> None:
        """Start nothing more."""
        await self._ask("drain")

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """An answer of the scheduling, from its own event loop."""
        if self._scheduling is None:
            await asyncio.to_thread(self._is_ready.wait)
        work: Coroutine[Any, Any, Any] = getattr(self._scheduling, method)(*arguments)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        context = ray.get_runtime_context()
        info = {
            "address": context.gcs_address, "namespace": self._settings.ray.namespace, "host": os.uname().nodename,
            "pid": os.getpid(), ACTOR: context.get_actor_id(),
        }  # fmt: skip
        try:
            scheduling = SchedulingLoop(self._settings, self._opened_store(), info, self._only)
            self._loop.run_until_complete(scheduling.remember_settings())
            self._scheduling = scheduling
            self._is_ready.set()
            self._loop.run_until_complete(self._scheduling.run())
        except Exception:
            # Ray starts the actor again, and that one begins with what the store says.
            logger.exception("the scheduler ends and is started again")
            os._exit(1)
        logger.info("the scheduler has stopped")
        # Whoever wants a scheduler from now on starts another one.
        ray.kill(context.current_actor, no_restart=True)

    def _opened_store(self) -> JobStore:
        """An actor that cannot be made is not started again, so the database is waited for here."""
        while True:
            try:
                return store_of(self._settings)
            except DatabaseError as error:
                logger.warning("the scheduler waits for the database: %s", error)
                time.sleep(_DATABASE_RETRY_S)


def start_scheduler(settings: Settings, *only: str) -> Any:
    """Find or start the scheduler of the connected cluster, or one that sees to some jobs alone."""
    return (
        ray.remote(Scheduler)
        .options(
            name=scheduler_name(settings, *only), namespace=settings.ray.namespace,
            lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=-1, max_task_retries=0, max_concurrency=_MOST_QUESTIONS, enable_task_events=False,
        )
        .remote(settings, only)
    )  # fmt: skip


def ask_scheduler(
    settings: Settings,
    method: str,
    *arguments: Any,
    only: Sequence[str] = (),
    absent: Any = None,
    within_s: float = math.inf,
) -> Any:
    """The answer of the connected cluster's scheduler, which is waited for; `absent` where there is none, or none in time."""
    end = time.monotonic() + within_s
    while True:
        try:
            handle = ray.get_actor(scheduler_name(settings, *only), settings.ray.namespace)
        except ValueError:
            return absent
        try:
            return ray.get(getattr(handle, method).remote(*arguments), timeout=min(_ANSWER_S, within_s))
        except (ActorDiedError, ActorUnavailableError, GetTimeoutError):
            if time.monotonic() >= end:
                return absent
            time.sleep(_ASKED_AGAIN_S)


def stop_scheduler(settings: Settings, *only: str) -> None:
    """End the scheduler and its runner; what they did is in the store, and goes on with the next ones."""
    for name in (scheduler_name(settings, *only), runner_name(settings, *only)):
        with suppress(ValueError):
            ray.kill(ray.get_actor(name, settings.ray.namespace), no_restart=True)
