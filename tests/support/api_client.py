"""Asking an application without a server, in a test that is no coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI


@dataclass(frozen=True, slots=True)
class ApiClient:
    """A caller of an application.

    Attributes:
        api: The application.
        token: Sent with each request.
        address: Where the caller seems to be.
        base_url: What the application is reached as.
    """

    api: FastAPI
    token: str | None = None
    address: str = "127.0.0.1"
    base_url: str = "http://127.0.0.1:8000"
    headers: Mapping[str, str] = field(default_factory=dict)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """One request; `content` may be an async iterator of pieces."""
        sent = dict(self.headers) | dict(headers or {})
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.api, client=(self.address, 1234))
            async with httpx.AsyncClient(transport=transport, base_url=self.base_url) as client:
                return await client.request(method, path, headers=sent, **options)

        return asyncio.run(ask())


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """A body whose length is not told."""
    for part in parts:
        yield part
