"""What happens to a job, as server-sent events: each new state, and how far it is whenever that changes.

The id of a `state` event is the line of the job's story that it tells; whoever comes back with it as `Last-Event-ID` is told
what it missed. A stream ends with the job, or after a while: clients come back by themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from rayzyme.jobs.look import JobLook
from rayzyme.jobs.records import EventRecord, time_text
from rayzyme.jobs.states import FINAL
from rayzyme.jobs.store import JobStore
from rayzyme.jobs.watching import JobWatcher

HEARTBEAT_S: Final = 15.0
_COME_BACK_MS: Final = 1000


async def job_events(
    store: JobStore, watcher: JobWatcher, job_id: str, last_seen: int | None, lasts_s: float
) -> AsyncGenerator[str, None]:
    """The events of a job as text.

    Args:
        store: Where it is.
        watcher: Who looks at it.
        job_id: Which one.
        last_seen: The id of the last event that the client has seen.
        lasts_s: Seconds after which it must end.
    """
    now = asyncio.get_running_loop().time
    end, said_at = now() + lasts_s, now()
    yield f"retry: {_COME_BACK_MS}\n\n"
    telling = _Telling(store, last_seen)
    async with aclosing(watcher.watch(job_id)) as looks:
        async for look in looks:
            for event in await telling.news(look):
                said_at = now()
                yield event
            if now() - said_at >= HEARTBEAT_S:
                said_at = now()
                yield ": nothing new\n\n"
            if now() >= end:
                return


class _Telling:
    """What one client has been told."""

    def __init__(self, store: JobStore, last_seen: int | None) -> None:
        self._store = store
        self._version = last_seen
        self._figures: dict[str, Any] | None = None

    async def news(self, look: JobLook) -> list[str]:
        """What it has not been told yet."""
        knows_state = self._version is not None and self._version <= look.version
        events = [_moved(look, move) for move in await self._moves(look)]
        told, self._figures = self._figures, look.figures()
        if events or told == self._figures:
            return events
        # Whoever comes back after the end is told it once more: that is how a stream ends.
        if told is None and not (knows_state and look.state not in FINAL):
            return [_event("state", self._figures | {"error": look.error}, look.version)]
        return [_event("progress", self._figures)]

    async def _moves(self, look: JobLook) -> list[EventRecord]:
        seen, self._version = self._version, look.version
        # An id that is ahead of the story is not one of this job's.
        if seen is None or seen >= look.version:
            return []
        moves = await asyncio.to_thread(self._store.moves, look.job_id, seen)
        if moves:
            self._version = max(look.version, moves[-1].seq)
        return moves


def _moved(look: JobLook, move: EventRecord) -> str:
    assert move.to_state is not None
    is_now = move.to_state is look.state
    figures = look.figures() if is_now else {"job_id": look.job_id, "state": move.to_state.value}
    error = look.error if is_now else None
    return _event("state", figures | {"error": error, "at": time_text(move.at), "reason": move.reason}, move.seq)


def _event(kind: str, data: dict[str, Any], number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
