"""The status report: one versioned dict, in which a section that fails harms no other."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from rayzyme.errors import ValidationError
from rayzyme.monitoring import MetricsCollector
from rayzyme.monitoring.status import StatusReporter, status_report, status_rows


class Gpus:
    def get_available_gpus(self) -> list[dict[str, Any]]:
        return [{"index": 0, "name": "A100", "memory_total": 40000, "compute_capability": (8, 0)}]


class Cache:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def get_stats(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"l1_memory": {"entries": 3}}


class Data:
    def get_cache_stats(self) -> dict[str, Any]:
        return {"usage_percent": 0.0}


def test_a_report_holds_host_process_memory_and_metrics() -> None:
    metrics = MetricsCollector()
    metrics.increment("hits", 2, tags={"level": "disk"})
    metrics.record("wait", 3.0)
    report = status_report(metrics=metrics, clock=lambda: 1_800_000_000.0)
    assert list(report) == ["schema", "time", "host", "process", "memory", "metrics"]
    assert (report["schema"], report["time"]) == ("rayzyme.status/1", "2027-01-15T08:00:00Z")
    assert report["process"]["pid"] == os.getpid()
    assert 1 < report["process"]["memory_mb"] < report["memory"]["total_mb"]
    assert 0 < report["memory"]["available_mb"] <= report["memory"]["total_mb"]
    assert report["host"]["cpus"] >= report["host"]["usable_cpus"] >= 1
    assert report["metrics"] == {
        'hits{level="disk"}': 2, "wait": {"count": 1, "min": 3.0, "max": 3.0, "mean": 3.0, "sum": 3.0},
    }  # fmt: skip
    json.dumps(report, allow_nan=False)


def test_gpus_caches_and_the_data_store_are_asked_where_they_are_given() -> None:
    report = status_report(gpus=Gpus(), caches={"esm": Cache()}, data=Data())
    assert report["gpus"] == Gpus().get_available_gpus()
    assert report["caches"] == {"esm": {"l1_memory": {"entries": 3}}}
    assert report["data"] == {"usage_percent": 0.0}
    json.dumps(report)


def test_a_section_that_fails_reports_its_error_and_breaks_no_other() -> None:
    reporter = StatusReporter(gpus=Gpus(), caches={"good": Cache(), "bad": Cache(OSError("disk gone"))})
    reporter.register("queue", lambda: {"waiting": 1 // 0})
    report = reporter.report()
    assert report["queue"] == {"error": "ZeroDivisionError: integer division or modulo by zero"}
    assert report["caches"] == {"good": {"l1_memory": {"entries": 3}}, "bad": {"error": "OSError: disk gone"}}
    assert report["gpus"][0]["name"] == "A100"
    assert "error" not in report["host"]


def test_a_section_of_the_same_name_replaces_the_first() -> None:
    reporter = StatusReporter()
    reporter.register("host", lambda: {"name": "mine"})
    assert reporter.report()["host"] == {"name": "mine"}


@pytest.mark.parametrize("name", ["schema", "time"])
def test_the_reports_own_keys_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name must not be"):
        StatusReporter().register(name, dict)


def test_a_report_is_shown_as_rows() -> None:
    report = {
        "schema": "rayzyme.status/1", "time": "now", "gpus": Gpus().get_available_gpus(), "caches": {},
        "metrics": {"wait": {"mean": 1 / 3}}, "queue": {"error": "OSError: gone"},
    }  # fmt: skip
    assert status_rows(report) == [
        ("report", "schema", "rayzyme.status/1"),
        ("report", "time", "now"),
        ("gpus", "0.index", "0"),
        ("gpus", "0.name", "A100"),
        ("gpus", "0.memory_total", "40000"),
        ("gpus", "0.compute_capability", "8, 0"),
        ("caches", "", "none"),
        ("metrics", "wait.mean", "0.333333"),
        ("queue", "error", "OSError: gone"),
    ]
