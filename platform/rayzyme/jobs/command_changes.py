"""What is written for each command of the scheduler's mind."""

from __future__ import annotations

from typing import Any, Final

from rayzyme.jobs.changes import Change
from rayzyme.jobs.job import Job
from rayzyme.jobs.scheduling_events import Cancel, Command, Fail, Requeue, Start
from rayzyme.jobs.states import JobState

_QUEUED: Final = frozenset({JobState.QUEUED})
_RUNNING: Final = frozenset({JobState.RUNNING})


def change_for(command: Command, row: Job, actor: str, runner_id: str) -> Change:
    """The change that a command is.

    Args:
        command: Any but `Stop`, which is not written but told to the runner.
        row: Its job, as it was last read.
        actor: Who writes, for the audit log.
        runner_id: Who carries out what is started, and holds its leases.
    """
    common: dict[str, Any] = {"job_id": row.job_id, "attempt": row.attempt, "actor": actor}
    match command:
        case Start():
            return Change(
                **common, states=_QUEUED, to=JobState.RUNNING, new_attempt=command.attempt, reason="started",
                data={"runner": runner_id}, values={"not_before": None}, acquire=command.needs, lease_owner=runner_id,
            )  # fmt: skip
        case Requeue():
            values: dict[str, Any] = {"site_faults": command.site_faults, "not_before": command.not_before}
            return Change(
                **common, states=_RUNNING, to=JobState.QUEUED, reason=command.reason, release=True,
                values=values | {"fault": "site"},
            )  # fmt: skip
        case Fail():
            values = {"error_class": command.error_class, "error_message": command.message, "fault": "site"}
            return Change(
                **common, states=_QUEUED | _RUNNING, to=JobState.FAILED, reason=command.message, release=True, values=values
            )  # fmt: skip
        case Cancel():
            return Change(**common, states=_QUEUED, to=JobState.CANCELLED, reason="cancelled before it began")
    raise AssertionError(f"{command} is not written down")
