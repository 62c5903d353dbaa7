"""What a process and its machine look like now, as one dict: the answer to "how is it doing?".

Sections are functions under a name. One that fails reports its error in its place; the others are not touched by it.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from rayzyme import __version__
from rayzyme.errors import ValidationError
from rayzyme.monitoring.metrics import MetricsCollector, SeriesSnapshot, get_metrics_collector

SCHEMA = "rayzyme.status/1"
Section = Callable[[], Any]
"""Gives what JSON can hold."""

_MB = 2**20
_RESERVED = ("schema", "time")

logger = logging.getLogger(__name__)


class ListsGpus(Protocol):
    """As `rayzyme.resources.GPUManager`."""

    def get_available_gpus(self) -> list[dict[str, Any]]:
        """One dict per GPU."""
        ...


class HasStats(Protocol):
    """As `rayzyme.resources.TwoLevelCache`."""

    def get_stats(self) -> Mapping[str, Any]:
        """Its figures."""
        ...


class HasCacheStats(Protocol):
    """As `rayzyme.storage.DataHandler`."""

    def get_cache_stats(self) -> Mapping[str, Any]:
        """Its figures."""
        ...


class StatusReporter:
    """Sections by name, asked one after the other."""

    def __init__(
        self,
        gpus: ListsGpus | None = None,
        caches: Mapping[str, HasStats] | None = None,
        data: HasCacheStats | None = None,
        metrics: MetricsCollector | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Register host, process, memory and metrics, and what is given.

        Args:
            gpus: Whose devices are listed.
            caches: By the names that they get in the report.
            data: The data store.
            metrics: None takes this process's.
            clock: Seconds since 1970.
        """
        self._clock = clock
        self._sections: dict[str, Section] = {}
        self.register("host", _host)
        self.register("process", _process)
        self.register("memory", _memory)
        if gpus is not None:
            self.register("gpus", gpus.get_available_gpus)
        if caches is not None:
            cached = dict(caches)
            self.register("caches", lambda: {name: _asked(cache.get_stats) for name, cache in cached.items()})
        if data is not None:
            self.register("data", data.get_cache_stats)
        collector = metrics or get_metrics_collector()
        self.register("metrics", lambda: dict(map(_metric, collector.snapshot())))

    def register(self, name: str, section: Section) -> None:
        """Add a section, or replace the one of that name.

        Raises:
            ValidationError: The name is one that the report itself uses.
        """
        if name in _RESERVED:
            raise ValidationError(f"name must not be {name!r}, which every report has; choose another")
        self._sections[name] = section

    def report(self) -> dict[str, Any]:
        """`schema`, `time` (UTC) and each section; a section that failed is `{"error": ...}`. JSON can hold it."""
        taken = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return {
            "schema": SCHEMA,
            "time": taken,
            **{name: _asked(section) for name, section in list(self._sections.items())},
        }


def status_report(**given: Any) -> dict[str, Any]:
    """`StatusReporter(**given).report()`."""
    return StatusReporter(**given).report()


def status_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A report as rows of text: section, what, value; what is nested is joined with dots."""
    rows = [("report", key, str(report[key])) for key in _RESERVED]
    for section, content in report.items():
        if section not in _RESERVED:
            rows += [(section, ".".join(keys), text) for keys, text in _flat(content, ())] or [(section, "", "none")]
    return rows


def _flat(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, (*keys, str(key)))
    elif isinstance(content, (list, tuple)) and any(isinstance(item, Mapping) for item in content):
        for number, value in enumerate(content):
            yield from _flat(value, (*keys, str(number)))
    elif isinstance(content, (list, tuple)):
        if content:
            yield keys, ", ".join(map(str, content))
    else:
        yield keys, f"{content:.6g}" if isinstance(content, float) else str(content)


def _asked(section: Section) -> Any:
    try:
        return section()
    except Exception as error:
        logger.debug("a section of the status report failed", exc_info=True)
        return {"error": f"{type(error).__name__}: {error}"}


def _host() -> dict[str, Any]:
    return {
        "name": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
    }


def _process() -> dict[str, Any]:
    import psutil

    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return {
            "pid": process.pid,
            "rayzyme": __version__,
            "python": sys.version.split()[0],
            "started": datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="seconds"),
            "cpu_seconds": times.user + times.system,
            "memory_mb": process.memory_info().rss / _MB,
            "threads": threading.active_count(),
            "open_files": process.num_fds(),
        }


def _memory() -> dict[str, Any]:
    import psutil

    from rayzyme.resources.memory import available_memory

    return {"total_mb": psutil.virtual_memory().total / _MB, "available_mb": available_memory() / _MB}


def _metric(series: SeriesSnapshot) -> tuple[str, Any]:
    labels = ",".join(f'{key}="{value}"' for key, value in series.tags.items())
    name = f"{series.definition.name}{{{labels}}}" if labels else series.definition.name
    return name, dict(series.stats) if series.definition.kind == "histogram" else series.value
