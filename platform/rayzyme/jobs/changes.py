"""What is to be written of jobs and their tasks, and what became of it. All plain values; times are seconds since 1970, UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayzyme.errors import ValidationError
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.states import JobState

JOB_VALUES: Final = frozenset(
    {
        "cancel_requested_at", "cluster", "error_class", "error_message", "fault", "is_held", "items_count", "manifest",
        "metadata", "not_before", "parameters", "progress", "result", "site_faults", "slurm_job_id",
    }
)  # fmt: skip
"""Columns of a job that a change may set beside its state."""

TASK_VALUES: Final = frozenset(
    {
        "durable", "error_class", "error_message", "error_traceback", "manifest", "metadata", "metrics", "not_before", "output",
        "plan_change", "position", "published", "shared_writes", "site_faults",
    }
)  # fmt: skip
"""Columns of a task that a change may set beside its state."""

HOPS: Final = ("queued", "leased", "started", "computed", "committed")
"""What an attempt passes, in this order."""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """Where a task of a job stands now. What it does not name stays as it is.

    Attributes:
        task: Its name in the workflow.
        attempt: Number of its newest attempt.
        state: Its state.
        values: Further columns, of `TASK_VALUES`.
        hops: When the attempt passed what, of `HOPS`.
        runner: Who carries it out.
        node: On which machine.
    """

    task: str
    attempt: int
    state: JobState
    values: Mapping[str, Any] = field(default_factory=dict)
    hops: Mapping[str, float] = field(default_factory=dict)
    runner: str = ""
    node: str = ""

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValidationError: A column or hop that there is not.
        """
        _check_names(f"task {self.task}", "column", self.values, TASK_VALUES)
        _check_names(f"task {self.task}", "hop", self.hops, HOPS)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is to happen to a job, as a whole or not at all.

    It applies where the job is in one of `states` with `attempt` as its newest attempt, and where all of `acquire` is free.

    Attributes:
        job_id: Which job.
        attempt: What its newest attempt must be.
        states: In which of these it must be.
        reason: Why, in words, for its story.
        actor: Who does it.
        to: The state that it goes to; None leaves it.
        new_attempt: Number of the attempt that begins.
        values: Further columns, of `JOB_VALUES`.
        data: Anything more for the story, as JSON.
        tasks: What changes of its tasks.
        acquire: What it holds from now on.
        lease_owner: Who renews that.
        release: Whether it gives back everything that it holds.
    """

    job_id: str
    attempt: int
    states: frozenset[JobState]
    reason: str
    actor: str
    to: JobState | None = None
    new_attempt: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[TaskChange, ...] = ()
    acquire: Resources = field(default_factory=dict)
    lease_owner: str = ""
    release: bool = False

    def __post_init__(self) -> None:
        """Check the names, and that the attempt's number grows.

        Raises:
            ValidationError: A column that there is not, or an older number.
        """
        _check_names(self.job_id, "column", self.values, JOB_VALUES)
        if self.new_attempt is not None and self.new_attempt <= self.attempt:
            raise ValidationError(f"{self.job_id}: attempt {self.new_attempt} cannot follow attempt {self.attempt}")


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change.

    Attributes:
        job: The job as it is now; None where there is none of that id.
        accepted: Whether it was written.
        why: Why not, in words; empty where it was.
        token: The largest token of the leases that it acquired; None where it acquired none.
        spec: What the job is made of, where an attempt of it begins.
    """

    job: Job | None
    accepted: bool
    why: str = ""
    token: int | None = None
    spec: Mapping[str, Any] | None = None


def _check_names(whose: str, what: str, given: Mapping[str, Any], known: frozenset[str] | tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ValidationError(
                f"{whose} has no {what} {name!r} that a change may set; there are {', '.join(sorted(known))}"
            )
