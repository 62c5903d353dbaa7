"""Why a job waits, for programs that are not connected to the scheduler: asked of it where it can be reached.

Where it cannot, the same machine is built from the store, and the answer says so.
"""

from __future__ import annotations

import math
import time
from typing import Any

from rayzyme.errors import UnknownJob
from rayzyme.jobs.role import is_provably_gone
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_events import CapacityChanged, Restored
from rayzyme.jobs.states import FINAL
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme_actors.scheduler_settings import scheduling_config, with_told_settings

NO_SCHEDULER = "No scheduler is running: start one with `rayzyme start`."
_OUT_OF_REACH = (
    "This is what the database tells. The scheduler itself, process {pid} on {host}, cannot be asked from here: run this on a "
    "machine of its Ray, with RAY_ADDRESS={address}."
)


def explain(store: JobStore, job_id: str, settings: Settings, within_s: float = math.inf) -> dict[str, Any]:
    """What `Dispatcher.explain` gives, with `sentences` for people.

    Args:
        store: Where the job is.
        job_id: Which one.
        settings: In force here.
        within_s: Seconds that the scheduler is given for its answer.

    Raises:
        UnknownJob: There is no such job.
    """
    over = explain_end(store, job_id)
    if over is not None:
        return over
    holder = store.role()
    try:
        answer = None if holder is None else _ask(store, job_id, settings, within_s)
    except UnknownJob:
        # It ended between the two questions.
        answer = explain_end(store, job_id)
    if answer is not None:
        return answer
    told = explain_from_store(store, job_id, settings)
    is_gone = holder is None or is_provably_gone(holder.identity)
    known = {} if holder is None else {name: holder.info.get(name, "?") for name in ("pid", "host", "address")}
    return told | {"sentences": [*told["sentences"], NO_SCHEDULER if is_gone else _OUT_OF_REACH.format(**known)]}


def _ask(store: JobStore, job_id: str, settings: Settings, within_s: float) -> dict[str, Any] | None:
    """What the scheduler answers; None where this program cannot reach it. No Ray is started for that."""
    from rayzyme_actors.connection import connect, settings_that_find_ray

    reachable = settings_that_find_ray(settings, store)
    if reachable is None:
        return None
    connect(reachable)
    from rayzyme_actors.scheduler import ask_scheduler

    answer: dict[str, Any] | None = ask_scheduler(reachable, "explain", job_id, within_s=within_s)
    return answer


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
    """What a scheduler that began now would say; by the settings of the one that lives, where there is one."""
    now = time.time()
    holder = store.role()
    if holder is not None:
        settings = with_told_settings(settings, holder.info)
    machine = SchedulerMachine(
        scheduling_config(settings),
        now=now,
        usage=store.usage(),
        durations=store.recent_durations(5000),
        starts_jobs=False,
    )
    cluster = store.cluster("ray")
    if cluster is not None:
        machine.handle(CapacityChanged(cluster), now)
    machine.handle(Restored(store.live_jobs()), now)
    return machine.explain(job_id, now).to_dict()
