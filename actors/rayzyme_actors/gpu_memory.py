"""GPU memory on Ray: what each node's GPUs have, and an actor's lease on its share.

The leases are those of `rayzyme.resources.GPUManager`, so programs outside of Ray count too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayzyme.errors import DeviceUnavailable, ResourceError
from rayzyme.resources import GPUManager
from rayzyme.resources.drivers import configured_provider
from rayzyme.settings import Settings, use_settings
from rayzyme_actors.placement import Node

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 60.0
_known: dict[str, int] = {}


def with_gpu_memory(nodes: Sequence[Node], settings: Settings) -> list[Node]:
    """The nodes, with what the smallest GPU of each has; asked once per node.

    Raises:
        DeviceUnavailable: Ray counts GPUs on a node whose driver lists none, or the node does not answer.
    """
    unknown = [node.node_id for node in nodes if node.gpus >= 1 and node.node_id not in _known]
    probe = ray.remote(_smallest_gpu_mb)
    asked = {
        node_id: probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(settings)
        for node_id in unknown
    }
    for node_id, reference in asked.items():
        try:
            found = ray.get(reference, timeout=_PROBE_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise DeviceUnavailable(
                f"node {node_id} did not say within {_PROBE_TIMEOUT_S:.0f} s what memory its GPUs have; is it overloaded?"
            ) from None
        if not found:
            raise DeviceUnavailable(
                f"Ray counts GPUs on node {node_id}, whose driver lists none; see `rayzyme gpus` there, use --device cpu, or "
                "set resources.gpu.simulated_mb to try a placement without GPUs"
            )
        _known[node_id] = found
    return [replace(node, gpu_memory_mb=_known.get(node.node_id, 0)) for node in nodes]


def lease_gpu_memory(purpose: str, megabytes: int, settings: Settings) -> GPUManager:
    """Lease memory on the GPU that Ray gave this actor; held until the manager is closed or this process ends.

    An actor that was killed and comes back finds its own old lease, so it waits until that one has lapsed.

    Raises:
        ResourceError: The GPU's memory is promised to others or used by them.
    """
    manager = GPUManager.from_settings({purpose: megabytes})
    deadline = time.monotonic() + settings.leases.ttl + 5
    while True:
        try:
            manager.allocate_gpus(purpose, count=1, on_lost=_end_this_actor)
            return manager
        except ResourceError as error:
            if time.monotonic() > deadline:
                manager.close()
                raise
            logger.warning("waiting for %d MB of GPU memory: %s", megabytes, error)
            # The ledger has no event for a lease that lapses.
            time.sleep(1.0)


def _smallest_gpu_mb(settings: Settings) -> int:
    """MB of the smallest healthy GPU of this node, those that Ray hides from this task included; 0 without any."""
    use_settings(settings)
    return min((device.memory_total for device in configured_provider().devices() if not device.fault), default=0)


def _end_this_actor(purpose: str) -> None:
    """Whoever lost a lease must not go on using what is now somebody else's; Ray starts the actor again."""
    logger.error("the lease of %s on its GPU is lost; this actor ends, and is started again", purpose)
    os._exit(1)
