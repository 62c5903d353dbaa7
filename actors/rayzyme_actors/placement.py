"""Where actors go: one shard per GPU, or one per node without GPUs. Pure: nodes in, plans out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayzyme.errors import DeviceUnavailable

# More than half a GPU, so that Ray cannot put two shards on one; the rest is for a model beside it.
SHARD_GPUS = 0.6
HOST_GPUS = 0.3
# Long-lived actors rest between requests, and stay. CPUs reserved for them would be lost to tasks for ever.
ACTOR_CPUS = 0.01


@dataclass(frozen=True, slots=True)
class Node:
    """A live node of the cluster.

    Attributes:
        node_id: Ray's id, hexadecimal.
        cpus: Logical CPUs.
        gpus: Logical GPUs.
    """

    node_id: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: which rows of the set, on which node, with what.

    Attributes:
        start: First row.
        stop: One past the last row.
        node_id: Node that it should run on.
        num_gpus: GPUs to reserve, 0 on a CPU.
        threads: CPU threads to compute with.
    """

    start: int
    stop: int
    node_id: str
    num_gpus: float
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


def plan_shards(rows: int, nodes: Sequence[Node], device: str) -> list[ShardPlan]:
    """Split a set's rows over the cluster's devices, in shares as even as can be; never more shards than rows.

    Raises:
        DeviceUnavailable: No node can hold a shard, or "cuda" without GPUs.
    """
    if wants_gpu(device, nodes):
        places = [(node, SHARD_GPUS) for node in nodes for _ in range(int(node.gpus))]
    else:
        places = [(node, 0.0) for node in nodes]
    if not places:
        raise DeviceUnavailable("the Ray cluster has no live node with CPUs; start one with `ray start --address=...`")
    places = places[: max(1, rows)]
    bounds = [rows * number // len(places) for number in range(len(places) + 1)]
    return [
        ShardPlan(bounds[number], bounds[number + 1], node.node_id, num_gpus, max(1, int(node.cpus)))
        for number, (node, num_gpus) in enumerate(places)
    ]
