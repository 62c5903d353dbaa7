"""The task processes of a runner: made when they are wanted, kept warm for a while, and ended when a task must be stopped.

A process belongs to a shape, which is what its tasks ask Ray for. Tasks of a kind that has proven to be short travel in small
batches, since each journey costs more than the work; the others travel alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayzyme.settings import Settings
from rayzyme.workflows.execution import Assignment
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.processes import stop_marked
from rayzyme_actors.placement import TASK_CPUS
from rayzyme_actors.task_process import CONCURRENCY_GROUPS, TaskProcess, marker_of

logger = logging.getLogger(__name__)

_BATCH_BUDGET_S = 0.02
_LARGEST_BATCH = 64
_IDLE_S = 20.0
_ANSWER_S = 2.0
_PLACED_WITHIN_S = 3.0
_SWEEP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a process asks Ray for: CPUs, GPUs (whole ones, or a share), memory in MB, and GPU memory in MB to lease."""

    cpus: float = TASK_CPUS
    gpus: float = 0.0
    memory_mb: int = 0
    gpu_memory_mb: int = 0


class ProcessLost(Exception):
    """The process died under the task; nobody can say how far that was."""


@dataclass(slots=True, eq=False)
class _Work:
    assignment: Assignment
    marker: str
    result: asyncio.Future[TaskOutcome]
    on_begin: Callable[[], None]
    is_alone: bool


@dataclass(slots=True, eq=False)
class _Process:
    handle: Any
    ready: asyncio.Task[None] = field(init=False)
    works: list[_Work] = field(default_factory=list)
    node: str = ""
    idle_since: float = 0.0


@dataclass(slots=True, eq=False)
class _Line:
    """The processes of one shape and the works that wait for them."""

    shape: Shape
    waiting: deque[_Work] = field(default_factory=deque)
    idle: list[_Process] = field(default_factory=list)
    busy: list[_Process] = field(default_factory=list)


