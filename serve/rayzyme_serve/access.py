"""Who asks, and what they may: bearer tokens, roles, limits. Installed around every route.

A revocation counts in every replica within 5 s, the time for which a replica remembers whose a token is.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import cache, cached_property
from typing import Annotated, Final
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rayzyme.access import Caller, RateLimiter, Role, TokenStore, is_loopback, local_caller
from rayzyme.access.refusals import RefusalThinning, note_refusal
from rayzyme.database import open_database
from rayzyme.errors import DatabaseError, NotIdentified, NotPermitted, TooManyRequests, ValidationError
from rayzyme.settings import Settings
from rayzyme.settings_sections import ServeSettings
from rayzyme_serve.request_frame import BodyLimit, RequestFrame

logger = logging.getLogger(__name__)

REMEMBERED_S: Final = 5.0
"""Seconds after which a replica asks the database again whose a token is."""

_LONGEST_PATH: Final = 200
_LONGEST_HOST: Final = 100
_OF_PROXIES: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")
_bearer = HTTPBearer(auto_error=False, description="A token that `rayzyme token create` made.")


@cache
def require(role: Role) -> Callable[..., Awaitable[Caller]]:
    """A dependency of routes: who asks, refused with 401, 403 or 429 unless they have `role` at least."""

    async def caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> Caller:
        doorkeeper: Doorkeeper = request.app.state.doorkeeper
        return await doorkeeper.let_in(request, None if credentials is None else credentials.credentials, role)

    return caller


def install(api: FastAPI, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
    """Have an application ask who comes, refuse what is too large, and answer with the headers that browsers heed.

    Args:
        api: The application; `api.state.service` tells where the tokens are.
        settings: In force.
        clock: Seconds, never going back.
    """
    api.state.doorkeeper = Doorkeeper(api, settings.serve, clock)
    # What is added last is outermost.
    api.add_middleware(BodyLimit, most=settings.serve.max_body_mb * 2**20)
    api.add_middleware(RequestFrame, tells_id=not _in_a_replica())


def check_listening(settings: Settings, store: TokenStore | None = None) -> None:
    """Refuse to listen beyond loopback where everybody would be let in, or nobody could be.

    Args:
        settings: In force.
        store: Where the tokens are; None looks into the database of the settings.

    Raises:
        ValidationError: `serve.host` is not loopback, and `serve.auth` is open or no token was made yet.
        DatabaseError: The database cannot be used.
    """
    host = settings.serve.host
    if is_loopback(host):
        return
    if settings.serve.auth == "open":
        raise ValidationError(
            f"serve.host {host} is reached from other machines, and serve.auth open would let everybody in; set serve.auth to "
            "tokens, or serve.host to 127.0.0.1"
        )
    if not (TokenStore(open_database()) if store is None else store).any():
        raise ValidationError(
            f"serve.host {host} is reached from other machines, and there is no token yet; make one with `rayzyme token create "
            "NAME`, or set serve.host to 127.0.0.1"
        )


class Doorkeeper:
    """Tells who asks; one for each application. Whose a token is, it asks the database in a thread, one request at a time."""

    def __init__(self, api: FastAPI, settings: ServeSettings, clock: Callable[[], float]) -> None:
        """Nothing is read yet; `api.state.service` tells where the tokens are."""
        self._api, self._settings, self._clock = api, settings, clock
        most = settings.requests_per_minute
        self._thinning = RefusalThinning()
        self._rates = None if most is None else RateLimiter(most)
        self._looking_up, self._noting = CapacityLimiter(1), CapacityLimiter(1)
        # Only tokens that let somebody in, so there are as many as were made at most.
        self._remembered: dict[str, tuple[Caller, float]] = {}
        self._has_tokens, self._look_again_at = False, float("-inf")

    async def let_in(self, request: Request, secret: str | None, role: Role) -> Caller:
        """Who asks.

        Raises:
            NotIdentified: A token is needed, and there is none, or none that is in force.
            NotPermitted: Their role does not suffice; or no token is needed, and they are not of this machine.
            TooManyRequests: They ask too often.
            DatabaseError: The database cannot be used.
        """
        address = request.client.host if request.client is not None else ""
        try:
            who = address
            if await self._is_open():
                refuse_outsiders(request, address)
                caller = self._local
            else:
                caller = await self._identified(secret)
                who = caller.name
            request.state.caller = caller.name
            self._limit(who)
            if not caller.role.includes(role):
                raise NotPermitted(f"the token {caller.name!r} has the role {caller.role}; this takes the role {role}")
        except (NotIdentified, NotPermitted) as refusal:
            await self._note(request, who, address, str(refusal))
            raise
        return caller

    async def _is_open(self) -> bool:
        """Whether everybody on this machine is let in without a token."""
        if self._settings.auth == "tokens" or not is_loopback(self._settings.host):
            return False
        if self._settings.auth == "open":
            return True
        if self._is_to_look_again():
            await to_thread.run_sync(self._look_for_tokens, limiter=self._looking_up)
        return not self._has_tokens

    def _is_to_look_again(self) -> bool:
        # Doors that tokens closed stay closed.
        return not self._has_tokens and self._clock() >= self._look_again_at

    def _look_for_tokens(self) -> None:
        # Whoever waited for its turn may find it done.
        if self._is_to_look_again():
            now = self._clock()
            self._has_tokens, self._look_again_at = self._tokens.any(), now + REMEMBERED_S

    async def _identified(self, secret: str | None) -> Caller:
        if secret is None:
            raise NotIdentified(
                "send a token in the header `Authorization: Bearer TOKEN`; `rayzyme token create NAME` makes one"
            )
        caller = self._known(secret)
        if caller is None:
            caller = await to_thread.run_sync(self._look_up, secret, limiter=self._looking_up)
        if caller is None:
            raise NotIdentified(
                "this token is unknown, was revoked, or has expired; `rayzyme token create NAME` makes another"
            )
        return caller

    def _known(self, secret: str) -> Caller | None:
        caller, until = self._remembered.get(secret, (None, 0.0))
        return caller if self._clock() < until else None

    def _look_up(self, secret: str) -> Caller | None:
        caller = self._known(secret)
        if caller is None:
            now = self._clock()
            caller = self._tokens.find(secret)
            if caller is None:
                self._remembered.pop(secret, None)
            else:
                self._remembered[secret] = (caller, now + REMEMBERED_S)
        return caller

    def _limit(self, who: str) -> None:
        wait_s = 0.0 if self._rates is None else self._rates.wait_s(who, self._clock())
        if wait_s > 0:
            raise TooManyRequests(
                f"more than {self._settings.requests_per_minute} requests a minute; ask again in {wait_s:.1f} s", wait_s
            )

    async def _note(self, request: Request, who: str, address: str, reason: str) -> None:
        """Put a refusal into the audit log; where that fails the caller is refused all the same."""
        who = who or "unknown"
        if not self._thinning.is_due(who, self._clock()):
            return
        data = {
            "method": request.method,
            "path": request.url.path[:_LONGEST_PATH],
            "address": address,
            "request_id": request.state.request_id,
        }
        try:
            await to_thread.run_sync(self._note_now, who, reason, data, limiter=self._noting)
        except DatabaseError as error:
            logger.error("a refusal is not in the audit log: %s", error)

    def _note_now(self, who: str, reason: str, data: dict[str, str]) -> None:
        note_refusal(self._tokens.database, who, reason, data)

    @cached_property
    def _local(self) -> Caller:
        return local_caller()

    @cached_property
    def _tokens(self) -> TokenStore:
        return TokenStore(self._api.state.service.store.database)


def refuse_outsiders(request: Request, address: str) -> None:
    """Where no token is asked for: let in programs of this machine, and no page of another origin in a browser on it.

    Raises:
        NotPermitted: The caller comes from elsewhere, through a proxy, under a name that is not this machine's (so that no name
            of an attacker's can be made to lead here), or from another page.
    """
    headers = request.headers
    host = headers.get("Host", "")
    if not is_loopback(address) or any(name in headers for name in _OF_PROXIES):
        raise NotPermitted(
            "without tokens this server answers only its own machine; make one with `rayzyme token create NAME`"
        )
    if not is_loopback(_host_name(f"//{host}")):
        raise NotPermitted(
            f"without tokens this server answers only as localhost or 127.0.0.1, not as {host[:_LONGEST_HOST]!r}"
        )
    # Browsers send the first always, also for what a page may not read; older ones the second with whatever may change something.
    is_of_another = headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
    if is_of_another or ("Origin" in headers and _place(headers["Origin"]) != host.lower()):
        raise NotPermitted("without tokens this server answers no page of another origin")


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """`host:port` of an origin, as `Host` has it; empty for the origin `null`."""
    return origin.partition("://")[2].lower()


def _in_a_replica() -> bool:
    serve = sys.modules.get("ray.serve")
    if serve is None:
        return False
    try:
        serve.get_replica_context()
    except serve.exceptions.RayServeException:
        return False
    return True
