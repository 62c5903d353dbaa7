"""From the store's rows to what a program gets: the result of a workflow and of its tasks."""

from __future__ import annotations

from rayzyme.jobs.store import JobStore
from rayzyme.workflows import WorkflowResult


def workflow_result(store: JobStore, job_id: str) -> WorkflowResult:
    """How a job's workflow stands; outputs are loaded when they are asked for.

    Raises:
        UnknownJob: There is no such job.
    """
    return WorkflowResult.from_records(store.record(job_id), store.tasks(job_id))
