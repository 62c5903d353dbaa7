"""Jobs as HTTP tells of them: the words and keys of `rayzyme list-jobs` and `rayzyme jobs show`, with how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rayzyme.jobs.look import JobLook
from rayzyme.jobs.records import JobRecord
from rayzyme.jobs.store import JobStore
from rayzyme.jobs.vocabularies import JobStatus, TaskStatus

Time = Annotated[str | None, Field(examples=["2026-01-31T12:00:00.000Z"])]


class JobDescription(BaseModel):
    """A job. Times are UTC, durations seconds."""

    job_id: str
    name: str
    owner: str
    workflow: str = Field(description="Which kind of workflow it is.")
    status: JobStatus
    priority: int = Field(description="From 0, low, to 3, critical.")
    created_at: Time
    started_at: Time
    completed_at: Time
    wait_time: float | None
    execution_time: float | None
    total_time: float | None
    progress: float | None = Field(description="Percent; null where nothing tells it.")
    eta_s: float | None = Field(description="Seconds left, as far as that can be told.")
    error: str | None
    metadata: dict[str, Any]


class TaskDescription(BaseModel):
    """A task of a job, as last committed."""

    name: str
    status: TaskStatus
    attempt: int
    error: str | None
    error_class: str | None
    site_faults: int
    not_before: Time
    started_at: Time
    completed_at: Time
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    durable: bool


class AttemptDescription(BaseModel):
    """One try at a job, where `task` is null, or at one of its tasks."""

    task: str | None
    number: int
    job_attempt: int
    status: TaskStatus
    runner: str
    node: str
    error_class: str | None
    queued_at: Time
    leased_at: Time
    started_at: Time
    computed_at: Time
    committed_at: Time


class JobDetails(JobDescription):
    """A job with its tasks and every try at it."""

    number: int
    attempt: int
    retry_of: str | None
    tasks: list[TaskDescription]
    attempts: list[AttemptDescription]


class JobPage(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobDescription]
    next_cursor: str | None = Field(description="Asks for the page after this one; null on the last.")


class Explanation(BaseModel):
    """Why a job waits; of a job that waits its place, what it lacks and when it may start too."""

    model_config = ConfigDict(extra="allow")

    job_id: str
    state: JobStatus
    sentences: list[str] = Field(description="For people.")


class Cancelled(BaseModel):
    """What became of a wish to cancel."""

    cancelled: bool = Field(description="False where the job had ended already.")


def described(store: JobStore, records: Sequence[JobRecord]) -> list[dict[str, Any]]:
    """Jobs as `JobDescription` has them."""
    looks = store.looks([record.job.job_id for record in records])
    return [_described(record, looks.get(record.job.job_id)) for record in records]


def details(store: JobStore, record: JobRecord) -> dict[str, Any]:
    """A job as `JobDetails` has it."""
    job = record.job
    (description,) = described(store, [record])
    return description | {
        "number": job.sequence,
        "attempt": job.attempt,
        "retry_of": record.retry_of,
        "tasks": [task.to_dict() for task in store.tasks(job.job_id)],
        "attempts": [attempt.to_dict() for attempt in store.attempts(job.job_id)],
    }


def _described(record: JobRecord, look: JobLook | None) -> dict[str, Any]:
    return record.to_dict() | {
        "workflow": record.job.job_type,
        "progress": None if look is None else look.percent,
        "eta_s": None if look is None else look.eta,
        "error": record.error_message,
    }
