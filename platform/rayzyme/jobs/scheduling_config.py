"""What the scheduler decides by, and the quotas of owners, as plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rayzyme.checks import number_from_zero, positive_number, whole_number
from rayzyme.errors import QuotaExceeded, ValidationError
from rayzyme.jobs.job import Job
from rayzyme.jobs.strategies import create_priority_strategy

SLOT: Final = "slot:workflow"
GPU_MEMORY: Final = "gpu_memory_mb"
_QUOTA: Final = "quota:"
_RUNNING: Final = f"{_QUOTA}running:"
_GPU_MEMORY: Final = f"{_QUOTA}{GPU_MEMORY}:"


@dataclass(frozen=True, slots=True)
class OwnerQuota:
    """What one owner may have at a time; None is without limit.

    Attributes:
        running: Jobs that run.
        queued: Jobs that wait.
        gpu_memory_mb: MB (2^20 bytes) of GPU memory that running jobs ask for.
    """

    running: int | None = None
    queued: int | None = None
    gpu_memory_mb: int | None = None

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            ValidationError: One is not a whole number from 1.
        """
        for name in ("running", "queued", "gpu_memory_mb"):
            if getattr(self, name) is not None:
                whole_number(f"quota {name}", getattr(self, name), at_least=1)


NO_QUOTA: Final = OwnerQuota()


@dataclass(frozen=True, slots=True)
class SchedulingConfig:
    """The settings of scheduling.

    Attributes:
        max_concurrent_jobs: How many `slot:workflow` there are.
        strategy: Which job is next, one of `rayzyme.jobs.STRATEGIES`.
        max_wait: Seconds after its submission from which on a queued job goes first; 0 switches that off.
        max_bypass: How often a job that does not fit is passed over before what it needs is reserved.
        reserve_after: Seconds from the first time it was passed over after which that is done at the latest.
        half_life: Seconds after which what an owner used counts half.
        max_job_size: Tasks from which on a job is as large as can be.
        weights: Share of each owner relative to the others; those not named have 1.
        default_quota: Of owners who are not named.
        quotas: By owner; replaces the default as a whole.
    """

    max_concurrent_jobs: int = 2
    strategy: str = "priority"
    max_wait: float = 21600.0
    max_bypass: int = 20
    reserve_after: float = 300.0
    half_life: float = 86400.0
    max_job_size: int = 100
    weights: Mapping[str, float] = field(default_factory=dict)
    default_quota: OwnerQuota = NO_QUOTA
    quotas: Mapping[str, OwnerQuota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            ValidationError: Names the one that cannot be used.
        """
        try:
            create_priority_strategy(self.strategy)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        for name in ("max_concurrent_jobs", "max_bypass", "max_job_size"):
            whole_number(name, getattr(self, name), at_least=1)
        for name in ("max_wait", "reserve_after"):
            number_from_zero(name, getattr(self, name))
        positive_number("half_life", self.half_life)
        for owner, weight in self.weights.items():
            positive_number(f"weight of {owner}", weight)

    def quota(self, owner: str) -> OwnerQuota:
        """What `owner` may have."""
        return self.quotas.get(owner, self.default_quota)

    def needs(self, job: Job) -> dict[str, float]:
        """What must be free for `job` to start: what it names, and its share of its owner's quotas."""
        needs = dict(job.needs)
        quota = self.quota(job.owner)
        if quota.running is not None:
            needs[_RUNNING + job.owner] = 1.0
        if quota.gpu_memory_mb is not None and GPU_MEMORY in needs:
            needs[_GPU_MEMORY + job.owner] = needs[GPU_MEMORY]
        return needs

    def quota_capacity(self, resource: str) -> float | None:
        """How much there is of a quota's resource; None for what is no quota."""
        for prefix, name in ((_RUNNING, "running"), (_GPU_MEMORY, "gpu_memory_mb")):
            if resource.startswith(prefix):
                limit: int | None = getattr(self.quota(resource.removeprefix(prefix)), name)
                return float("inf") if limit is None else float(limit)
        return None


def quotas_from(section: Mapping[str, Any], owners: Collection[str]) -> SchedulingConfig:
    """What some owners may have by the section `quotas` of the settings, as JSON; all else is as by default."""
    own = {owner: OwnerQuota(**quota) for owner in owners if (quota := section["users"].get(owner)) is not None}
    return SchedulingConfig(default_quota=OwnerQuota(**section["default"]), quotas=own)


def is_quota(resource: str) -> bool:
    """Whether a resource is an owner's quota, which nobody else can be kept waiting for."""
    return resource.startswith(_QUOTA)


def quota_owner(resource: str) -> str:
    """Whose quota a resource is."""
    return resource.split(":", 2)[2]


def check_queued_quota(owner: str, queued: int, config: SchedulingConfig, *, new: int = 1) -> None:
    """Refuse a submit that would give an owner more waiting jobs than the settings allow.

    Args:
        owner: Who submits.
        queued: Jobs of theirs that wait already.
        config: The settings.
        new: Jobs that they submit.

    Raises:
        QuotaExceeded: There would be too many; the message gives the figures.
    """
    limit = config.quota(owner).queued
    if limit is not None and queued + new > limit:
        raise QuotaExceeded(
            f"{owner} has {queued} queued jobs and may have {limit}: {new} more cannot be accepted. "
            f"Wait until some have started, or have quotas.users.{owner}.queued raised"
        )
