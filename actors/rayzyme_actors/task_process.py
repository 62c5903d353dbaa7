"""A process that runs tasks, one after the other, and can be stopped from outside while one runs.

The work has one thread, the orders of the runner another. A task that is told to stop is interrupted, its child processes are
ended, and it has some time to come to its end; whoever told it kills this whole process when that was not enough.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import ray
from ray import cloudpickle

from rayzyme.monitoring import log_context
from rayzyme.resources import TwoLevelCache
from rayzyme.settings import Settings
from rayzyme.workflows.execution import Assignment, TaskInterrupted, run_assignment
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.processes import MARKER, stop_marked
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.gpu_memory import lease_gpu_memory
from rayzyme_actors.task_log import TaskLog
from rayzyme_actors.thread_priority import step_back

logger = logging.getLogger(__name__)

CONCURRENCY_GROUPS = {"work": 1, "orders": 2}
_MB = 2**20
# Online requests on the same machine go first.
_NICENESS = 15
_WATCH_INTERVAL_S = 0.05
_PROGRESS_INTERVAL_S = 0.2
# What the interpreter, its threads' stacks and Ray may map beside the task; the watcher holds the task to the exact figure.
_MAPPED_BESIDE_MB = 256
_CLEANUP_S = 2.0


def marker_of(assignment: Assignment) -> str:
    """What every process that this attempt starts carries in its environment."""
    return f"{assignment.job_id}/{assignment.job_attempt}/{assignment.task}/{assignment.attempt}"


@dataclass(slots=True)
class _Running:
    """The task that the work thread is at."""

    marker: str
    assignment: Assignment
    thread: int
    ended: threading.Event = field(default_factory=threading.Event)
    stopping: str | None = None
    cleanup: Callable[[], None] | None = None


class TaskProcess:
    """Runs assignments; made by a runner, and gone with it."""

    def __init__(self, settings: Settings, runner: Any, gpu_memory_mb: int = 0) -> None:
        """Take over the settings of the program that started the scheduler.

        Args:
            settings: Of that program.
            runner: Handle of the actor that is told of progress.
            gpu_memory_mb: MB (2^20 bytes) to lease on the GPU that Ray gives; 0 for none.
        """
        set_up_actor(settings)
        self._settings, self._runner = settings, runner
        self._lease = lease_gpu_memory("tasks", gpu_memory_mb, settings) if gpu_memory_mb else None
        self._gpu_ids = [int(number) for number in ray.get_gpu_ids()]
        self._log = TaskLog(settings.runs)
        self._services = _Services(settings)
        self._cache: TwoLevelCache | None = None
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._skipped: set[str] = set()

    @ray.method(concurrency_group="work")
    def run(self, assignments: Sequence[Assignment], budget_s: float) -> list[TaskOutcome]:
        """Run them in order and give their outcomes; those that were not begun within `budget_s` seconds have none."""
        step_back(_NICENESS)
        end = time.monotonic() + budget_s
        outcomes: list[TaskOutcome] = []
        for assignment in assignments:
            if outcomes and time.monotonic() > end:
                break
            outcomes.append(self._run(assignment))
        return outcomes

    @ray.method(concurrency_group="orders")
    def stop(self, marker: str, reason: str, grace_s: float) -> dict[str, Any]:
        """Stop the attempt that carries `marker`.

        Returns:
            `ended`: whether it did within `grace_s` seconds; `survivors`: processes of it that could not be ended.
        """
        with self._lock:
            running = self._running
            if running is None or running.marker != marker:
                self._skipped.add(marker)
                return {"ended": True, "survivors": []}
            if running.stopping is None:
                running.stopping = reason
                self._interrupt(running)
        begin = time.monotonic()
        survivors = stop_marked(marker, grace_s)
        ended = running.ended.wait(max(0.05, begin + grace_s - time.monotonic()))
        if not ended:
            self._clean_up(running)
        return {"ended": ended, "survivors": survivors}

    @ray.method(concurrency_group="orders")
    def describe(self) -> dict[str, Any]:
        """Where this is: pid, node, GPUs."""
        return {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), "gpu_ids": self._gpu_ids}

    def _run(self, assignment: Assignment) -> TaskOutcome:
        marker = marker_of(assignment)
        running = _Running(marker, assignment, threading.get_ident())
        with self._lock:
            if marker in self._skipped:
                self._skipped.discard(marker)
                return TaskOutcome.cancelled("it was cancelled before it began")
            self._running = running
        os.environ[MARKER] = marker
        try:
            with ExitStack() as around:
                around.enter_context(
                    log_context(job_id=assignment.job_id, task=assignment.task, attempt=assignment.attempt)
                )
                around.enter_context(self._log.of(assignment))
                if assignment.memory_mb is not None:
                    around.enter_context(
                        _MemoryLimit(assignment.memory_mb, lambda used: self._over_memory(running, used))
                    )
                outcome = run_assignment(
                    assignment.with_gpus(self._gpu_ids),
                    progress=_Reporting(self._runner, assignment),
                    services=self._services,
                    cache=self._task_cache if assignment.cache_enabled else None,
                    on_ready=lambda cleanup: setattr(running, "cleanup", cleanup),
                )
            outcome = _that_can_be_sent(outcome, assignment)
        except TaskInterrupted:
            outcome = TaskOutcome.cancelled(running.stopping or "it was interrupted")
        except KeyboardInterrupt:
            outcome = TaskOutcome.failed("KeyboardInterrupt", "the task raised KeyboardInterrupt", is_final=True)
        finally:
            del os.environ[MARKER]
            with self._lock:
                self._running = None
            running.ended.set()
        return outcome

    @property
    def _task_cache(self) -> TwoLevelCache:
        if self._cache is None:
            sizes = self._settings.resources.cache
            self._cache = TwoLevelCache(sizes.l1_size_mb, sizes.l2_size_mb, self._settings.cache / "tasks")
        return self._cache

    def _over_memory(self, running: _Running, used_mb: float) -> None:
        """End this process: memory that grows does not wait for a task to come to its end."""
        assignment = running.assignment
        message = f"task {assignment.task} took {used_mb:.0f} MB, its memory_mb is {assignment.memory_mb}"
        stop_marked(running.marker, 0.0)
        self._clean_up(running)
        try:
            # The runner knows before it sees this process die.
            ray.get(self._runner.note_death.remote(running.marker, "MemoryLimitExceeded", message), timeout=10)
        finally:
            os._exit(1)

    def _clean_up(self, running: _Running) -> None:
        """The task's `cleanup`, which its own thread is too stuck to call."""
        if running.cleanup is None:
            return
        thread = threading.Thread(target=running.cleanup, name="rayzyme-cleanup", daemon=True)
        thread.start()
        thread.join(_CLEANUP_S)

    @staticmethod
    def _interrupt(running: _Running) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(running.thread), ctypes.py_object(TaskInterrupted))


