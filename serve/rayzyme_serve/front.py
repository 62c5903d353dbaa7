"""What Ray Serve's proxies add for us: what they themselves answer is told as everything else is.

A proxy tells in plain text, in words of Serve, of a replica that died under a request (500), of one that is missing (503), of
too many requests (429) and of one that took too long (408). A replica's death is no fault of the request: it is a 503 here, for
it can be asked again. Serve finds `middlewares` by the environment variable that `rayzyme_actors.connection` sets for each Ray of
ours.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOLD: Final = {
    404: ("NotFound", "there is nothing here"),
    408: ("Timeout", "the answer took too long; ask for less at once, or submit a job"),
    429: ("TooManyRequests", "there are more requests than can be answered now; ask again in a moment"),
    503: ("WorkerLost", "the process that worked on this was lost, and is being replaced; ask again in a moment"),
}
_RETRY_AFTER_S: Final = "1"


class OwnErrors:
    """Has plain-text errors of a proxy told as `{"detail", "code"}`; what a replica answers passes as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        is_ours = is_answered = False

        async def send_told(message: Message) -> None:
            nonlocal is_ours, is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                is_ours = _is_of_the_proxy(message)
                if is_ours:
                    await _tell(message["status"], send)
            if not is_ours:
                await send(message)

        await self._app(scope, receive, send_told)
        if not is_answered:
            # So a proxy ends when the replica died; its server would make a bare 500 of it.
            await _tell(500, send)


def middlewares() -> list[Middleware]:
    """For Serve's proxies, whose errors are counted as ours are."""
    from rayzyme_actors.metrics import export_metrics

    export_metrics()
    return [Middleware(OwnErrors)]


def _is_of_the_proxy(message: Message) -> bool:
    kind = Headers(raw=message.get("headers", [])).get("content-type", "")
    return message["status"] >= 400 and kind.startswith("text/plain")


async def _tell(status: int, send: Send) -> None:
    # Not at the top: the proxies of a cluster that only hosts us need not load it all.
    from rayzyme_serve.faults import error_response

    status = 503 if status == 500 else status
    code, detail = _TOLD.get(status, ("HTTPError", "the request could not be answered"))
    answer = error_response(status, detail, code)
    if status in (429, 503):
        answer.headers["Retry-After"] = _RETRY_AFTER_S
    await send({"type": "http.response.start", "status": status, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": bytes(answer.body)})
