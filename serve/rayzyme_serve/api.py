"""The HTTP API as one FastAPI application; `rayzyme_serve.app` puts it on Ray Serve, tests ask it directly."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import rayzyme
from rayzyme.settings import Settings
from rayzyme_serve import access, faults, health, jobs, page, screening, status
from rayzyme_serve.service import Service


def create_api(settings: Settings) -> FastAPI:
    """The application; what it asks is made when it is first needed."""
    api: FastAPI = FastAPIOffline(
        title="Rayzyme",
        version=rayzyme.__version__,
        summary="Find the enzymes that may catalyse a reaction.",
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    api.state.service = Service(settings)
    for router in (screening.router, jobs.router, health.router, status.router, page.router):
        api.include_router(router)
    faults.install(api)
    access.install(api, settings)
    return api
