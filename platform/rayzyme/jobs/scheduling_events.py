"""What the scheduler is told, and what it decides. All plain values; times are seconds since 1970, UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.scheduling_config import SchedulingConfig
from rayzyme.jobs.states import JobState


@dataclass(frozen=True, slots=True)
class Queued:
    """Jobs were accepted, or changed behind the scheduler's back; a row that is older than what it knows changes nothing."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class Restored:
    """What the store has of jobs that are not over, at a restart or to compare notes; running ones hold what they need."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job came to its end, after so many seconds of its newest attempt."""

    job_id: str
    state: JobState
    ran_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A running job lost the runner of an attempt; that of a later one is none of its business."""

    job_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A user wants the job to stop."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Held:
    """A user wants the job to wait."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Unheld:
    """A user lets the job go on."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """What the cluster has now; what is not named is not there, but for `slot:workflow`, of which the settings tell."""

    capacity: Resources


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The store did not write a start; `current` is what it has, None where it has no such job any more."""

    job_id: str
    current: Job | None


@dataclass(frozen=True, slots=True)
class StrategyChanged:
    """Go on by another strategy."""

    name: str


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """Go on by other settings."""

    config: SchedulingConfig


@dataclass(frozen=True, slots=True)
class Drain:
    """Start nothing more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Queued
    | Restored
    | Finished
    | Lost
    | CancelRequested
    | Held
    | Unheld
    | CapacityChanged
    | StartRefused
    | StrategyChanged
    | ConfigChanged
    | Drain
    | Tick
)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a queued job.

    Attributes:
        job_id: Which one.
        attempt: Number of the attempt that begins.
        needs: What it takes of the capacity, quotas of its owner included.
    """

    job_id: str
    attempt: int
    needs: Resources = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a running job whose user cancelled it; it holds what it has until `Finished` tells of its end."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a queued job whose user cancelled it; the scheduler has forgotten it."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """Put a job that lost its runner back into the queue.

    Attributes:
        job_id: Which one.
        attempt: Number of the attempt that was lost.
        reason: Why, for its story.
        not_before: Earliest time of its next try.
        site_faults: How often it has now lost its runner.
    """

    job_id: str
    attempt: int
    reason: str
    not_before: float
    site_faults: int = 0


@dataclass(frozen=True, slots=True)
class Fail:
    """End a job that lost its runner too often, the last time in `attempt`; the scheduler has forgotten it."""

    job_id: str
    attempt: int
    error_class: str
    message: str


Command = Start | Stop | Cancel | Requeue | Fail
