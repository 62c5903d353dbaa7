"""What is the same for every request: a number that its log lines carry, limits of its body, headers that browsers heed.

Plain ASGI, so that streams stay streams and a caller who hangs up is noticed.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayzyme.monitoring import get_metrics_collector, log_context
from rayzyme_serve import faults

logger = logging.getLogger(__name__)

REQUEST_ID: Final = "X-Request-ID"
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HUNG_UP: Final = 499
_LONGEST_PATH: Final = 500

# Answers are data; the page says itself what it needs.
_POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# The API's description starts itself with a script inside of its page.
_POLICY_OF_DOCS: Final = (
    f"{_POLICY}; img-src 'self' data:; connect-src 'self'; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestFrame:
    """Numbers each request, logs and measures it, and adds the headers; also where the answer is an error.

    The number is taken over from the header `X-Request-ID`, or made.
    """

    def __init__(self, app: ASGIApp, tells_id: bool, docs: str = "/docs") -> None:
        """Stand around an application.

        Args:
            app: The application.
            tells_id: Whether the answer's `X-Request-ID` is to be set here; Ray Serve sets it by itself.
            docs: Path of the API's description for people.
        """
        self._app, self._tells_id, self._docs = app, tells_id, docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status, begin = _HUNG_UP, time.perf_counter()
        is_answering = False

        async def send_framed(message: Message) -> None:
            nonlocal status, is_answering
            if message["type"] == "http.response.start":
                status, is_answering = message["status"], True
                self._add_headers(MutableHeaders(scope=message), scope["path"], request_id)
            await send(message)

        with log_context(request_id=request_id):
            try:
                await self._app(scope, receive, send_framed)
            except Exception as error:
                status = 500
                # Outside of here nobody knows the number, nor adds the headers.
                answer = scope["app"].exception_handlers.get(Exception)
                if is_answering or answer is None:
                    raise
                response = await answer(Request(scope, receive), error)
                await response(scope, receive, send_framed)
            finally:
                _note(scope, status, time.perf_counter() - begin)

    def _add_headers(self, headers: MutableHeaders, path: str, request_id: str) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        is_docs = path == self._docs or path.startswith(f"{self._docs}/")
        headers.setdefault("Content-Security-Policy", _POLICY_OF_DOCS if is_docs else _POLICY)
        # What one token reads is not for whoever uses the browser or the proxy next.
        headers.setdefault("Cache-Control", "no-store")
        if self._tells_id:
            headers[REQUEST_ID] = request_id


def _note(scope: Scope, status: int, seconds: float) -> None:
    # Paths have no end; their patterns are few. What matches none is told apart by nothing.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    tags = {"route": route, "method": method, "status": str(status)}
    get_metrics_collector().record("rayzyme_http_request_seconds", seconds, tags=tags, unit="seconds")
    logger.info(
        "%s %s %d",
        method,
        quote(scope["path"][:_LONGEST_PATH]),
        status,
        # Neither the query nor any header: secrets may stand in them.
        extra={
            **tags,
            "status": status,
            "seconds": round(seconds, 6),
            "client": (scope.get("client") or ("",))[0],
            "caller": scope["state"].get("caller", ""),
        },
    )


class BodyLimit:
    """Refuses bodies that are too large with 413: at once where their length is told, else as soon as they are too long."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """Stand around an application.

        Args:
            app: The application.
            most: Bytes of a body.
        """
        self._app, self._most = app, most
        self._detail = f"a body has at most {most:,} bytes (serve.max_body_mb)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("Content-Length", "")
        if told.isdecimal() and int(told) > self._most:
            await faults.error_response(413, self._detail, "TooLarge")(scope, receive, send)
            return
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                # Of this kind, since FastAPI makes a 400 of any other.
                raise HTTPException(413, self._detail)
            return message

        await self._app(scope, receive_limited, send)
