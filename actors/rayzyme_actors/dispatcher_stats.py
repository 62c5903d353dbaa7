"""The figures of `Dispatcher.get_stats`: scheduler, queue, GPUs and memory, in the form that programs know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rayzyme.database.leases import live_leases
from rayzyme.errors import ResourceError
from rayzyme.jobs.role import is_provably_gone
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.resources import GPUManager, get_memory_manager
from rayzyme.settings import Settings
from rayzyme_actors.scheduler_settings import with_told_settings


def dispatcher_stats(store: JobStore, settings: Settings, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Gather them.

    Args:
        store: The jobs.
        settings: In force here.
        scheduler: What the scheduler says of itself; empty where it was not asked.
    """
    return {
        **scheduler_and_queue(store, settings, scheduler),
        "resources": {"gpu": _gpu(store), "memory": _memory()},
    }


def scheduler_and_queue(store: JobStore, settings: Settings, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The first two parts of it, which are in the database."""
    counts = store.counts()
    holder = store.role()
    if holder is not None and is_provably_gone(holder.identity):
        holder = None
    if holder is not None:
        settings = with_told_settings(settings, holder.info)
    return {
        "scheduler": {
            "running": holder is not None,
            "max_concurrent_jobs": scheduler.get("max_concurrent_jobs", settings.scheduler.max_concurrent_jobs),
            "strategy": scheduler.get("strategy", settings.scheduler.priority_strategy),
            "host": holder.info.get("host") if holder is not None else None,
            "pid": holder.info.get("pid") if holder is not None else None,
        },
        "queue": {
            "total_jobs": sum(counts.values()),
            "queued": counts.get(JobState.QUEUED, 0),
            "running": counts.get(JobState.RUNNING, 0),
            "completed": counts.get(JobState.COMPLETED, 0),
            "failed": counts.get(JobState.FAILED, 0),
            "cancelled": counts.get(JobState.CANCELLED, 0),
            "queue_size": counts.get(JobState.QUEUED, 0),
        },
    }


def _gpu(store: JobStore) -> dict[str, Any]:
    allocations: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for lease in live_leases(store.database):
        if lease["resource"].startswith("gpu:"):
            allocations[lease["purpose"]].append({"device": lease["resource"], "memory_mb": lease["amount"]})
    try:
        with GPUManager.from_settings() as gpus:
            devices = gpus.get_available_gpus()
    except ResourceError:
        devices = []
    return {
        "total_gpus": len(devices),
        "allocated_tasks": len(allocations),
        "allocations": dict(allocations),
        "gpu_info": devices,
    }


def _memory() -> dict[str, Any]:
    stats: dict[str, Any] = get_memory_manager().get_stats()
    return stats
