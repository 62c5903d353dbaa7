"""Whether it works, by trying."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from rayzyme_serve import faults
from rayzyme_serve.service import Service, service_of

router = APIRouter(tags=["health"])


@router.get("/health", responses=faults.responses(503))
async def health(service: Annotated[Service, Depends(service_of)]) -> dict[str, Any]:
    """A real, tiny query against the actors; whoever asks within a second of another is told the same. It needs no token."""
    answer = await service.screening.try_out()
    return {"status": "ok", "best_hit": answer["results"][0]["hits"][0]["protein_id"], "timing": answer["timing"]}
