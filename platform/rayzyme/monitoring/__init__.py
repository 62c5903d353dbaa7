"""Logging and progress: how Rayzyme tells what it is doing."""

from rayzyme.monitoring.logs import configure_logging, log_context

__all__ = ["configure_logging", "log_context"]
