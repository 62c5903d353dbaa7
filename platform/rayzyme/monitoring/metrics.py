"""Counters, gauges and measured values of this process, in running sums: nothing grows with the number of calls.

A name means one thing: its first use fixes kind, tag keys and unit, and what disagrees later is refused, since exporters
could not tell the two apart. Tag values are bounded: beyond 1,000 series of a name the rest is summed up under `other`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rayzyme.errors import ValidationError
from rayzyme.monitoring.metric_names import METRICS, Kind, MetricDefinition

Tags = Mapping[str, Any]
Listener = Callable[[MetricDefinition, Mapping[str, str], float], None]
"""Called with each amount counted, value set or value recorded, inside the collector's lock: it must be quick."""

MOST_METRICS = 1_000
MOST_SERIES = 1_000
OTHER = "other"
"""The value of every tag in the series that sums up those beyond `MOST_SERIES`."""

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
)  # fmt: skip
_POWERS = tuple(float(f"1e{exponent}") for exponent in range(-3, 10))
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_TAG_KEY = re.compile(r"(?!__|le$|quantile$)[A-Za-z_][A-Za-z0-9_]{0,99}")

logger = logging.getLogger(__name__)


def bucket_bounds(definition: MetricDefinition) -> tuple[float, ...]:
    """Upper bounds of a histogram's buckets, growing, without infinity: 1 ms to 1 h for seconds, else powers of ten."""
    return _SECONDS if definition.unit == "seconds" else _POWERS


@dataclass(frozen=True, slots=True)
class SeriesSnapshot:
    """One metric under one set of tag values, at one moment.

    Attributes:
        definition: What is measured.
        tags: Tag keys and values.
        value: A counter's total, else the last value.
        stats: Of a histogram: count, min, max, mean, sum; else {}.
        buckets: Of a histogram: (upper bound, values at or below it), the last bound infinity; else ().
    """

    definition: MetricDefinition
    tags: Mapping[str, str]
    value: float
    stats: Mapping[str, float]
    buckets: tuple[tuple[float, int], ...]


