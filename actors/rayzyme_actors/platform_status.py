"""What the platform looks like now, in a few figures: the cluster, the scheduler and its queue, the actors that screen."""

from __future__ import annotations

from typing import Any

import ray

from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme_actors.dispatcher_stats import scheduler_and_queue
from rayzyme_actors.starting import HOST_PREFIX, SHARD_PREFIX

_MB = 2**20


def platform_status(store: JobStore, settings: Settings) -> dict[str, Any]:
    """Gather them.

    Args:
        store: The jobs.
        settings: In force here.

    Returns:
        `scheduler` and `queue` as `Dispatcher.get_stats` has them, and `cluster`: None where this process is connected to no
        Ray, else its nodes, its CPUs, GPUs and memory (MB of 2^20 bytes) as {"total", "used"}, and how many actors hold a
        model (`model_hosts`) or a piece of a screening set (`shards`).

    Raises:
        DatabaseError: The database cannot be read.
    """
    return {
        **scheduler_and_queue(store, settings, {}),
        "cluster": _cluster(settings.ray.namespace) if ray.is_initialized() else None,
    }


def _cluster(namespace: str) -> dict[str, Any]:
    has, free = ray.cluster_resources(), ray.available_resources()

    def figures(resource: str, unit: float = 1) -> dict[str, float]:
        total = has.get(resource, 0.0)
        # The two were asked for one after the other.
        used = max(0.0, total - free.get(resource, 0.0))
        return {"total": round(total / unit, 2), "used": round(used / unit, 2)}

    names = [
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == namespace
    ]
    return {
        "nodes": len([node for node in ray.nodes() if node["Alive"]]),
        "cpus": figures("CPU"),
        "gpus": figures("GPU"),
        "memory_mb": figures("memory", _MB),
        "model_hosts": sum(1 for name in names if name.startswith(HOST_PREFIX)),
        "shards": sum(1 for name in names if name.startswith(SHARD_PREFIX)),
    }
