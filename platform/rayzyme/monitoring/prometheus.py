"""Metrics in Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from rayzyme.monitoring.metrics import SeriesSnapshot, exported_names

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render_prometheus(snapshot: Iterable[SeriesSnapshot]) -> str:
    """Write `MetricsCollector.snapshot()` as Prometheus reads it: counters end in `_total`, histograms have buckets."""
    lines: list[str] = []
    for definition, series in groupby(snapshot, key=lambda one: one.definition):
        name = exported_names(definition)[0]
        unit = f" Unit: {definition.unit}." if definition.unit else ""
        if definition.description or unit:
            lines.append(f"# HELP {name} {_escaped(f'{definition.description}{unit}'.strip())}")
        lines.append(f"# TYPE {name} {definition.kind}")
        for one in series:
            lines += _samples(name, one)
    return "".join(f"{line}\n" for line in lines)


def _samples(name: str, series: SeriesSnapshot) -> Iterator[str]:
    if series.definition.kind != "histogram":
        yield f"{name}{_labels(series.tags)} {_number(series.value)}"
        return
    for bound, count in series.buckets:
        yield f"{name}_bucket{_labels({**series.tags, 'le': _number(bound)})} {count}"
    yield f"{name}_sum{_labels(series.tags)} {_number(series.stats['sum'])}"
    yield f"{name}_count{_labels(series.tags)} {series.stats['count']}"


def _labels(tags: Mapping[str, str]) -> str:
    if not tags:
        return ""
    quoted = (f'{key}="{_escaped(value, quotes=True)}"' for key, value in tags.items())
    return "{" + ",".join(quoted) + "}"


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)
