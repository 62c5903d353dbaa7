"""The Ray Serve application. `build` is the builder that Serve configuration files name: `rayzyme_serve.app:build`."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from ray import serve

from rayzyme.errors import ValidationError
from rayzyme.settings import Settings, get_settings
from rayzyme_serve.access import check_listening

APPLICATION: Final = "rayzyme"
"""Name of the application in Serve."""

_DRAIN_S: Final = 20.0
_RETRY_AFTER_S: Final = 1
_REPLICA_CPUS: Final = 0.01


@serve.deployment(name="online")
@serve.ingress()
class OnlineEndpoint:
    """A replica: the API, and what it remembers."""

    def __init__(self, settings: Settings) -> None:
        """Take over the settings of the program that starts the application."""
        from rayzyme_actors.actor_process import set_up_actor
        from rayzyme_actors.scheduler import start_scheduler

        set_up_actor(settings)
        self._settings = settings
        # Jobs may have been accepted before, by a cluster that is gone; where a scheduler lives already it is found.
        start_scheduler(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for this once."""
        from rayzyme_serve.api import create_api

        return create_api(self._settings)


def build(arguments: dict[str, Any] | None = None) -> serve.Application:
    """The Serve application, by the settings of this process.

    Raises:
        ValidationError: There are arguments: settings come from the file and the environment. Or it would listen beyond loopback
            and let everybody in.
        DatabaseError: The database, which knows the tokens, cannot be used.
    """
    if arguments:
        raise ValidationError(
            f"the application takes no arguments, and was given {', '.join(arguments)}; settings are read from "
            "RAYZYME_CONFIG and the environment"
        )
    settings = get_settings()
    check_listening(settings)
    deployment = OnlineEndpoint.options(
        # Who follows a job waits most of the time.
        max_ongoing_requests=settings.serve.max_running + settings.serve.max_followers,
        max_queued_requests=settings.serve.max_queued,
        # Whoever would wait for too long is told at once.
        backpressure_config={"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        graceful_shutdown_timeout_s=_DRAIN_S,
        ray_actor_options={"num_cpus": _REPLICA_CPUS},
        # A new replica answers before its old one ends.
        max_surge_percent=100,
        # Requests are told of once, by `RequestFrame`.
        logging_config={"enable_access_log": False},
    )
    application: serve.Application = deployment.bind(settings)
    return application
