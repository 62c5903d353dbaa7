"""Jobs: what users submit, which of them runs when, and the store that remembers them.

What decides is pure and stands in this package; the store is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayzyme.errors import IllegalTransition
from rayzyme.jobs.job import Job, JobRequest, TaskPriority
from rayzyme.jobs.retries import RetryPolicy
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import OwnerQuota, SchedulingConfig, check_queued_quota
from rayzyme.jobs.states import JobState
from rayzyme.jobs.strategies import STRATEGIES, create_priority_strategy
from rayzyme.jobs.vocabularies import JobStatus, TaskStatus, WorkflowStatus

if TYPE_CHECKING:
    from rayzyme.jobs.store import JobStore

__all__ = [
    "STRATEGIES",
    "IllegalTransition",
    "Job",
    "JobRequest",
    "JobState",
    "JobStatus",
    "JobStore",
    "OwnerQuota",
    "RetryPolicy",
    "SchedulerMachine",
    "SchedulingConfig",
    "TaskPriority",
    "TaskStatus",
    "WorkflowStatus",
    "check_queued_quota",
    "create_priority_strategy",
]


def __getattr__(name: str) -> Any:
    """The store, whose database library is loaded only where it is used."""
    if name == "JobStore":
        from rayzyme.jobs.store import JobStore

        return JobStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
