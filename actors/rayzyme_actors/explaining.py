"""Why a job waits, for programs that are not connected to the scheduler: asked of it where it can be reached.

Where no scheduler lives, the same machine is built from the store, and the answer says so.
"""

from __future__ import annotations

import time
from typing import Any

from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_events import CapacityChanged, Restored
from rayzyme.jobs.states import FINAL
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme_actors.scheduler_settings import scheduling_config

NO_SCHEDULER = "No scheduler is running: start one with `rayzyme start`."


def explain(store: JobStore, job_id: str, settings: Settings) -> dict[str, Any]:
    """What `Dispatcher.explain` gives, with `sentences` for people.

    Raises:
        UnknownJob: There is no such job.
    """
    over = explain_end(store, job_id)
    if over is not None:
        return over
    if store.role() is not None:
        from rayzyme_actors.connection import connect_to_scheduler

        connect_to_scheduler(settings, store)
        from rayzyme_actors.scheduler import ask_scheduler

        answer: dict[str, Any] | None = ask_scheduler(settings, "explain", job_id)
        if answer is not None:
            return answer
    told = explain_from_store(store, job_id, settings)
    return told | {"sentences": [*told["sentences"], NO_SCHEDULER]}


def explain_end(store: JobStore, job_id: str) -> dict[str, Any] | None:
    """How a job ended; None where it has not.

    Raises:
        UnknownJob: There is no such job.
    """
    job = store.job(job_id)
    if job.state not in FINAL:
        return None
    record = store.record(job_id)
    ended = f"{job.name} is {job.state}" + (f": {record.error_message}" if record.error_message else "")
    return {"job_id": job_id, "state": job.state.value, "sentences": [ended]}


def explain_from_store(store: JobStore, job_id: str, settings: Settings) -> dict[str, Any]:
    """What a scheduler that began now would say."""
    now = time.time()
    machine = SchedulerMachine(
        scheduling_config(settings), now=now, usage=store.usage(), durations=store.recent_durations(5000)
    )
    cluster = store.cluster("ray")
    if cluster is not None:
        machine.handle(CapacityChanged(cluster), now)
    # What would start at once is not started here: nobody listens to the commands.
    machine.handle(Restored(store.live_jobs()), now)
    return machine.explain(job_id, now).to_dict()
