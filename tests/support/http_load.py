"""Callers that ask an endpoint without a pause, and keep what they were answered."""

from __future__ import annotations

import threading
from typing import Any, Self

import httpx
from tests.ray.dispatching import until

PEROXIDE = "OO.OO>>O=O.O.O"


class Load:
    """Screens over HTTP for as long as the block lasts.

    Attributes:
        answers: Status and, of those that went well, the hits, in the order in which they came.
    """

    def __init__(self, url: str, callers: int = 4) -> None:
        self._url, self._callers = url, callers
        self.answers: list[tuple[int, Any]] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def statuses(self) -> set[int]:
        return {status for status, _ in self.answers}

    def wait_for(self, more: int, status: int | None = None) -> None:
        """Wait until so many answers more have come, of a status if one is given."""
        first = len(self.answers)
        until(lambda: sum(status is None or told == status for told, _ in self.answers[first:]) >= more, seconds=120)

    def _ask(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post(self._url, json={"reactions": [PEROXIDE], "top_k": 5})
                except httpx.TransportError:
                    # A connection that broke was not accepted, or its answer is lost: whoever asks sees that.
                    self.answers.append((0, None))
                    continue
                hits = answer.json()["results"][0]["hits"] if answer.status_code == 200 else answer.text
                self.answers.append((answer.status_code, hits))
