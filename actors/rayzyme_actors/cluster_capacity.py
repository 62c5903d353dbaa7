"""What the connected cluster has, by the names that jobs ask for it."""

from __future__ import annotations

import logging

import ray

from rayzyme.errors import DeviceUnavailable
from rayzyme.settings import Settings
from rayzyme_actors.gpu_memory import with_gpu_memory
from rayzyme_actors.placement import live_nodes

logger = logging.getLogger(__name__)

_MB = 2**20


def cluster_capacity(settings: Settings) -> dict[str, float]:
    """`cpu`, `gpu`, `memory_mb` and `gpu_memory_mb` (2^20 bytes; what may be leased) of all live nodes."""
    has = ray.cluster_resources()
    return {
        "cpu": float(has.get("CPU", 0)),
        "gpu": float(has.get("GPU", 0)),
        "memory_mb": float(has.get("memory", 0) // _MB),
        "gpu_memory_mb": _gpu_memory_mb(settings) if has.get("GPU", 0) else 0.0,
    }


def largest_node() -> dict[str, float]:
    """The most `cpu`, `gpu` and `memory_mb` that any live node has, each by itself: more than that no process can be given."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {
        "cpu": max((float(has.get("CPU", 0)) for has in nodes), default=0.0),
        "gpu": max((float(has.get("GPU", 0)) for has in nodes), default=0.0),
        "memory_mb": max((float(has.get("memory", 0) // _MB) for has in nodes), default=0.0),
    }


def _gpu_memory_mb(settings: Settings) -> float:
    try:
        nodes = with_gpu_memory(live_nodes(ray.nodes()), settings)
    except DeviceUnavailable as error:
        logger.warning("what memory the GPUs have is not known, so none is given out by MB: %s", error)
        return 0.0
    reserve = settings.resources.gpu.min_free_memory_mb
    return float(sum(node.gpus * max(0, node.gpu_memory_mb - reserve) for node in nodes))
