"""What running costs: mean and maximum of measured values, and the two that can be measured from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayzyme.errors import ValidationError
from rayzyme.monitoring.saved_values import LARGEST, read_count, read_number

_MB = 1 << 20


@dataclass(slots=True)
class Summary:
    """Mean and maximum of values."""

    count: int = 0
    total: float = 0.0
    largest: float | None = None

    def add(self, value: float) -> None:
        """Take in a value."""
        self.count += 1
        self.total += value
        self.largest = value if self.largest is None else max(self.largest, value)

    def told(self) -> dict[str, float | None]:
        """Mean and max; None without a value."""
        return {"mean": self.total / self.count if self.count else None, "max": self.largest}


class PerformanceFigures:
    """Measured values by name; `memory_usage` and `gpu_utilization` are always among them."""

    def __init__(self, saved: Mapping[str, list[Any]] | None = None) -> None:
        """Without a value, or with all that `save` gave; anything else is an AttributeError, TypeError or ValueError."""
        self._summaries = {"memory_usage": Summary(), "gpu_utilization": Summary()}
        for name, values in (saved or {}).items():
            count, *figures = values
            total, largest = (None if each is None else read_number(each) for each in figures)
            if total is None or (largest is None) != (count == 0):
                raise ValueError(f"{values!r} are no measured values")
            self._summaries[name] = Summary(read_count(count), total, largest)

    def add(self, values: Mapping[str, float]) -> None:
        """Take in values by name."""
        for name, value in values.items():
            self._summaries.setdefault(name, Summary()).add(value)

    def told(self) -> dict[str, dict[str, float | None]]:
        """Mean and max by name."""
        return {name: summary.told() for name, summary in self._summaries.items()}

    def save(self) -> dict[str, list[Any]]:
        """All there is, as JSON."""
        return {name: [each.count, each.total, each.largest] for name, each in self._summaries.items()}


def checked_measures(measures: Any) -> dict[str, float]:
    """Names and numbers that can be reckoned with.

    Raises:
        ValidationError: Anything else.
    """
    if measures is None:
        return {}
    if not isinstance(measures, dict) or not all(isinstance(name, str) for name in measures):
        raise ValidationError(f"performance_metrics must be a dict from names to numbers, not {measures!r}")
    checked = {}
    for name, value in measures.items():
        if isinstance(value, bool) or not hasattr(value, "__float__") or not abs(value) <= LARGEST:
            raise ValidationError(
                f"performance_metrics[{name!r}] must be a number from {-LARGEST:g} to {LARGEST:g}, not {value!r}"
            )
        checked[name] = float(value)
    return checked


def resident_memory() -> float | None:
    """Memory of this process in MB (2^20 bytes); None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.Process().memory_info().rss) / _MB


def gpu_utilization() -> float | None:
    """Mean utilization of the machine's NVIDIA GPUs in percent; None where there is none or it cannot be told."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        shares = [float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) for device in devices]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return sum(shares) / len(shares) if shares else None