class TaskPool:
    """Runs assignments in processes; all methods in one event loop."""

    def __init__(self, settings: Settings, runner: Any, most_processes: int) -> None:
        """Start nothing.

        Args:
            settings: Handed to the processes.
            runner: Handle of the actor that owns this pool; the processes report to it.
            most_processes: Processes of one shape.
        """
        self._settings, self._runner = settings, runner
        self.most_processes = most_processes
        self._lines: dict[Shape, _Line] = {}
        self._seconds: dict[str, float] = {}
        self._deaths: dict[str, tuple[str, str]] = {}

    def warm(self, shape: Shape = Shape()) -> None:
        """Have a process of this shape at hand."""
        line = self._line(shape)
        if not line.idle and not line.busy:
            line.idle.append(self._made(shape))

    def submit(
        self, assignment: Assignment, shape: Shape, on_begin: Callable[[], None], is_alone: bool
    ) -> asyncio.Future[TaskOutcome]:
        """Run a task; the future gives its outcome, or raises `ProcessLost`.

        Args:
            assignment: The task.
            shape: What its process asks for.
            on_begin: Called when it has one.
            is_alone: It never travels in a batch.
        """
        future: asyncio.Future[TaskOutcome] = asyncio.get_running_loop().create_future()
        work = _Work(assignment, marker_of(assignment), future, on_begin, is_alone)
        line = self._line(shape)
        line.waiting.append(work)
        self._feed(line)
        return work.result

    async def stop(self, marker: str, reason: str, grace_s: float) -> list[str]:
        """Stop a task, kill its process where it does not end by itself, and make sure that nothing of it is left.

        Returns:
            Processes that could not be ended, described.
        """
        for line in self._lines.values():
            for work in line.waiting:
                if work.marker == marker:
                    line.waiting.remove(work)
                    _resolve(work, TaskOutcome.cancelled(reason))
                    return []
            for process in line.busy:
                work = next((work for work in process.works if work.marker == marker), None)
                if work is not None:
                    return await self._stop_running(process, work, reason, grace_s)
        return []

    def note_death(self, marker: str, error_class: str, message: str) -> None:
        """A process says why it is about to end itself."""
        self._deaths[marker] = (error_class, message)

    def retire_idle(self) -> None:
        """End processes that nobody needed for a while, so that others get their CPUs."""
        now = time.monotonic()
        for line in self._lines.values():
            longest = 0.0 if self._is_another_starving(line) else _IDLE_S
            for process in [one for one in line.idle if now - one.idle_since > longest]:
                line.idle.remove(process)
                ray.kill(process.handle)

    def statistics(self) -> dict[str, int]:
        """Processes that are busy and idle, and tasks that wait for one."""
        lines = self._lines.values()
        return {
            "busy": sum(len(line.busy) for line in lines),
            "idle": sum(len(line.idle) for line in lines),
            "waiting": sum(len(line.waiting) for line in lines),
        }

    def close(self) -> None:
        """End all processes."""
        for line in self._lines.values():
            for process in [*line.idle, *line.busy]:
                ray.kill(process.handle)
        self._lines.clear()

    def _is_another_starving(self, line: _Line) -> bool:
        """Whether tasks of another shape have been waiting for a while for a process that Ray cannot place."""
        now = time.monotonic()
        return any(
            not process.ready.done() and now - process.idle_since > _PLACED_WITHIN_S
            for other in self._lines.values()
            if other is not line
            for process in other.busy
        )

    def _line(self, shape: Shape) -> _Line:
        return self._lines.setdefault(shape, _Line(shape))

    def _feed(self, line: _Line) -> None:
        while line.waiting:
            if not line.idle:
                if len(line.busy) >= self.most_processes:
                    return
                line.idle.append(self._made(line.shape))
            process = line.idle.pop()
            process.works = self._batch(line)
            line.busy.append(process)
            _keep(asyncio.get_running_loop().create_task(self._run(line, process)))

    def _batch(self, line: _Line) -> list[_Work]:
        first = line.waiting.popleft()
        batch, left = [first], _BATCH_BUDGET_S - self._expected(first)
        # Others have a share of what waits.
        most = min(_LARGEST_BATCH, 1 + len(line.waiting) // self.most_processes)
        while line.waiting and len(batch) < most and left > 0 and not (first.is_alone or line.waiting[0].is_alone):
            left -= self._expected(line.waiting[0])
            if left > 0:
                batch.append(line.waiting.popleft())
        return batch

    def _expected(self, work: _Work) -> float:
        return self._seconds.get(work.assignment.type_name, _BATCH_BUDGET_S)

    async def _run(self, line: _Line, process: _Process) -> None:
        try:
            await process.ready
            for work in process.works:
                work.on_begin()
            outcomes = await process.handle.run.remote([work.assignment for work in process.works], _BATCH_BUDGET_S)
        except (ActorDiedError, ActorUnavailableError) as error:
            await self._bury(line, process, str(error))
            return
        except RayError as error:
            # What cannot cross to another process, or cannot be rebuilt there.
            cause = getattr(error, "cause", None) or error
            outcomes = [TaskOutcome.failed(type(cause).__name__, str(cause), is_final=True) for _ in process.works]
        except Exception as error:
            logger.exception("handing tasks to a process")
            outcomes = [TaskOutcome.failed(type(error).__name__, str(error), is_final=True) for _ in process.works]
        begun, rest = process.works[: len(outcomes)], process.works[len(outcomes) :]
        process.works = []
        process.idle_since = time.monotonic()
        if process in line.busy:
            line.busy.remove(process)
            if self._is_another_starving(line):
                # Its resources are what a process of another shape has been waiting for.
                ray.kill(process.handle)
            else:
                line.idle.append(process)
        line.waiting.extendleft(reversed(rest))
        for work, outcome in zip(begun, outcomes, strict=True):
            self._learn(work.assignment.type_name, outcome)
            _resolve(work, outcome)
        self._feed(line)

    def _learn(self, kind: str, outcome: TaskOutcome) -> None:
        took = max(0.0, outcome.computed_at - outcome.started_at)
        before = self._seconds.get(kind, took)
        # Fast to become careful, slow to become bold.
        self._seconds[kind] = took if took > before else 0.8 * before + 0.2 * took

    async def _bury(self, line: _Line, process: _Process, why: str) -> None:
        if process in line.busy:
            line.busy.remove(process)
        for work in process.works:
            death = self._deaths.pop(work.marker, None)
            await self._sweep(process, work.marker)
            if death is not None:
                _resolve(work, TaskOutcome.failed(*death))
            elif not work.result.done():
                work.result.set_exception(
                    ProcessLost(why.strip().splitlines()[0] if why.strip() else "the process died")
                )
        process.works = []
        self._feed(line)

    async def _stop_running(self, process: _Process, work: _Work, reason: str, grace_s: float) -> list[str]:
        try:
            answer = await asyncio.wait_for(
                process.handle.stop.remote(work.marker, reason, grace_s), grace_s + _ANSWER_S
            )
            survivors: list[str] = answer["survivors"]
            ended: bool = answer["ended"]
        except (TimeoutError, RayError):
            survivors, ended = [], False
        if ended and not survivors:
            return []
        if not ended:
            _resolve(work, TaskOutcome.cancelled(reason))
            ray.kill(process.handle)
        return await self._sweep(process, work.marker)

    async def _sweep(self, process: _Process, marker: str) -> list[str]:
        """End what still carries the marker on the process's node; a node that is gone has nothing left."""
        if not process.node:
            return []
        where = NodeAffinitySchedulingStrategy(process.node, soft=False)
        sweeping = _stop_marked.options(num_cpus=0, scheduling_strategy=where).remote(marker, 0.0)
        try:
            survivors: list[str] = await asyncio.wait_for(sweeping, _SWEEP_TIMEOUT_S)
        except (TimeoutError, RayError) as error:
            logger.warning("whether processes of %s are left on node %s is not known: %s", marker, process.node, error)
            return []
        return survivors

    def _made(self, shape: Shape) -> _Process:
        handle = (
            ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(TaskProcess)
            .options(
                num_cpus=shape.cpus, num_gpus=shape.gpus, memory=shape.memory_mb * 2**20 or None, max_restarts=0,
                enable_task_events=False,
            )
            .remote(self._settings, self._runner, shape.gpu_memory_mb)
        )  # fmt: skip
        process = _Process(handle, idle_since=time.monotonic())
        process.ready = asyncio.get_running_loop().create_task(_learn_node(process))
        return process


async def _learn_node(process: _Process) -> None:
    # What is wrong with it tells its first work.
    with suppress(RayError):
        process.node = (await process.handle.describe.remote())["node"]


@ray.remote
def _stop_marked(marker: str, grace_s: float) -> list[str]:
    return stop_marked(marker, grace_s)


def _resolve(work: _Work, outcome: TaskOutcome) -> None:
    if not work.result.done():
        work.result.set_result(outcome)


_kept: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """The event loop itself does not keep its tasks."""
    _kept.add(task)
    task.add_done_callback(_kept.discard)
