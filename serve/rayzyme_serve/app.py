"""The HTTP screening endpoint, a Ray Serve application. Routes hold no logic: they ask the same actors as the command line.

`build` is the builder that Serve configuration files name: `import_path: rayzyme_serve.app:build`.
"""

# No `from __future__ import annotations` here: Serve rebuilds the routes, and FastAPI then cannot resolve text annotations.

from functools import lru_cache
from typing import Annotated, Any

import fastapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

import rayzyme
from rayzyme import errors
from rayzyme.screening.answer import ScreeningAnswer
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import ScreeningMode, get_settings

# The one table from errors to HTTP statuses; the first class that fits counts.
STATUSES: dict[type[errors.RayzymeError], int] = {
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.CheckpointMismatch: 409,
    errors.DeviceUnavailable: 422,
    errors.WorkerLost: 503,
    errors.RayzymeError: 500,
}
_HEALTH_REACTION = "OO.OO>>O=O.O.O"
_SCREENERS_KEPT = 4

api = fastapi.FastAPI(
    title="Rayzyme", version=rayzyme.__version__, summary="Find the enzymes that may catalyse a reaction."
)


class ScreenRequest(BaseModel):
    """What to screen; the answer is that of `rayzyme screen --output json`."""

    model_config = ConfigDict(extra="forbid")

    reactions: Annotated[list[Annotated[str, Field(max_length=20_000)]], Field(min_length=1, max_length=1_000)]
    top_k: Annotated[int, Field(ge=1, le=10_000)] = 100
    screening_set: str = "reference"
    checkpoint: str = "baseline"
    filters: dict[str, Any] | None = None
    mode: ScreeningMode = "interactive"


@api.exception_handler(errors.RayzymeError)
async def _tell(_request: fastapi.Request, error: errors.RayzymeError) -> JSONResponse:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return JSONResponse({"error": {"type": type(error).__name__, "message": str(error)}}, status)


@serve.deployment(
    name="screening",
    max_ongoing_requests=64,
    max_queued_requests=256,
    ray_actor_options={"num_cpus": 0.25},
)
@serve.ingress(api)
class ScreeningService:
    """The ingress: keeps the handles of the actors that it asks."""

    def __init__(self) -> None:
        """Start with no actors; each checkpoint and set is found or started when it is first asked for."""
        from rayzyme_actors.screening import Screener

        # Only what the server's owner has put in place by name: a path from the wire is never opened.
        self._screener = lru_cache(maxsize=_SCREENERS_KEPT)(Screener)

    @api.post("/v1/screen")
    def screen(self, request: ScreenRequest) -> ScreeningAnswer:
        """Rank the proteins of a screening set for each reaction."""
        self._require_known(request)
        screener = self._screener(request.checkpoint, request.screening_set)
        return screener.screen(request.reactions, request.top_k, request.filters, mode=request.mode)

    @api.get("/v1/screening-sets")
    def screening_sets(self) -> dict[str, Any]:
        """The sets known by name."""
        library = ScreeningSetLibrary(get_settings().screening_sets)
        return {"screening_sets": [{"name": name, **library.open(name).info()} for name in library.names()]}

    @api.get("/v1/checkpoints")
    def checkpoints(self) -> dict[str, Any]:
        """The checkpoints known by name."""
        from rayzyme.models.checkpoints import default_registry

        return {
            "checkpoints": [
                {"name": info.name, "present": info.present, "description": info.description}
                for info in default_registry().list()
            ]
        }

    @api.get("/health")
    def health(self) -> dict[str, Any]:
        """A real, tiny query."""
        answer = self._screener("baseline", "reference").screen([_HEALTH_REACTION], 1)
        return {"status": "ok", "best_hit": answer["results"][0]["hits"][0]["protein_id"], "timing": answer["timing"]}

    def _require_known(self, request: ScreenRequest) -> None:
        from rayzyme.models.checkpoints import default_registry

        library = ScreeningSetLibrary(get_settings().screening_sets)
        for kind, name, known in (
            ("checkpoint", request.checkpoint, default_registry().names()),
            ("screening set", request.screening_set, library.names()),
        ):
            if name not in known:
                raise errors.NotFound(f"unknown {kind} {name!r}; this server knows: {', '.join(known)}")


def build(_arguments: dict[str, str] | None = None) -> serve.Application:
    """The Serve application."""
    application: serve.Application = ScreeningService.bind()
    return application
