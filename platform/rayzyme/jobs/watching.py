"""Watching jobs from an event loop: any number of watchers cost one question to the store, twice a second, and no thread each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping

from rayzyme.errors import DatabaseError, UnknownJob
from rayzyme.jobs.look import JobLook
from rayzyme.jobs.reading import JobReader
from rayzyme.jobs.states import FINAL

logger = logging.getLogger(__name__)


class JobWatcher:
    """Looks at the jobs that somebody watches, and at nothing while nobody does; all in one event loop."""

    def __init__(self, store: JobReader, interval_s: float = 0.5) -> None:
        """Ask nothing yet.

        Args:
            store: Where the jobs are.
            interval_s: Seconds between two looks.
        """
        self._store = store
        self._interval_s = interval_s
        self._watched: Counter[str] = Counter()
        self._look: asyncio.Task[Mapping[str, JobLook]] | None = None

    @property
    def watchers(self) -> int:
        """How many watch something now."""
        return self._watched.total()

    async def watch(self, job_id: str) -> AsyncGenerator[JobLook, None]:
        """How a job stands: now, then at every look whether or not anything is new, until it has ended.

        While the database cannot be used, what was last seen is given.

        Raises:
            UnknownJob: There is no such job.
            DatabaseError: The database cannot be used at the beginning.
        """
        looks = await asyncio.to_thread(self._store.looks, [job_id])
        if job_id not in looks:
            raise UnknownJob(f"there is no job {job_id}")
        look = looks[job_id]
        self._watched[job_id] += 1
        try:
            yield look
            while look.state not in FINAL:
                look = (await self._next_look()).get(job_id, look)
                yield look
        finally:
            self._watched[job_id] -= 1
            self._watched += Counter()  # forgets those that nobody watches any more

    async def _next_look(self) -> Mapping[str, JobLook]:
        """What the next look shows; everybody who waits meanwhile gets the same."""
        if self._look is None:
            self._look = asyncio.get_running_loop().create_task(self._look_later())
        # Shielded: one who leaves must not take it from the others.
        return await asyncio.shield(self._look)

    async def _look_later(self) -> Mapping[str, JobLook]:
        try:
            await asyncio.sleep(self._interval_s)
        finally:
            # Who comes from here on may be too late for this one.
            self._look = None
        try:
            return await asyncio.to_thread(self._store.looks, list(self._watched))
        except DatabaseError as error:
            logger.warning("jobs that are watched could not be looked at: %s", error)
            return {}
