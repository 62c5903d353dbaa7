"""Telling what is being done: progress, metrics, structured logs, status."""

from rayzyme.monitoring.logs import configure_logging, log_context
from rayzyme.monitoring.metrics import MetricsCollector, get_metrics_collector
from rayzyme.monitoring.progress import ProgressTracker

__all__ = ["MetricsCollector", "ProgressTracker", "configure_logging", "get_metrics_collector", "log_context"]
