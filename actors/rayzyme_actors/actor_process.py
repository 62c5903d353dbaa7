"""What every long-lived actor does first in its process: settings, logs and metrics of the program that started it."""

from __future__ import annotations

from rayzyme.monitoring import configure_logging
from rayzyme.settings import Settings, get_settings, use_settings
from rayzyme_actors.metrics import export_metrics


def set_up_actor(settings: Settings | None) -> None:
    """Take over settings (None keeps those of this process), log as they say, and hand metrics to Ray.

    Lines on standard error are in Ray's log files of this worker, which its dashboard shows.
    """
    if settings is not None:
        use_settings(settings)
    own = get_settings()
    told = own.logging
    configure_logging(told.level, told.console, told.file, told.structured, own.home / "logs")
    export_metrics()
