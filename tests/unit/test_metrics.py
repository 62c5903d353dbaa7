"""Metrics: exact under threads, bounded in memory, one meaning per name, readable by Prometheus, described in one page."""

from __future__ import annotations

import ast
import logging
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayzyme.errors import ValidationError
from rayzyme.monitoring import MetricsCollector, get_metrics_collector
from rayzyme.monitoring.metric_names import METRICS, MetricDefinition
from rayzyme.monitoring.metrics import MOST_METRICS, MOST_SERIES
from rayzyme.monitoring.prometheus import render_prometheus

ROWS = re.compile(r"^\| `(\w+)` \| (\w+) \| (\S+) \| (.+?) \| (.+) \|$", re.MULTILINE)
KINDS = {"increment": "counter", "set_gauge": "gauge", "record": "histogram", "timed": "histogram"}


@pytest.fixture
def metrics() -> MetricsCollector:
    return MetricsCollector()


def test_the_pages_example_runs(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D71"""
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "metrics.md").read_text(), re.DOTALL)
    get_metrics_collector().reset()
    exec(example, {})
    assert capsys.readouterr().out == "45.2\n"
    get_metrics_collector().reset()


def test_recorded_values_give_their_statistics(metrics: MetricsCollector) -> None:
    """D71"""
    for value in (1.0, 2, 6.0):
        metrics.record("screening_time", value, unit="seconds")
    assert metrics.get_stats("screening_time") == {"count": 3, "min": 1.0, "max": 6.0, "mean": 3.0, "sum": 9.0}
    assert metrics.get_latest("screening_time") == 6.0
    assert metrics.get_all_stats() == {"screening_time": metrics.get_stats("screening_time")}


def test_a_timed_block_that_raises_is_not_recorded(metrics: MetricsCollector) -> None:
    with metrics.timed("duration"):
        pass
    with pytest.raises(KeyError), metrics.timed("duration"):
        raise KeyError
    assert metrics.get_stats("duration")["count"] == 1
    assert 0 <= metrics.get_stats("duration")["sum"] < 60
    assert metrics.snapshot()[0].definition.unit == "seconds"


def test_what_was_never_recorded_is_empty(metrics: MetricsCollector) -> None:
    """D71"""
    assert metrics.get_stats("unknown") == {}
    assert metrics.get_all_stats() == {}
    assert metrics.get_counter("unknown") == 0
    assert metrics.get_latest("unknown") is None
    assert metrics.snapshot() == []


def test_counters_and_gauges_are_kept_apart_by_tags_and_summed_without(metrics: MetricsCollector) -> None:
    metrics.increment("hits", tags={"level": "memory"})
    metrics.increment("hits", 2, tags={"level": "disk"})
    metrics.set_gauge("free", 7, tags={"device": 0})
    metrics.set_gauge("free", 5, tags={"device": 1})
    assert metrics.get_counter("hits", {"level": "disk"}) == 2
    assert metrics.get_counter("hits", {"level": "tape"}) == 0
    assert metrics.get_counter("hits") == 3
    assert metrics.get_latest("free", {"device": 0}) == 7
    assert metrics.get_latest("free") == 5


def test_the_order_of_tags_does_not_matter(metrics: MetricsCollector) -> None:
    metrics.increment("hits", tags={"a": "1", "b": "2"})
    metrics.increment("hits", tags={"b": "2", "a": "1"})
    assert metrics.get_counter("hits", {"b": "2", "a": "1"}) == 2


def test_tag_values_that_python_takes_for_equal_stay_apart(metrics: MetricsCollector) -> None:
    for value in (1, True, 1.0, "1"):
        metrics.increment("hits", tags={"value": value})
    counted = {series.tags["value"]: series.value for series in metrics.snapshot()}
    assert counted == {"1": 2, "True": 1, "1.0": 1}


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads change as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_counts_of_many_threads_add_up_from_the_first_use_of_a_name(
    metrics: MetricsCollector, hasty_threads: None
) -> None:
    together = threading.Barrier(4)

    def count() -> int:
        for number in range(400):
            together.wait(10)
            metrics.increment(f"counted_{number}", tags={"parity": str(number % 2)})
            metrics.record("recorded", number)
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(future.result(30) for future in [pool.submit(count) for _ in range(4)]) == 4
    assert [metrics.get_counter(f"counted_{number}") for number in range(400)] == [4] * 400
    assert metrics.get_stats("recorded")["sum"] == 4 * sum(range(400))


def test_a_snapshot_is_of_one_moment(metrics: MetricsCollector, hasty_threads: None) -> None:
    ended = threading.Event()

    def record() -> None:
        while not ended.is_set():
            metrics.record("size", 1)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(record) for _ in range(2)]
        snapshots = [series for _ in range(2_000) for series in metrics.snapshot()]
        ended.set()
        assert [writer.result(10) for writer in writers] == [None, None]
    assert [one for one in snapshots if one.buckets[-1][1] != one.stats["count"]] == []
    assert snapshots


@pytest.mark.parametrize("name", ["", "9lives", "with space", "with:colon", "ä", "a" * 201, None])
def test_a_malformed_name_is_refused(metrics: MetricsCollector, name: Any) -> None:
    with pytest.raises(ValidationError, match="name"):
        metrics.increment(name)


@pytest.mark.parametrize("key", ["le", "quantile", "__name__", "with space", "", 3])
def test_a_tag_key_that_prometheus_reserves_or_cannot_read_is_refused(metrics: MetricsCollector, key: Any) -> None:
    with pytest.raises(ValidationError, match="tag"):
        metrics.increment("hits", tags={key: "x"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True, 1 + 2j])
def test_a_value_that_is_no_finite_number_is_refused(metrics: MetricsCollector, value: Any) -> None:
    for write in (metrics.increment, metrics.set_gauge, metrics.record):
        with pytest.raises(ValidationError, match="value must be"):
            write("metric", value)
    assert metrics.snapshot() == []


def test_a_counter_does_not_fall(metrics: MetricsCollector) -> None:
    for amount in (-1, -0.5):
        with pytest.raises(ValidationError, match="set_gauge"):
            metrics.increment("hits", amount)


def test_a_name_keeps_its_kind_its_tags_and_its_unit(metrics: MetricsCollector) -> None:
    metrics.record("duration", 1, tags={"lane": "online"}, unit="seconds")
    with pytest.raises(ValidationError, match="duration is a histogram and cannot be used as a counter"):
        metrics.increment("duration", tags={"lane": "online"})
    with pytest.raises(ValidationError, match=r"has the tags \['lane'\], not \[\]"):
        metrics.record("duration", 1)
    with pytest.raises(ValidationError, match="measured in seconds, not in milliseconds"):
        metrics.record("duration", 1, tags={"lane": "online"}, unit="milliseconds")
    metrics.record("duration", 1, tags={"lane": "online"})
    assert metrics.get_stats("duration")["count"] == 2


def test_names_that_prometheus_could_not_tell_apart_are_refused(metrics: MetricsCollector) -> None:
    metrics.increment("hits")
    metrics.record("size", 1)
    with pytest.raises(ValidationError, match="hits_total and hits are both exported as hits_total"):
        metrics.increment("hits_total")
    with pytest.raises(ValidationError, match="size_count and size are both exported as size_count"):
        metrics.set_gauge("size_count", 1)
    metrics.set_gauge("hits_gauge", 1)


def test_series_beyond_the_bound_are_summed_up_with_one_warning(
    metrics: MetricsCollector, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(MOST_SERIES + 500):
            metrics.increment("hits", tags={"protein": f"P{number}"})
    assert metrics.get_counter("hits") == MOST_SERIES + 500
    assert metrics.get_counter("hits", {"protein": "other"}) == 500
    assert len(metrics.snapshot()) == MOST_SERIES + 1
    assert [record.message for record in caplog.records] == [
        f"hits has {MOST_SERIES} series; more are summed up as 'other'"
    ]


def test_names_beyond_the_bound_are_not_kept_with_one_warning(
    metrics: MetricsCollector, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []
    metrics.add_listener(lambda definition, _tags, _value: heard.append(definition.name))
    with caplog.at_level(logging.WARNING):
        for number in range(MOST_METRICS + 50):
            metrics.increment(f"hits_{number}")
            metrics.record(f"seconds_{number}", 1, unit="seconds" if number % 2 else None)
    assert len(metrics.snapshot()) == len(set(heard)) == MOST_METRICS
    assert len(caplog.records) == 1


def test_a_listener_hears_the_totals_so_far_and_every_change(metrics: MetricsCollector) -> None:
    metrics.increment("hits", 3, {"level": "disk"})
    metrics.set_gauge("free", 2)
    metrics.record("size", 8)
    heard: list[tuple[str, dict[str, str], float]] = []

    def listener(definition: MetricDefinition, tags: Any, value: float) -> None:
        heard.append((definition.name, dict(tags), value))

    metrics.add_listener(listener)
    metrics.add_listener(listener)
    assert heard == [("free", {}, 2), ("hits", {"level": "disk"}, 3)]
    heard.clear()
    metrics.increment("hits", 2, {"level": "disk"})
    metrics.record("size", 9)
    assert heard == [("hits", {"level": "disk"}, 2), ("size", {}, 9)]
    metrics.remove_listener(listener)
    metrics.set_gauge("free", 1)
    assert len(heard) == 2


def test_a_listener_that_raises_is_dropped_and_harms_nobody(
    metrics: MetricsCollector, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[float] = []

    def broken(*_: Any) -> None:
        raise RuntimeError("exporter gone")

    metrics.add_listener(broken)
    metrics.add_listener(lambda _definition, _tags, value: heard.append(value))
    metrics.increment("hits")
    metrics.increment("hits")
    assert metrics.get_counter("hits") == 2
    assert heard == [1, 1]
    assert len([record for record in caplog.records if "exporter gone" in (record.exc_text or "")]) == 1


def test_a_listener_may_use_the_collector(metrics: MetricsCollector) -> None:
    metrics.add_listener(lambda definition, _tags, _value: definition.name == "a" and metrics.increment("b"))
    metrics.increment("a")
    assert metrics.get_counter("b") == 1


def test_prometheus_reads_what_is_rendered(metrics: MetricsCollector) -> None:
    hostile = 'a\\b"c\nd'
    metrics.increment("hits", 2, {"who": hostile})
    metrics.increment("rayzyme_cache_hits_total", tags={"level": "memory"})
    metrics.set_gauge("free", -1.5e-7)
    for value in (0.001, 0.3, 1e9):
        metrics.record("wait", value, unit="seconds")

    families = {family.name: family for family in text_string_to_metric_families(render_prometheus(metrics.snapshot()))}
    assert {name: family.type for name, family in families.items()} == {
        "hits": "counter", "rayzyme_cache_hits": "counter", "free": "gauge", "wait": "histogram",
    }  # fmt: skip
    (hits,) = families["hits"].samples
    assert (hits.name, hits.labels, hits.value) == ("hits_total", {"who": hostile}, 2)
    assert families["free"].samples[0].value == -1.5e-7
    assert "answered, by level" in families["rayzyme_cache_hits"].documentation
    wait = {(sample.name, sample.labels.get("le")): sample.value for sample in families["wait"].samples}
    assert wait["wait_bucket", "0.001"] == 1
    assert wait["wait_bucket", "0.5"] == wait["wait_bucket", "3600.0"] == 2
    assert wait["wait_bucket", "+Inf"] == wait["wait_count", None] == 3
    assert wait["wait_sum", None] == pytest.approx(1e9 + 0.301)


def test_the_page_describes_every_metric_as_the_code_does(repository: Path) -> None:
    """D71, C62"""
    described = {
        name: MetricDefinition(
            name, kind, None if unit == "-" else unit, () if tags == "-" else tuple(re.findall(r"`(\w+)`", tags)), text
        )
        for name, kind, unit, tags, text in ROWS.findall((repository / "docs" / "metrics.md").read_text())
    }  # fmt: skip
    assert described == METRICS


def published(root: Path) -> Iterator[tuple[str, str, str, tuple[str, ...] | None]]:
    """(file and line, name, kind, tag keys where they can be read) of every metric that the code names with our prefix."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS):
                continue
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if not names or not str(names[0]).startswith("rayzyme_"):
                continue
            tags = [keyword.value for keyword in node.keywords if keyword.arg == "tags"]
            tags += [argument for argument in node.args[1:] if isinstance(argument, ast.Dict)]
            keys: tuple[str, ...] | None = ()
            if tags:
                readable = isinstance(tags[0], ast.Dict)
                keys = tuple(key.value for key in tags[0].keys) if readable else None  # type: ignore[attr-defined]
            yield f"{path.name}:{node.lineno}", str(names[0]), KINDS[node.func.attr], keys


def test_every_metric_that_the_code_publishes_is_described(repository: Path) -> None:
    """D71, C62"""
    faults = []
    for package in ("platform/rayzyme", "actors/rayzyme_actors", "serve/rayzyme_serve"):
        for place, name, kind, tags in published(repository / package):
            known = METRICS.get(name)
            if known is None:
                faults.append(f"{place}: {name} is not in metric_names.py")
            elif known.kind != kind or (tags is not None and set(tags) != set(known.tags)):
                faults.append(f"{place}: {name} is described as {known.kind} {known.tags}, used as {kind} {tags}")
    assert faults == []


def test_our_counters_are_named_as_they_are_exported() -> None:
    for metric in METRICS.values():
        assert metric.name.startswith("rayzyme_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.description.endswith("."), metric.name


def test_nobody_can_take_the_name_of_one_of_our_own_metrics() -> None:
    """D71"""
    collector = MetricsCollector()
    with pytest.raises(
        ValidationError, match=r"rayzyme_gpu_memory_free_mb is Rayzyme's own gauge with the tags \['device'\]"
    ):
        collector.increment("rayzyme_gpu_memory_free_mb")
    with pytest.raises(ValidationError, match="both exported as"):
        collector.increment("rayzyme_data_hits")
    collector.set_gauge("rayzyme_gpu_memory_free_mb", 1, tags={"device": "a"})
    collector.increment("rayzyme_data_hits_total")
