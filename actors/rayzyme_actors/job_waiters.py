"""Who waits for the ends of jobs, in one event loop."""

from __future__ import annotations

import asyncio


class JobWaiters:
    """Waiters by job."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    async def wait(self, job_id: str, timeout: float) -> bool:
        """Whether the job came to its end within `timeout` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job_id, []).append(waiter)
        try:
            await asyncio.wait_for(waiter, timeout)
        except TimeoutError:
            return False
        finally:
            waiting = self._waiters.get(job_id, [])
            if waiter in waiting:
                waiting.remove(waiter)
                if not waiting:
                    del self._waiters[job_id]
        return True

    def release(self, job_id: str) -> None:
        """The job has ended."""
        for waiter in self._waiters.pop(job_id, ()):
            if not waiter.done():
                waiter.set_result(None)
