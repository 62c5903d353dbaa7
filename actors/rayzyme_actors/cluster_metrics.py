"""What the actors of a whole cluster measure, read where Ray shows it: at every node's metrics endpoint."""

from __future__ import annotations

import re

import ray

from rayzyme.settings import Settings
from rayzyme_actors.connection import connect, names_cluster

_PREFIX = "ray_rayzyme_"
_TIMEOUT_S = 5.0
# Which process and node it was, and by which library it came.
_RAYS_OWN_LABEL = re.compile("[A-Z]|otel_|ip$|pid$")


def cluster_metrics(settings: Settings) -> dict[str, float]:
    """Rayzyme's metrics over all nodes and processes, as Prometheus names them; none where no cluster is named.

    Counters and histograms are summed up; of gauges the highest is told. Ray exports every ten seconds.

    Raises:
        ConnectionError: The cluster, or the endpoint of one of its nodes, does not answer.
    """
    if not (ray.is_initialized() or names_cluster(settings)):
        return {}
    connect(settings)
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            text = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False).raise_for_status().text
        except httpx.HTTPError as error:
            raise ConnectionError(
                f"the metrics of node {node['NodeID'][:12]} cannot be read at {url}: {error}"
            ) from error
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith(_PREFIX) or sample.name.endswith("_bucket"):
                    continue
                own = {key: value for key, value in sample.labels.items() if not _RAYS_OWN_LABEL.match(key)}
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(own.items()))
                name = sample.name.removeprefix("ray_") + (f"{{{labels}}}" if labels else "")
                before = found.get(name, 0.0)
                found[name] = max(before, sample.value) if family.type == "gauge" else before + sample.value
    return found
