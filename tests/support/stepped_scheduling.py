"""The scheduler's own loop, one step at a time: a test says when it looks, how late it is, and when its runner dies.

The loop and the store are the real ones; the clock and the runner are the test's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from tests.support.timing import Clock

from rayzyme.jobs.changes import Applied, Change
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings
from rayzyme_actors import scheduling_loop
from rayzyme_actors.running_job import RunOrder
from rayzyme_actors.scheduling_loop import SchedulingLoop

_PREFIX = "runner:"
_numbers = count(1)


class _Method:
    """Called as a method of an actor is."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        async def answered() -> Any:
            return self._answer(*arguments)

        return answered()


class ListedRunner:
    """A runner that only lists what it was told.

    Attributes:
        runner_id: Under which it holds leases.
        orders: What it runs, by job.
        told_to_stop: Jobs of these whose users cancelled them.
    """

    def __init__(self) -> None:
        self.runner_id = f"{_PREFIX}{next(_numbers)}"
        self.orders: dict[str, RunOrder] = {}
        self.told_to_stop: set[str] = set()
        self.run, self.stop, self.running = _Method(self._run), _Method(self._stop), _Method(self._running)

    def _run(self, orders: Sequence[RunOrder]) -> None:
        for order in orders:
            assert order.job_id not in self.orders, f"{order.job_id} was started twice"
            self.orders[order.job_id] = order

    def _stop(self, job_id: str, _reason: str) -> None:
        if job_id in self.orders:
            self.told_to_stop.add(job_id)

    def _running(self) -> dict[str, int]:
        return {job_id: order.attempt for job_id, order in self.orders.items()}


class SteppedScheduling(SchedulingLoop):
    """Leads when it is told to, with the role that the test took for it.

    Attributes:
        token: Of that role.
        meanwhile: What happens, once, between its next decision and the writing of it.
    """

    def __init__(self, settings: Settings, store: JobStore, token: int) -> None:
        super().__init__(settings, store, {"host": "here", "pid": next(_numbers)})
        self._token = self._role_token = self.token = token
        self.meanwhile: Callable[[], None] | None = None

    async def restore(self, runner: ListedRunner) -> None:
        """Take up what the store says."""
        self._runner, self._runner_id = runner, runner.runner_id
        await self._restore()
        await self.step()

    async def step(self) -> None:
        """Look, decide, write, carry out; without waiting for news."""
        self.wake()
        await self._step()
        # The runner hears of it before the test goes on.
        await asyncio.gather(*self._telling)

    async def settle(self) -> None:
        """Step until nothing is left to be told."""
        await self.step()
        while self._events and self._runner_id is not None:
            await self.step()

    async def follow(self, runner: ListedRunner) -> None:
        """The runner died, and another was started in its place."""
        self._runner, self._runner_id = runner, runner.runner_id
        await self._lose_what_our_runner_lost()

    def _apply(self, changes: Sequence[Change]) -> list[Applied]:
        happening, self.meanwhile = self.meanwhile, None
        if happening is not None:
            happening()
        return super()._apply(changes)

    def compare_notes(self) -> None:
        """With the next step, read everything that is live."""
        self._reconciled = 0.0

    @property
    def machine(self) -> SchedulerMachine:
        """What decides."""
        return self._machine


@contextmanager
def surroundings(
    clock: Clock, capacity: Callable[[], Mapping[str, float]], kill: Callable[[ListedRunner], None]
) -> Iterator[None]:
    """The test's clock and cluster in place of the machine's and Ray's."""

    def kill_actor(runner: ListedRunner, *, no_restart: bool) -> None:
        assert not no_restart
        kill(runner)

    times = SimpleNamespace(time=clock, monotonic=clock, perf_counter=time.perf_counter)
    with (
        patch.object(scheduling_loop, "time", times),
        patch.object(scheduling_loop, "ray", SimpleNamespace(kill=kill_actor)),
        patch.object(scheduling_loop, "runner_prefix", lambda _settings: _PREFIX),
        patch.object(scheduling_loop, "largest_node", lambda: dict(capacity())),
        patch.object(scheduling_loop, "cluster_capacity", lambda _settings: dict(capacity())),
    ):
        yield
