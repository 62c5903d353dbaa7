"""Fixtures of tests that fetch: a server that misbehaves as told, and patience that costs no time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.broken_http_server import BrokenServer

from rayzyme.models.download import Retries


@pytest.fixture
def server() -> Iterator[BrokenServer]:
    with BrokenServer() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that `retries` was asked for, in seconds."""
    return []


@pytest.fixture
def retries(pauses: list[float]) -> Retries:
    """Patience that records its pauses instead of waiting."""
    return Retries(attempts=3, sleep=pauses.append)
