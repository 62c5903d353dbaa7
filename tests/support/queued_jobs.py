"""Jobs for tests of scheduling: short to write, numbered as they come."""

from __future__ import annotations

from typing import Any

from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.scheduling_config import SLOT
from rayzyme.jobs.scheduling_events import Command, Start
from rayzyme.jobs.states import JobState

NOON = 1_800_000_000.0


def queued(number: int, **fields: Any) -> Job:
    """Job `job_NUMBER` that needs one slot, submitted `number` seconds after noon if nothing else is said."""
    return Job(
        **{
            "job_id": f"job_{number}",
            "sequence": number,
            "name": f"job {number}",
            "owner": "anna",
            "kind": "workflow",
            "job_type": "screening",
            "priority": TaskPriority.NORMAL,
            "state": JobState.QUEUED,
            "attempt": 0,
            "submitted_at": NOON + number,
            "needs": {SLOT: 1.0},
            **fields,
        }
    )


def started(commands: list[Command]) -> list[str]:
    """Ids of the jobs that are to start."""
    return [command.job_id for command in commands if isinstance(command, Start)]