def _that_can_be_sent(outcome: TaskOutcome, assignment: Assignment) -> TaskOutcome:
    """The outcome, told in the terms of the task's config, and nothing in it that no other process can be given."""
    if outcome.error_class == "MemoryError" and assignment.memory_mb is not None:
        message = f"task {assignment.task} asked for more than its memory_mb of {assignment.memory_mb} at once"
        return replace(outcome, error_class="MemoryLimitExceeded", error=message)
    objects = {f"shared_state[{key!r}]": value for key, value in outcome.shared_writes.items()}
    for name, value in {"its output": outcome.output or {}, **objects}.items():
        if "object" not in value:
            continue
        try:
            cloudpickle.dumps(value["object"])
        except Exception as error:
            kind = type(value["object"]).__qualname__
            message = f"{name} of task {assignment.task}, a {kind}, cannot leave its process: {error}"
            return TaskOutcome.failed(
                "TaskNotSendable",
                message,
                is_final=True,
                started_at=outcome.started_at,
                computed_at=outcome.computed_at,
            )
    return outcome


class _Services:
    """What `ActorScreening` offers; most tasks screen nothing, and need not wait for what that loads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        from rayzyme_actors.screening_services import ActorScreening

        if "_real" not in self.__dict__:
            self._real = ActorScreening(self._settings)
        return getattr(self._real, name)


class _Reporting:
    """The progress of an attempt on its way to the runner, thinned out; the newest always arrives."""

    def __init__(self, runner: Any, assignment: Assignment) -> None:
        self._runner, self._assignment = runner, assignment
        self._lock = threading.Lock()
        self._newest: tuple[float, str] | None = None
        self._timer: threading.Timer | None = None

    def __call__(self, percentage: float, message: str) -> None:
        with self._lock:
            self._newest = (percentage, message)
            if self._timer is None:
                self._send()
                self._timer = threading.Timer(_PROGRESS_INTERVAL_S, self._after_a_while)
                self._timer.daemon = True
                self._timer.start()

    def _after_a_while(self) -> None:
        with self._lock:
            self._timer = None
            newest = self._newest
        if newest is not None:
            self(*newest)

    def _send(self) -> None:
        if self._newest is not None:
            told = self._assignment
            self._runner.progress.remote(told.job_id, told.job_attempt, told.task, told.attempt, *self._newest)
            self._newest = None


class _MemoryLimit:
    """Holds a task, and the processes that it starts, to so many MB beyond what this process had before."""

    def __init__(self, limit_mb: int, on_excess: Callable[[float], None]) -> None:
        self._limit_mb, self._on_excess = limit_mb, on_excess
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self._process = psutil.Process()
        self._before = _memory_mb(self._process)
        self._limits = resource.getrlimit(resource.RLIMIT_DATA)
        mapped = _mapped_mb() + self._limit_mb + _MAPPED_BESIDE_MB
        # What is asked for at once and far beyond the limit is refused before it can hurt the machine.
        resource.setrlimit(resource.RLIMIT_DATA, (mapped * _MB, self._limits[1]))
        threading.Thread(target=self._watch, name="rayzyme-memory", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        resource.setrlimit(resource.RLIMIT_DATA, self._limits)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_INTERVAL_S):
            used = _memory_mb(self._process) - self._before
            if used > self._limit_mb and not self._ended.is_set():
                self._on_excess(used)
                return


def _memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and its descendants, in MB."""
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return float(total / _MB)


def _mapped_mb() -> int:
    """What RLIMIT_DATA counts of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - a file of the kernel, read for each task
        return next(int(line.split()[1]) for line in lines if line.startswith("VmData")) // 1024
