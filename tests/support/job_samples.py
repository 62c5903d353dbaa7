"""Jobs for tests of the store: requests, and the changes that take a job through its life."""

from __future__ import annotations

from typing import Any

from rayzyme.jobs.changes import Change, TaskChange
from rayzyme.jobs.job import JobRequest
from rayzyme.jobs.states import JobState

SLOT = "slot:workflow"
ROOM = {SLOT: 100.0, "gpu": 4.0}
QUEUED, RUNNING = frozenset({JobState.QUEUED}), frozenset({JobState.RUNNING})


def request(name: str = "job", owner: str = "ada", **more: Any) -> JobRequest:
    """A request that needs one slot."""
    return JobRequest(name, owner, **{"spec": {"tasks": []}, "needs": {SLOT: 1.0}, **more})


def start(job_id: str, attempt: int = 1, **more: Any) -> Change:
    """An attempt begins."""
    given: dict[str, Any] = {
        "acquire": {SLOT: 1.0},
        "lease_owner": "runner:1",
        "actor": "scheduler",
        "reason": "started",
        **more,
    }
    return Change(
        job_id=job_id, attempt=attempt - 1, states=QUEUED, to=JobState.RUNNING, new_attempt=attempt, **given
    )  # fmt: skip


def change(job_id: str, to: JobState | None, attempt: int = 1, **more: Any) -> Change:
    """A running job goes on to a state, or stays."""
    given: dict[str, Any] = {"actor": "runner:1", "reason": f"is {to}" if to else "tasks settled", **more}
    return Change(job_id=job_id, attempt=attempt, states=RUNNING, to=to, **given)


def finish(job_id: str, attempt: int = 1, **more: Any) -> Change:
    """A running job completes and gives back what it holds."""
    return change(job_id, JobState.COMPLETED, attempt, release=True, **more)


def settled(task: str = "load", attempt: int = 1, state: JobState = JobState.COMPLETED, **values: Any) -> TaskChange:
    """A task's attempt has ended."""
    return TaskChange(
        task, attempt, state, values, {"leased": 10.0, "started": 11.0, "computed": 12.0}, "runner:1", "node-1"
    )
