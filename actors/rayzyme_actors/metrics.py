"""The way of this process's metrics to Ray, which exports them on every node for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rayzyme.monitoring import get_metrics_collector
from rayzyme.monitoring.metric_names import MetricDefinition
from rayzyme.monitoring.metrics import bucket_bounds, exported_names
from rayzyme_actors.lanes import Lane, Steps

_in_ray: dict[str, Any] = {}


def export_metrics() -> None:
    """Hand what this process measures to Ray from now on, counters and gauges with what they hold already.

    In Prometheus a metric has `ray_` before its name. Calling it again changes nothing. It must run in a process of Ray:
    an actor, a task, or a connected program.
    """
    get_metrics_collector().add_listener(_hand_over)


def noting_wait(start: Callable[[], Steps], actor: str, lane: Lane) -> Callable[[], Steps]:
    """`start` for a `LaneExecutor`, which records how long the work waited for its turn."""
    submitted = time.perf_counter()

    def begin() -> Steps:
        waited = time.perf_counter() - submitted
        get_metrics_collector().record(
            "rayzyme_lane_wait_seconds", waited, tags={"actor": actor, "lane": lane}, unit="seconds"
        )
        return start()

    return begin


def _hand_over(definition: MetricDefinition, tags: Mapping[str, str], value: float) -> None:
    metric = _in_ray.get(definition.name)
    if metric is None:
        metric = _in_ray[definition.name] = _declared(definition)
    if definition.kind == "gauge":
        metric.set(value, tags=tags)
    elif definition.kind == "histogram":
        metric.observe(value, tags=tags)
    elif value > 0:  # Ray refuses to count nothing
        metric.inc(value, tags=tags)


def _declared(definition: MetricDefinition) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    described: dict[str, Any] = {"description": definition.description, "tag_keys": definition.tags}
    if definition.kind == "gauge":
        return Gauge(definition.name, **described)
    if definition.kind == "histogram":
        return Histogram(definition.name, boundaries=list(bucket_bounds(definition)), **described)
    # Ray appends the `_total` itself.
    return Counter(exported_names(definition)[0].removesuffix("_total"), **described)
