"""Where shards go, for clusters of every shape."""

from __future__ import annotations

from typing import Any

import pytest

from rayzyme.errors import DeviceUnavailable, ResourceError
from rayzyme.settings import load_settings
from rayzyme_actors.placement import WORKSPACE_MB, Node, ShardPlan, host_share, live_nodes, plan_shards
from rayzyme_actors.starting import device_to_use

LAPTOP = [Node("a", 2, 0)]
CLUSTER = [Node("a", 8, 2, 40_000), Node("b", 16, 1, 24_000), Node("c", 32, 0)]


def test_a_laptop_gets_one_shard_with_all_its_cores() -> None:
    assert plan_shards(100, LAPTOP, "auto") == [ShardPlan(0, 100, "a", 0, 0, 2)]


def test_a_cpu_cluster_gets_one_shard_per_node() -> None:
    plans = plan_shards(100, CLUSTER, "cpu")
    assert [(plan.start, plan.stop, plan.node_id, plan.num_gpus, plan.threads) for plan in plans] == [
        (0, 33, "a", 0, 8), (33, 66, "b", 0, 16), (66, 100, "c", 0, 32),
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_cluster_gets_one_shard_per_gpu(device: str) -> None:
    plans = plan_shards(90, CLUSTER, device, row_bytes=2**20, reserve_mb=0)
    assert [(plan.start, plan.stop, plan.node_id) for plan in plans] == [(0, 30, "a"), (30, 60, "a"), (60, 90, "b")]
    assert {plan.gpu_memory_mb for plan in plans} == {30 + WORKSPACE_MB}
    alone = plans[2]
    assert alone.num_gpus == 0.0263, "630 of 24,000 MB, rounded up"
    assert all(plan.num_gpus > 0.5 for plan in plans[:2]), "Ray could put two shards of one set on one GPU"


def test_a_shard_larger_than_its_gpu_is_refused_with_the_figures() -> None:
    with pytest.raises(ResourceError, match=r"50,600 MB do not fit on a GPU of 40,000 MB"):
        plan_shards(50_000, [Node("a", 8, 1, 40_000)], "cuda", row_bytes=2**20)


def test_a_host_asks_for_its_share_of_the_smallest_gpu() -> None:
    """C19"""
    assert host_share(12_000, CLUSTER, reserve_mb=0) == 0.5
    assert host_share(12_000, CLUSTER[:1], reserve_mb=0) == 0.3


@pytest.mark.parametrize(
    ("needed", "fits"), [(12_000, 3), (10_000, 3), (9_750, 4), (39_000, 1), (700, 55), (13_001, 2), (6_501, 5)]
)
def test_ray_never_places_more_actors_than_the_ledger_gives_memory_to(needed: int, fits: int) -> None:
    """C19"""
    share = host_share(needed, [Node("a", 8, 1, 40_000)], reserve_mb=1_000)
    # Ray counts in ten-thousandths and cuts off what is less.
    assert 10_000 // int(share * 10_000) == fits
    assert fits * needed <= 39_000
    (plan,) = plan_shards(1, [Node("a", 8, 1, 40_000)], "cuda", (needed - WORKSPACE_MB) * 2**20, reserve_mb=1_000)
    assert (plan.num_gpus, plan.gpu_memory_mb) == (share, needed)


def test_ray_counts_every_share_in_full() -> None:
    """C19"""
    counted = [int(host_share(needed, [Node("a", 8, 1, 10_000)]) * 10_000) for needed in range(1, 10_001)]
    assert all(needed <= units <= needed + 1 for needed, units in enumerate(counted, start=1))
    # What divides a GPU without a rest still does.
    assert all(counted[10_000 // n - 1] == 10_000 // n for n in (1, 2, 4, 5, 8, 10, 16, 20, 25, 40))


def test_the_reserve_is_named_where_it_is_what_does_not_fit() -> None:
    """C19"""
    with pytest.raises(ResourceError, match=r"39,001 MB do not fit on a GPU of 40,000 MB.* 1,000 .*min_free_memory_mb"):
        host_share(39_001, [Node("a", 8, 1, 40_000)], reserve_mb=1_000)


@pytest.mark.parametrize(
    ("device", "auto_allocate", "where"),
    [
        (None, True, "auto"), (None, False, "cpu"), ("auto", True, "auto"), ("auto", False, "cpu"),
        ("cuda", False, "cuda"), ("cpu", True, "cpu"),
    ],
)  # fmt: skip
def test_gpus_are_taken_unasked_only_where_the_settings_allow(
    device: str | None, auto_allocate: bool, where: str
) -> None:
    """D73"""
    settings = load_settings(overrides={"resources": {"gpu": {"auto_allocate": auto_allocate}}})
    assert device_to_use(device, settings) == where


def test_the_settings_device_is_taken_unless_another_is_named() -> None:
    """D73"""
    settings = load_settings(overrides={"device": "cuda", "resources": {"gpu": {"auto_allocate": False}}})
    assert [device_to_use(device, settings) for device in (None, "cpu", "auto")] == ["cuda", "cpu", "cpu"]


def test_there_are_never_more_shards_than_rows() -> None:
    assert [(plan.start, plan.stop) for plan in plan_shards(2, CLUSTER, "cpu")] == [(0, 1), (1, 2)]


def test_cuda_without_gpus_is_refused_with_the_figures() -> None:
    with pytest.raises(DeviceUnavailable, match=r"the Ray cluster has 0 GPUs on 1 node\(s\); use --device auto or cpu"):
        plan_shards(10, LAPTOP, "cuda")


def test_a_cluster_without_workers_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="no live node with CPUs"):
        plan_shards(10, [], "auto")


def test_dead_nodes_and_bare_heads_hold_nothing() -> None:
    def node(name: str, alive: bool, **resources: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    nodes = [
        node("z", True, CPU=4.0),
        node("dead", False, CPU=4.0),
        node("head", True, memory=1e9),
        node("g", True, GPU=1.0),
    ]
    assert live_nodes(nodes) == [Node("g", 0, 1), Node("z", 4, 0)]
