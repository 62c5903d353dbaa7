"""Who asks, and what they may: bearer tokens, roles, limits. Installed around every route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache

from fastapi import FastAPI

from rayzyme.access import Caller, Role, TokenStore, local_caller
from rayzyme.settings import Settings


@cache
def require(role: Role) -> Callable[..., Awaitable[Caller]]:
    """A dependency of routes: who asks, of whom `role` is asked at least."""

    async def caller() -> Caller:
        return local_caller()

    return caller


def install(api: FastAPI, settings: Settings) -> None:
    """Have an application ask who comes, refuse what is too large, and answer with the headers that browsers heed."""


def check_listening(settings: Settings, store: TokenStore | None = None) -> None:
    """Refuse to listen beyond loopback where everybody would be let in."""
