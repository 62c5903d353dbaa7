"""Metrics of actors at the address that Prometheus reads."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from rayzyme.monitoring import get_metrics_collector
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.settings import get_settings, load_settings
from rayzyme_actors.cluster_metrics import cluster_metrics
from rayzyme_actors.embedding_shard import EmbeddingShard
from rayzyme_actors.long_lived import LongLivedActor
from rayzyme_actors.metrics import export_metrics

EXPORTED_WITHIN = 40


@ray.remote(num_cpus=0.1)
class Measured:
    def work(self) -> None:
        metrics = get_metrics_collector()
        metrics.increment("before_total", 2, tags={"level": "memory"})
        export_metrics()
        export_metrics()
        metrics.increment("before_total", 3, tags={"level": "memory"})
        metrics.increment("never", 0)
        metrics.set_gauge("free", 7.5, tags={"device": 0})
        for seconds in (0.02, 0.3):
            metrics.record("wait", seconds, unit="seconds")


def exported() -> list[Sample]:
    """Everything that this node exports."""
    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def wait_until(found: Callable[[list[Sample]], bool]) -> list[Sample]:
    deadline = time.monotonic() + EXPORTED_WITHIN
    while not found(samples := exported()):
        if time.monotonic() > deadline:
            pytest.fail(f"not exported within {EXPORTED_WITHIN} s; there are {sorted({one.name for one in samples})}")
        time.sleep(0.1)
    return samples


def test_an_actors_metrics_reach_the_nodes_metrics_address() -> None:
    """D71"""
    actor = Measured.remote()
    ray.get(actor.work.remote())

    samples = wait_until(
        lambda found: {"ray_before_total", "ray_free", "ray_wait_count"} <= {one.name for one in found}
    )

    by_name = {one.name + one.labels.get("le", ""): one for one in samples}
    assert (by_name["ray_before_total"].labels["level"], by_name["ray_before_total"].value) == ("memory", 5)
    assert (by_name["ray_free"].labels["device"], by_name["ray_free"].value) == ("0", 7.5)
    assert by_name["ray_wait_count"].value == 2
    assert by_name["ray_wait_bucket0.1"].value == 1
    assert not [name for name in by_name if name.endswith("_total_total")]


def test_a_shard_tells_how_often_it_searched_in_which_lane(tmp_path: Path) -> None:
    """D71"""

    def searches(samples: list[Sample]) -> dict[tuple[str, str], float]:
        return {
            (one.labels["WorkerId"], one.labels["lane"]): one.value
            for one in samples
            if one.name == "ray_rayzyme_search_seconds_count"
        }

    rows = np.eye(4, dtype=np.float32)
    made = ScreeningSet.from_arrays(list("ABCD"), rows, None, CheckpointRef("toy", "ab" * 32))
    path = made.save(tmp_path / "toy.arrow")
    others = searches(exported())
    shard = LongLivedActor(
        f"test-metrics-{uuid.uuid4()}", EmbeddingShard, (str(path), made.digest, 0, 4, "cpu", 1, 0.2),
        {"num_cpus": 0.1}, "rayzyme",
    )  # fmt: skip
    shard.start()
    try:
        for lane in ("online", "batch", "batch"):
            shard.submit("search", rows[:1], 1, None, lane).result()

        def counted(samples: list[Sample]) -> bool:
            ours = {lane: count for (worker, lane), count in searches(samples).items() if (worker, lane) not in others}
            return ours == {"online": 1, "batch": 2}

        wait_until(counted)
        told = cluster_metrics(get_settings())
    finally:
        shard.release()
    assert told['rayzyme_search_seconds_count{lane="batch"}'] >= 2
    assert not any("WorkerId" in name or name.startswith("ray_") for name in told)


def test_an_actor_logs_as_the_settings_of_its_program_say(tmp_path: Path, home: Path) -> None:
    """D72"""
    made = ScreeningSet.from_arrays(list("AB"), np.eye(2, dtype=np.float32), None, CheckpointRef("toy", "ab" * 32))
    path = made.save(tmp_path / "toy.arrow")
    settings = load_settings(overrides={"logging": {"file": True, "structured": True}})
    shard = LongLivedActor(
        f"test-logs-{uuid.uuid4()}", EmbeddingShard, (str(path), made.digest, 0, 2, "cpu", 1, 0.2, settings),
        {"num_cpus": 0.1}, "rayzyme",
    )  # fmt: skip
    shard.start()
    try:
        shard.wait_until_ready()
    finally:
        shard.release()
    lines = [json.loads(line) for line in (home / "logs" / "rayzyme.log").read_text().splitlines()]
    assert f"rows 0 to 2 of {path} are on cpu" in [line["message"] for line in lines]
