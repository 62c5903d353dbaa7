"""Jobs over HTTP: submit, list, follow, explain, cancel, fetch results. Routes hold no logic."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
