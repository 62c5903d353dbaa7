"""How the platform is doing, for the page and for programs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

import rayzyme
from rayzyme.access import Caller, Role
from rayzyme_serve import access, faults
from rayzyme_serve.service import Service, service_of

router = APIRouter(prefix="/v1", tags=["health"])


class SchedulerFigures(BaseModel):
    """Who starts jobs."""

    running: bool
    strategy: str
    max_concurrent_jobs: int
    host: str | None
    pid: int | None


class QueueFigures(BaseModel):
    """Jobs by their state."""

    total_jobs: int
    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int
    queue_size: int


class Share(BaseModel):
    """How much of something is in use."""

    total: float
    used: float


class ClusterFigures(BaseModel):
    """The Ray cluster."""

    nodes: int
    cpus: Share
    gpus: Share
    memory_mb: Annotated[Share, Field(description="In MB of 2^20 bytes.")]
    model_hosts: Annotated[int, Field(description="Actors that hold a model.")]
    shards: Annotated[int, Field(description="Actors that hold a piece of a screening set.")]


class Asker(BaseModel):
    """Who asks."""

    name: str
    owner: str
    role: str


class PlatformStatus(BaseModel):
    """What the platform looks like now."""

    version: str
    caller: Asker
    scheduler: SchedulerFigures
    queue: QueueFigures
    cluster: ClusterFigures | None


@router.get("/status", response_model=PlatformStatus, responses=faults.responses(401, 403, 422, 429, 503))
def status(
    service: Annotated[Service, Depends(service_of)],
    caller: Annotated[Caller, Depends(access.require(Role.VIEWER))],
) -> dict[str, Any]:
    """The cluster, the scheduler and its queue, and who asks."""
    from rayzyme_actors.platform_status import platform_status

    return {
        "version": rayzyme.__version__,
        "caller": {"name": caller.name, "owner": caller.owner, "role": caller.role.value},
        **platform_status(service.store, service.settings),
    }
