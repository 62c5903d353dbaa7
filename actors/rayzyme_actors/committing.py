"""Writing to the store from an event loop: while one transaction is on its way, the next changes gather for the one after it.

A change is acknowledged when it is durable. While the database cannot be used, its changes wait; nothing is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rayzyme.errors import DatabaseError
from rayzyme.jobs.changes import Applied, Change

logger = logging.getLogger(__name__)

_LARGEST_GROUP = 500
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 30.0

Apply = Callable[[Sequence[Change]], list[Applied]]


class Committer:
    """Applies changes in groups, in the order in which they were given; all methods in one event loop."""

    def __init__(self, apply: Apply) -> None:
        """Write with `apply`, which runs in a thread of its own."""
        self._apply = apply
        self._waiting: list[tuple[Change, asyncio.Future[Applied]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayzyme-commit")
        self._writer: asyncio.Task[None] | None = None

    async def commit(self, change: Change) -> Applied:
        """Write one change; what became of it, once that is durable."""
        return await self._put(change)

    async def commit_all(self, changes: Sequence[Change]) -> list[Applied]:
        """Write several in one go."""
        return list(await asyncio.gather(*map(self._put, changes)))

    def _put(self, change: Change) -> asyncio.Future[Applied]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Applied] = loop.create_future()
        self._waiting.append((change, done))
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        return done

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:_LARGEST_GROUP], self._waiting[_LARGEST_GROUP:]
            try:
                applied = await self._apply_group([change for change, _ in group])
            except Exception as error:
                if len(group) > 1:
                    # One of them is at fault; the others must not suffer for it.
                    logger.exception(
                        "a group of %d changes could not be written; they are tried one by one", len(group)
                    )
                    await self._write_one_by_one(group)
                elif not group[0][1].done():
                    group[0][1].set_exception(error)
                continue
            for (_, done), outcome in zip(group, applied, strict=True):
                if not done.done():
                    done.set_result(outcome)
        self._writer = None

    async def _write_one_by_one(self, group: Sequence[tuple[Change, asyncio.Future[Applied]]]) -> None:
        for change, done in group:
            try:
                (outcome,) = await self._apply_group([change])
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(outcome)

    async def _apply_group(self, changes: Sequence[Change]) -> list[Applied]:
        wait = _FIRST_RETRY_S
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._apply, changes)
            except DatabaseError as error:
                logger.warning("%d changes wait for the database, again in %g s: %s", len(changes), wait, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_RETRY_S)
