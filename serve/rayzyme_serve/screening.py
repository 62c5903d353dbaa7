"""Screening over HTTP. Routes hold no logic: they ask the same actors as the command line."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rayzyme.access import Role
from rayzyme.chemistry.reactions import atoms_on_larger_side
from rayzyme.screening.answer import ScreeningAnswer
from rayzyme.settings import get_settings
from rayzyme.settings_sections import ScreeningMode
from rayzyme_serve import faults
from rayzyme_serve.access import require
from rayzyme_serve.plain_json import PlainJson
from rayzyme_serve.service import Service, service_of

router = APIRouter(
    prefix="/v1", tags=["screening"], dependencies=[Depends(require(Role.VIEWER))], responses=faults.responses(401, 403, 429, 503)
)  # fmt: skip
Asked = Annotated[Service, Depends(service_of)]


class ScreenRequest(BaseModel):
    """What to screen; the answer is that of `rayzyme screen --output json`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reactions": ["OO.OO>>O=O.O.O"], "top_k": 5, "filters": {"ec": "1.11"}}]},
    )

    reactions: Annotated[list[str], Field(min_length=1, description="Reaction SMILES, reactants>>products.")]
    top_k: Annotated[int, Field(ge=1, description="Hits per reaction.")] = 100
    screening_set: Annotated[str, Field(max_length=256)] = "reference"
    checkpoint: Annotated[str, Field(max_length=256)] = "baseline"
    filters: Annotated[PlainJson | None, Field(description="Which proteins may be hits, by column of the set.")] = None
    mode: ScreeningMode = "interactive"

    @field_validator("reactions")
    @classmethod
    def _within_limits(cls, reactions: list[str]) -> list[str]:
        limits = get_settings().serve
        if len(reactions) > limits.max_reactions:
            raise ValueError(
                f"{len(reactions)} reactions are more than the {limits.max_reactions} that are answered at once; submit a job"
            )
        for number, reaction in enumerate(reactions, start=1):
            if len(reaction) > limits.max_reaction_length:
                raise ValueError(
                    f"reaction {number} has {len(reaction)} characters, more than {limits.max_reaction_length}"
                )
            if (atoms := atoms_on_larger_side(reaction)) > limits.max_atoms:
                raise ValueError(
                    f"reaction {number} has {atoms} atoms on one side, more than {limits.max_atoms}; submit a job"
                )
        return reactions

    @field_validator("top_k")
    @classmethod
    def _few_hits(cls, top_k: int) -> int:
        most = get_settings().serve.max_top_k
        if top_k > most:
            raise ValueError(f"at most {most} hits are answered; a job can have more")
        return top_k

    @model_validator(mode="after")
    def _few_hits_in_all(self) -> ScreenRequest:
        most, asked = get_settings().serve.max_hits, len(self.reactions) * self.top_k
        if asked > most:
            raise ValueError(f"{asked} hits are asked for in all, and {most} are answered at once; submit a job")
        return self


@router.post("/screen", response_model=ScreeningAnswer, responses=faults.responses(400, 404, 408, 409, 413, 422))
async def screen(request: ScreenRequest, service: Asked) -> Response:
    """Rank the proteins of a screening set for each reaction."""
    answer = await service.screening.screen(
        request.reactions,
        top_k=request.top_k,
        screening_set=request.screening_set,
        checkpoint=request.checkpoint,
        filters=request.filters,
        lane="online" if request.mode == "interactive" else "batch",
    )
    headers = {"Server-Timing": server_timing(answer["timing"])}
    # Not through `ScreeningAnswer` again, which only describes it: a thousand hits are to cost no more than their bytes.
    return Response(orjson.dumps(answer), media_type="application/json", headers=headers)


@router.get("/screening-sets")
def screening_sets(service: Asked) -> dict[str, Any]:
    """The sets known by name, with their sizes and columns."""
    return {"screening_sets": service.screening.screening_sets()}


@router.get("/checkpoints")
def checkpoints(service: Asked) -> dict[str, Any]:
    """The checkpoints known by name, and whether they are here."""
    return {"checkpoints": service.screening.checkpoints()}


def server_timing(timing: dict[str, float]) -> str:
    """Times in seconds as the header `Server-Timing` has them, in milliseconds."""
    return ", ".join(f"{name.removesuffix('_s')};dur={seconds * 1e3:.3f}" for name, seconds in timing.items())
