"""Where actors go: one shard per GPU, or one per node without GPUs. Pure: nodes in, plans out.

An actor asks for GPU memory in MB (2^20 bytes). Ray knows GPUs only as numbers, so it is asked for the share that the memory
is of what a GPU has to lease, and the actor takes a lease on the memory itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayzyme.errors import DeviceUnavailable, ResourceError
from rayzyme.resources.allocation import gpu_fraction

# What CUDA itself and the workspace of a scan take beside the rows, in MB.
WORKSPACE_MB = 600
# More than half a GPU, so that Ray cannot put two shards of one set on the same one while another rests.
_ONE_EACH = 0.5001
# Long-lived actors rest between requests, and stay. CPUs reserved for them would be lost to tasks for ever.
ACTOR_CPUS = 0.0001
# A process for tasks leaves room for such actors, or those that its tasks wait for could not be placed.
TASK_CPUS = 0.99


@dataclass(frozen=True, slots=True)
class Node:
    """A live node of the cluster.

    Attributes:
        node_id: Ray's id, hexadecimal.
        cpus: Logical CPUs.
        gpus: Logical GPUs.
        gpu_memory_mb: MB of the smallest of them; 0 where there is none, or it was not asked for.
    """

    node_id: str
    cpus: float
    gpus: float
    gpu_memory_mb: int = 0


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: which rows of the set, on which node, with what.

    Attributes:
        start: First row.
        stop: One past the last row.
        node_id: Node that it should run on.
        num_gpus: Share of a GPU to ask Ray for, 0 on a CPU.
        gpu_memory_mb: MB of GPU memory to lease, 0 on a CPU.
        threads: CPU threads to compute with.
    """

    start: int
    stop: int
    node_id: str
    num_gpus: float
    gpu_memory_mb: int
    threads: int


def live_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Read `ray.nodes()`; nodes without CPUs and GPUs (a bare head) are left out."""
    read = [
        Node(node["NodeID"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in nodes
        if node["Alive"]
    ]
    return sorted((node for node in read if node.cpus >= 1 or node.gpus >= 1), key=lambda node: node.node_id)


def wants_gpu(device: str, nodes: Sequence[Node]) -> bool:
    """Whether actors for `device` ("auto", "cpu", "cuda") are to take GPUs.

    Raises:
        DeviceUnavailable: "cuda" on a cluster without GPUs.
    """
    gpus = sum(node.gpus for node in nodes)
    if device.startswith("cuda") and gpus == 0:
        raise DeviceUnavailable(
            f"device 'cuda' was asked for, but the Ray cluster has 0 GPUs on {len(nodes)} node(s); use --device auto or cpu, "
            f"or connect to a cluster with GPUs (RAY_ADDRESS)"
        )
    return device.startswith("cuda") or (device == "auto" and gpus > 0)


def plan_shards(
    rows: int, nodes: Sequence[Node], device: str, row_bytes: int = 0, *, reserve_mb: int = 0
) -> list[ShardPlan]:
    """Split a set's rows over the cluster's devices, in shares as even as can be; never more shards than rows.

    Args:
        rows: Of the set.
        nodes: Of the cluster; those with GPUs say how much memory these have.
        device: "auto", "cpu", "cuda".
        row_bytes: What a row takes on a device.
        reserve_mb: MB of each GPU that are not leased.

    Raises:
        DeviceUnavailable: No node can hold a shard, or "cuda" without GPUs.
        ResourceError: A shard is larger than what its GPU has to lease.
    """
    on_gpus = wants_gpu(device, nodes)
    places = [node for node in nodes for _ in range(int(node.gpus))] if on_gpus else list(nodes)
    if not places:
        raise DeviceUnavailable("the Ray cluster has no live node with CPUs; start one with `ray start --address=...`")
    places = places[: max(1, rows)]
    bounds = [rows * number // len(places) for number in range(len(places) + 1)]
    plans = []
    for start, stop, node in zip(bounds, bounds[1:], places, strict=False):
        megabytes = -(-(stop - start) * row_bytes // 2**20) + WORKSPACE_MB if on_gpus else 0
        share = _share(megabytes, node.gpu_memory_mb, reserve_mb) if on_gpus else 0.0
        if on_gpus and places.count(node) > 1:
            share = max(share, _ONE_EACH)
        plans.append(ShardPlan(start, stop, node.node_id, share, megabytes, max(1, int(node.cpus))))
    return plans


def host_share(needed_mb: int, nodes: Sequence[Node], *, reserve_mb: int = 0) -> float:
    """The share of a GPU that a model's host asks Ray for: of the smallest GPU, since Ray may choose any.

    Args:
        needed_mb: MB that it leases.
        nodes: Of the cluster; those with GPUs say how much memory these have.
        reserve_mb: MB of each GPU that are not leased.

    Raises:
        ResourceError: The smallest GPU has less memory to lease than that.
    """
    return _share(needed_mb, min(node.gpu_memory_mb for node in nodes if node.gpus >= 1), reserve_mb)


def _share(needed_mb: int, gpu_mb: int, reserve_mb: int) -> float:
    # Of what can be leased, not of the whole GPU: whom Ray places then also finds its memory.
    if needed_mb > gpu_mb - reserve_mb:
        raise ResourceError(
            f"{needed_mb:,} MB do not fit on a GPU of {gpu_mb:,} MB, of which {reserve_mb:,} MB are kept free "
            "(resources.gpu.min_free_memory_mb); use a larger device"
        )
    units = round(gpu_fraction(needed_mb, gpu_mb - reserve_mb) * 10_000)
    # Ray counts whole ten-thousandths and cuts off the rest: 0.3334, in binary a little less, would count as 0.3333.
    while int(units / 10_000 * 10_000) < units:
        units += 1
    return units / 10_000
