"""From the settings to what the scheduler decides by, and to the store that it writes to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from rayzyme.database import open_database
from rayzyme.jobs.role import SETTINGS
from rayzyme.jobs.scheduling_config import OwnerQuota, SchedulingConfig
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme.settings_sections import Quota

# What can be changed while they run. The others say where things are and who may do what, and some of those are secret.
_TOLD: Final = ("scheduler", "quotas", "cancel", "resources")


def told_settings(settings: Settings) -> dict[str, Any]:
    """The sections that a scheduler and its runner work by, as JSON for the database."""
    return settings.model_dump(mode="json", include=set(_TOLD))


def with_told_settings(settings: Settings, info: Mapping[str, Any]) -> Settings:
    """Settings with those sections as a scheduler told them with its role; as they are where it told none."""
    told = info.get(SETTINGS, {})
    sections = {name: type(getattr(settings, name)).model_validate(section) for name, section in told.items()}
    return settings.model_copy(update=sections)


def scheduling_config(settings: Settings) -> SchedulingConfig:
    """The sections `scheduler` and `quotas`, as the machine takes them."""
    chosen, quotas = settings.scheduler, settings.quotas
    return SchedulingConfig(
        max_concurrent_jobs=chosen.max_concurrent_jobs,
        strategy=chosen.priority_strategy,
        max_wait=chosen.max_wait,
        max_bypass=chosen.max_bypass,
        reserve_after=chosen.reserve_after,
        half_life=chosen.fair_share.half_life,
        weights=dict(chosen.fair_share.weights),
        default_quota=_quota(quotas.default),
        quotas={owner: _quota(quota) for owner, quota in quotas.users.items()},
    )


def _quota(quota: Quota) -> OwnerQuota:
    return OwnerQuota(running=quota.running, queued=quota.queued, gpu_memory_mb=quota.gpu_memory_mb)


def store_of(settings: Settings) -> JobStore:
    """The jobs of the database that this process's settings name.

    Raises:
        DatabaseError: It cannot be used.
    """
    return JobStore(open_database(), lease_ttl=settings.leases.ttl, half_life=settings.scheduler.fair_share.half_life)


def scheduler_name(settings: Settings, *only: str) -> str:
    """The name of the actor that sees to the jobs of the settings' database, or to some of them alone."""
    return ":".join(["scheduler", _place(settings), *only])


def runner_name(settings: Settings, *only: str) -> str:
    """The name of its runner."""
    return ":".join(["workflow-runner", _place(settings), *only])


def _place(settings: Settings) -> str:
    """Which database: on one cluster there may be programs of several."""
    chosen = settings.database
    if chosen.url is not None:
        place = f"{chosen.url.get_secret_value()} {chosen.schema_}"
    elif chosen.host is not None:
        place = f"{chosen.host}:{chosen.port}/{chosen.database} {chosen.schema_}"
    else:
        place = str(settings.home)
    return hashlib.sha256(place.encode()).hexdigest()[:8]
