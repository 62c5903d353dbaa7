"""What the routes ask: one `Service` for each replica, found at `request.app.state.service`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from fastapi import Request

from rayzyme.settings import Settings

if TYPE_CHECKING:
    from rayzyme.jobs.store import JobStore
    from rayzyme.jobs.watching import JobWatcher
    from rayzyme_actors.dispatcher import Dispatcher
    from rayzyme_actors.online import OnlineScreening


class Service:
    """Everything behind the routes, made when it is first asked for.

    Attributes:
        settings: In force.
        followers: Streams of jobs' events that are open.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.followers = 0

    @cached_property
    def screening(self) -> OnlineScreening:
        """Screening on the long-lived actors."""
        from rayzyme_actors.online import OnlineScreening

        return OnlineScreening(self.settings)

    @cached_property
    def store(self) -> JobStore:
        """The jobs."""
        from rayzyme_actors.scheduler_settings import store_of

        return store_of(self.settings)

    @cached_property
    def watcher(self) -> JobWatcher:
        """Who looks at the jobs that somebody follows."""
        from rayzyme.jobs.watching import JobWatcher

        return JobWatcher(self.store)

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """Where jobs are submitted."""
        from rayzyme_actors.dispatcher import Dispatcher

        return Dispatcher()


async def service_of(request: Request) -> Service:
    """The service of the application that a request came to; not a plain function, which FastAPI would call in a thread."""
    service: Service = request.app.state.service
    return service