class MetricsCollector:
    """What `get_metrics_collector` gives; threads may share it."""

    def __init__(self) -> None:
        # Reentrant: a finaliser that counts something may run in a thread that is in here already.
        self._lock = threading.RLock()
        self._listeners: tuple[Listener, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Forget every metric; for tests. Listeners stay."""
        with self._lock:
            self._metrics: dict[str, _Metric] = {}
            # Rayzyme's own are taken before anybody asks.
            self._exported_names = {
                exported: name for name, metric in METRICS.items() for exported in exported_names(metric)
            }
            # Straight from what callers give, a name or (name, *tags.items()), to the series: the quick way in.
            self._quick: dict[object, _Series] = {}
            self._unkept: dict[Kind, _Series] = {}

    def increment(self, name: str, amount: float = 1, tags: Tags | None = None) -> None:
        """Add to a counter.

        Args:
            name: Letters, digits and underscores.
            amount: Finite, not negative.
            tags: Keys and values that the count is kept apart by; few different values.

        Raises:
            ValidationError: The name or a tag key is malformed, the amount is negative or no number, or the name is known
                with another kind or other tag keys.
        """
        if type(amount) is not int:
            amount = _finite(name, amount)
        if amount < 0:
            raise ValidationError(f"{name} counts and cannot change by {amount}; what may fall is set with set_gauge")
        with self._lock:
            series = self._series(name, "counter", tags)
            series.value += amount
            if self._listeners:
                self._tell(series, amount)

    def set_gauge(self, name: str, value: float, tags: Tags | None = None) -> None:
        """Replace a gauge's value.

        Raises:
            ValidationError: As for `increment`; or the value is not finite.
        """
        number = _finite(name, value)
        with self._lock:
            series = self._series(name, "gauge", tags)
            series.value = number
            series.metric.latest = series
            if self._listeners:
                self._tell(series, number)

    def record(self, name: str, value: float, tags: Tags | None = None, unit: str | None = None) -> None:
        """Note a measured value: a duration, a size.

        Args:
            name: Letters, digits and underscores.
            value: Finite.
            tags: Keys and values that the measurements are kept apart by; few different values.
            unit: Of the value, a word in the plural as "seconds"; None says nothing about it.

        Raises:
            ValidationError: As for `increment`; or the value is not finite, or had another unit before.
        """
        number = _finite(name, value)
        with self._lock:
            series = self._series(name, "histogram", tags, unit)
            series.add(number)
            series.metric.latest = series
            if self._listeners:
                self._tell(series, number)

    @contextmanager
    def timed(self, name: str, tags: Tags | None = None) -> Iterator[None]:
        """Record the seconds that the block takes, unless it raises."""
        begin = time.perf_counter()
        yield
        self.record(name, time.perf_counter() - begin, tags, "seconds")

    def get_counter(self, name: str, tags: Tags | None = None) -> float:
        """A counter's total, without `tags` the sum over all of them; 0 where nothing was counted."""
        with self._lock:
            return sum(series.value for series in self._matching(name, tags) if series.kind == "counter")

    def get_latest(self, name: str, tags: Tags | None = None) -> float | None:
        """The value that was set or recorded last, without `tags` under whichever; None where there is none."""
        with self._lock:
            if tags is None:
                metric = self._metrics.get(name)
                return None if metric is None or metric.latest is None else metric.latest.value
            return next((series.value for series in self._matching(name, tags) if series.kind != "counter"), None)

    def get_stats(self, name: str, tags: Tags | None = None) -> dict[str, float]:
        """count, min, max, mean and sum of what was recorded, without `tags` over all of them; {} where nothing was."""
        with self._lock:
            return _stats(self._matching(name, tags))

    def get_all_stats(self) -> dict[str, dict[str, float]]:
        """`get_stats` of every name that was recorded."""
        with self._lock:
            return {name: stats for name in sorted(self._metrics) if (stats := self.get_stats(name))}

    def snapshot(self) -> list[SeriesSnapshot]:
        """Everything at one moment, sorted by name and tag values."""
        with self._lock:
            return [
                series.snapshot()
                for _, metric in sorted(self._metrics.items())
                for _, series in sorted(metric.series.items())
            ]

    def add_listener(self, listener: Listener) -> None:
        """Have `listener` hear of everything from now on, and first of the totals and gauges there are.

        Of values recorded earlier only sums are known, so it is not told those. One that raises is logged and dropped.
        """
        with self._lock:
            if listener in self._listeners:
                return
            for series in self.snapshot():
                if series.definition.kind != "histogram":
                    listener(series.definition, series.tags, series.value)
            self._listeners = (*self._listeners, listener)

    def remove_listener(self, listener: Listener) -> None:
        """Tell `listener` nothing more."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    def _tell(self, series: _Series, value: float) -> None:
        if not series.metric.is_kept:
            return
        for listener in self._listeners:
            try:
                listener(series.metric.definition, series.tags, value)
            except Exception:
                self.remove_listener(listener)
                logger.exception("metrics are no longer given to %r, which failed", listener)

    def _matching(self, name: str, tags: Tags | None) -> Iterable[_Series]:
        metric = self._metrics.get(name)
        if metric is None:
            return ()
        if tags is None:
            return metric.series.values()
        wanted = {key: str(value) for key, value in tags.items()}
        return [series for series in metric.series.values() if series.tags == wanted]

    def _series(self, name: str, kind: Kind, tags: Tags | None, unit: str | None = None) -> _Series:
        """The series to write to, made where it is new."""
        quick = name if tags is None else (name, *tags.items())
        try:
            series = self._quick[quick]
        except (KeyError, TypeError):
            series = self._slowly_found(name, kind, tags or {}, unit, quick)
        if series.kind != kind:
            raise ValidationError(f"{name} is a {series.kind} and cannot be used as a {kind}; choose another name")
        if unit is not None and unit != series.metric.definition.unit and series.metric.is_kept:
            known = series.metric.definition.unit or "no unit"
            raise ValidationError(f"{name} is measured in {known}, not in {unit}; convert it, or choose another name")
        return series

    def _slowly_found(self, name: str, kind: Kind, tags: Tags, unit: str | None, quick: object) -> _Series:
        metric = self._metrics.get(name)
        if metric is None:
            definition = _define(name, kind, tags, unit)
            if len(self._metrics) >= MOST_METRICS:
                return self._unkept_series(definition)
            self._reserve(definition)
            metric = self._metrics[name] = _Metric(definition, is_kept=True)
        keys = metric.definition.tags
        if tags.keys() != set(keys):
            raise ValidationError(f"{name} has the tags {list(keys)}, not {list(tags)}; a metric keeps its tags")
        values = tuple(str(tags[key]) for key in keys)
        if values not in metric.series and len(metric.series) >= MOST_SERIES:
            if not metric.is_full:
                logger.warning("%s has %d series; more are summed up as %r", name, MOST_SERIES, OTHER)
                metric.is_full = True
            # Not entered in the quick way, which would grow without bound.
            values = (OTHER,) * len(keys)
            return metric.series.setdefault(values, _Series(metric, values))
        series = metric.series.setdefault(values, _Series(metric, values))
        # Values that are no text may be equal without reading the same, as 1 and True are.
        if all(type(value) is str for value in tags.values()):
            self._quick[quick] = series
        return series

    def _unkept_series(self, definition: MetricDefinition) -> _Series:
        if not self._unkept:
            logger.warning("%s and later metrics are not kept: there are %d already", definition.name, MOST_METRICS)
        metric = _Metric(definition, is_kept=False)
        return self._unkept.setdefault(definition.kind, _Series(metric, (OTHER,) * len(definition.tags)))

    def _reserve(self, definition: MetricDefinition) -> None:
        """Refuse a name whose exported form another one has: `hits` and `hits_total` are the same to Prometheus."""
        names = exported_names(definition)
        for exported in names:
            other = self._exported_names.get(exported, definition.name)
            if other != definition.name:
                raise ValidationError(f"{definition.name} and {other} are both exported as {exported}; rename one")
        self._exported_names.update(dict.fromkeys(names, definition.name))


def exported_names(definition: MetricDefinition) -> tuple[str, ...]:
    """The names that a metric takes in Prometheus' format, the one that stands for all first."""
    name = definition.name
    if definition.kind == "counter":
        return (f"{name.removesuffix('_total')}_total", name.removesuffix("_total"))
    if definition.kind == "gauge":
        return (name,)
    return (name, f"{name}_bucket", f"{name}_count", f"{name}_sum")


_process_collector = MetricsCollector()

# Else a child inherits the lock of a thread that it does not have.
os.register_at_fork(
    before=_process_collector._lock.acquire,
    after_in_parent=_process_collector._lock.release,
    after_in_child=_process_collector._lock.release,
)


def get_metrics_collector() -> MetricsCollector:
    """The collector of this process."""
    return _process_collector


class _Metric:
    __slots__ = ("definition", "is_full", "is_kept", "latest", "series")

    def __init__(self, definition: MetricDefinition, is_kept: bool) -> None:
        self.definition, self.is_kept = definition, is_kept
        self.series: dict[tuple[str, ...], _Series] = {}
        self.latest: _Series | None = None
        self.is_full = False


class _Series:
    __slots__ = ("bounds", "buckets", "count", "kind", "largest", "metric", "smallest", "tags", "total", "value")

    def __init__(self, metric: _Metric, values: tuple[str, ...]) -> None:
        definition = metric.definition
        self.metric, self.kind = metric, definition.kind
        self.tags = dict(zip(definition.tags, values, strict=True))
        self.bounds = bucket_bounds(definition) if self.kind == "histogram" else ()
        self.buckets = [0] * (len(self.bounds) + 1)
        self.value: float = 0
        self.count, self.total, self.smallest, self.largest = 0, 0.0, math.inf, -math.inf

    def add(self, value: float) -> None:
        self.value = value
        self.count += 1
        self.total += value
        self.smallest = min(self.smallest, value)
        self.largest = max(self.largest, value)
        self.buckets[bisect_left(self.bounds, value)] += 1

    def snapshot(self) -> SeriesSnapshot:
        bounds = (*self.bounds, math.inf) if self.kind == "histogram" else ()
        buckets = tuple(zip(bounds, accumulate(self.buckets), strict=False))
        return SeriesSnapshot(self.metric.definition, self.tags.copy(), self.value, _stats([self]), buckets)


def _stats(series: Iterable[_Series]) -> dict[str, float]:
    filled = [one for one in series if one.count]
    if not filled:
        return {}
    count, total = sum(one.count for one in filled), math.fsum(one.total for one in filled)
    return {
        "count": count,
        "min": min(one.smallest for one in filled),
        "max": max(one.largest for one in filled),
        "mean": total / count,
        "sum": total,
    }


def _define(name: str, kind: Kind, tags: Tags, unit: str | None) -> MetricDefinition:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(f"a metric's name is letters, digits and underscores, 200 at most, not {name!r}")
    for key in tags:
        if not isinstance(key, str) or not _TAG_KEY.fullmatch(key):
            raise ValidationError(f"{name}: {key!r} cannot be the key of a tag; use letters, digits and underscores")
    known = METRICS.get(name)
    if known is None:
        return MetricDefinition(name, kind, unit, tuple(sorted(tags)))
    if (known.kind, set(known.tags)) == (kind, set(tags)):
        return known
    # Else whoever came first would decide for the room that publishes it.
    raise ValidationError(f"{name} is Rayzyme's own {known.kind} with the tags {list(known.tags)}; use another name")


def _finite(name: str, value: Any) -> float:
    if isinstance(value, (bool, str, bytes)):
        raise ValidationError(f"{name}: a value must be a number, not {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValidationError(f"{name}: a value must be a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValidationError(f"{name}: a value must be finite, not {value!r}")
    return number
