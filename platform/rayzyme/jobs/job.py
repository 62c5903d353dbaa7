"""What a user submits, as the scheduler sees it. Times are seconds since 1970, UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from rayzyme.jobs.states import JobState

JobKind = Literal["workflow", "operation", "command"]
Resources = Mapping[str, float]
"""Amounts by the resource's name: `slot:workflow`, `cpu`, `gpu`, `memory_mb`, `quota:running:OWNER`, ..."""


class TaskPriority(IntEnum):
    """How urgent a job or task is."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A job and where it stands.

    Attributes:
        job_id: Public id, `job_` and 12 hexadecimal digits.
        sequence: Row number; of two jobs submitted at one moment the smaller goes first.
        name: For people.
        owner: Who submitted it.
        kind: What sort of work it is.
        job_type: Which workflow or operation; durations are recorded by it.
        priority: The user's.
        state: Where it stands.
        attempt: Number of the newest try; 0 before the first.
        submitted_at: When it was accepted.
        task_count: Tasks that it has, its size.
        needs: What must be free for it to start, `slot:...` included.
        not_before: Earliest time of its next try.
        deadline: When its user wants it done.
        started_at: When its newest attempt began.
        is_held: Whether its user asked it to wait.
        cancel_requested: Whether its user asked it to stop.
        site_faults: How often it lost its runner.
        max_site_faults: At that many it fails.
        version: Grows with every change.
        estimated_seconds: How long it is likely to take, by what its submitter knows.
    """

    job_id: str
    sequence: int
    name: str
    owner: str
    kind: JobKind
    job_type: str
    priority: TaskPriority
    state: JobState
    attempt: int
    submitted_at: float
    task_count: int = 1
    needs: Resources = field(default_factory=dict)
    not_before: float | None = None
    deadline: float | None = None
    started_at: float | None = None
    is_held: bool = False
    cancel_requested: bool = False
    site_faults: int = 0
    max_site_faults: int = 5
    version: int = 0
    estimated_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to be accepted.

    Attributes:
        name: For people.
        owner: Who asks.
        spec: Everything needed to run it, as JSON; for a workflow what `rayzyme.workflows.specs` writes.
        kind: What sort of work.
        job_type: Which workflow or operation.
        priority: The user's.
        metadata: The user's own, as JSON; `deadline` (ISO 8601 or seconds since 1970) is read.
        task_count: Tasks that it has.
        needs: What must be free for it to start.
        is_durable: Whether `spec` suffices to run it in another process.
        idempotency_key: The same key of the same owner is the same job.
        max_site_faults: Lost runners after which it fails.
        retry_of: The job that this one repeats.
        estimated_seconds: How long it is likely to take; None where nobody can say.
    """

    name: str
    owner: str
    spec: Mapping[str, Any]
    kind: JobKind = "workflow"
    job_type: str = ""
    priority: TaskPriority = TaskPriority.NORMAL
    metadata: Mapping[str, Any] = field(default_factory=dict)
    task_count: int = 1
    needs: Resources = field(default_factory=dict)
    is_durable: bool = True
    idempotency_key: str | None = None
    max_site_faults: int = 5
    retry_of: str | None = None
    estimated_seconds: float | None = None
