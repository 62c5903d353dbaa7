"""What goes wrong, as HTTP tells it: every error body is {"detail", "code"}, and one table has the statuses.

What is outside of the table is a 500 with the number of an incident; what happened stands in the log, not in the answer.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from rayzyme import errors
from rayzyme.monitoring import get_metrics_collector

logger = logging.getLogger(__name__)

# The first class that fits counts.
STATUSES: Final[dict[type[Exception], int]] = {
    errors.InvalidInput: 400,
    errors.NotIdentified: 401,
    errors.NotPermitted: 403,
    errors.NotFound: 404,
    errors.CheckpointMismatch: 409,
    errors.IdempotencyConflict: 409,
    errors.NotReady: 409,
    errors.QuotaExceeded: 429,
    errors.TooManyRequests: 429,
    errors.DeviceUnavailable: 400,
    errors.ResourceError: 400,
    errors.InsufficientSpace: 503,
    errors.DatabaseError: 503,
    errors.WorkerLost: 503,
}
_RETRY_AFTER_S: Final = 1.0
# A place in the queue becomes free when a job has run.
_QUOTA_RETRY_S: Final = 10.0
_WORDS: Final = {400: "BadRequest", 404: "NotFound", 405: "MethodNotAllowed", 406: "NotAcceptable", 413: "TooLarge"}


class ErrorBody(BaseModel):
    """What every error answers."""

    detail: str = Field(description="What is wrong, where, and what to do.", examples=["unknown screening set 'mine'"])
    code: str = Field(description="The kind of error, which does not change.", examples=["NotFound"])


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, for its OpenAPI description."""
    return {status: {"model": ErrorBody} for status in statuses}


def install(api: FastAPI) -> None:
    """Have every error of an application told so."""
    for kind in STATUSES:
        api.add_exception_handler(kind, _tell)
    api.add_exception_handler(RequestValidationError, _tell_malformed)
    api.add_exception_handler(HTTPException, _tell_http)
    api.add_exception_handler(Exception, _tell_incident)


def error_response(status: int, detail: str, code: str, retry_after_s: float | None = None) -> JSONResponse:
    """An error as an answer; counted."""
    get_metrics_collector().increment("rayzyme_http_errors_total", tags={"code": code})
    headers = {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="rayzyme"'
    return JSONResponse({"detail": detail, "code": code}, status, headers)


async def _tell(_request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    usual = _QUOTA_RETRY_S if isinstance(error, errors.QuotaExceeded) else _RETRY_AFTER_S
    retry_after_s = getattr(error, "retry_after_s", usual) if status in (429, 503) else None
    return error_response(status, _text(error), type(error).__name__, retry_after_s)


async def _tell_malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if request.method == "POST" and "json" not in request.headers.get("content-type", ""):
        return error_response(422, "send the body as JSON, with the header Content-Type: application/json", "Malformed")
    # Where several forms are allowed, each has its own complaint: the first is enough.
    faults = {_place(fault): fault["msg"].removeprefix("Value error, ") for fault in reversed(error.errors())}
    return error_response(422, "; ".join(f"{place}: {told}" for place, told in reversed(faults.items())), "Malformed")


async def _tell_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), _WORDS.get(error.status_code, "HTTPError"))


async def _tell_incident(request: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(6)
    logger.error("incident %s in %s %s", incident, request.method, request.url.path, exc_info=error)
    detail = f"something went wrong here that should not; whoever runs this server finds it in the log as incident {incident}"
    return error_response(500, detail, "Incident")


def _place(fault: dict[str, Any]) -> str:
    """Where it is, without the names of forms that only the schema knows, such as `literal['low','high']`."""
    place: Sequence[Any] = fault["loc"]
    return ".".join(str(part) for part in place if part != "body" and "[" not in str(part)) or "the body"


def _text(error: Exception) -> str:
    # A KeyError's text is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
