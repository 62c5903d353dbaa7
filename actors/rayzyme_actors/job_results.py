"""From the store's rows to what a program gets: the result of a workflow and of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from rayzyme.jobs.store import JobStore
from rayzyme.workflows import WorkflowResult


def workflow_results(store: JobStore, job_ids: Sequence[str]) -> dict[str, WorkflowResult]:
    """`workflow_result` of many jobs, by id, in the order of the ids."""
    found = store.records_with_tasks(job_ids)
    return {job_id: WorkflowResult.from_records(*found[job_id]) for job_id in job_ids}


def workflow_result(store: JobStore, job_id: str) -> WorkflowResult:
    """How a job's workflow stands; outputs are loaded when they are asked for.

    Raises:
        UnknownJob: There is no such job.
    """
    return WorkflowResult.from_records(store.record(job_id), store.tasks(job_id))
