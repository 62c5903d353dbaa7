"""Tasks for the tests of the dispatcher. Other processes import them by the folder that this file lies in."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rayzyme.workflows import FunctionTask, PlanChange, Task, TaskConfig, TaskContext, TaskResult


def nothing(context: TaskContext) -> None:
    """The smallest task."""


def note(context: TaskContext) -> str:
    """Leave a line `task attempt pid` in the file `log`, and share the task's name."""
    with Path(context.config["log"]).open("a") as sink:
        sink.write(f"{context.task_name} {context.attempt} {os.getpid()}\n")
    context.shared_state[context.task_name] = context.task_name.upper()
    return context.task_name


def wait_for_file(context: TaskContext) -> str:
    """Note the beginning, then wait until the file `until` is there."""
    note(context)
    while not Path(context.config["until"]).exists():
        time.sleep(0.01)
    return "seen"


def fail(context: TaskContext) -> None:
    """Fail until attempt `succeeds_at`, if that is given."""
    if "log" in context.config:
        note(context)
    if context.attempt < context.config.get("succeeds_at", 10**9):
        raise RuntimeError(f"attempt {context.attempt} fails")


def sleep_long(context: TaskContext) -> None:
    """Sleep for a minute in one call, deaf to interruptions, after leaving this process's id in the file `pid`."""
    Path(context.config["pid"]).write_text(str(os.getpid()))
    time.sleep(60)


def start_grandchildren(context: TaskContext) -> None:
    """Have a shell start processes in sessions of their own, and wait for them."""
    Path(context.config["pid"]).write_text(str(os.getpid()))
    subprocess.run(
        ["/bin/sh", "-c", "setsid sleep 300 & setsid sh -c 'sleep 301 & sleep 302' & sleep 303"], check=False
    )


def speak(context: TaskContext) -> None:
    """Print a line as text, one as bytes, and one of the log."""
    sys.stdout.write(f"{context.task_name} as text\n")
    sys.stdout.buffer.write(b"as bytes\n")
    logging.getLogger(__name__).warning("in the log")


def take_memory(context: TaskContext) -> int:
    """Take `megabytes` of memory, a megabyte at a time."""
    held = []
    for _ in range(context.config["megabytes"]):
        held.append(np.ones(2**17))
        time.sleep(0.001)
    return len(held)


def large_array(context: TaskContext) -> Any:
    """An array that no column of a table should hold."""
    return np.arange(100_000, dtype=np.float32)


def write_file(context: TaskContext) -> str:
    """Write the file `path`, to be published."""
    place = context.output_file(context.config["path"])
    place.write_text(f"by attempt {context.attempt}")
    return str(context.config["path"])


def write_and_fail(context: TaskContext) -> None:
    """Write a file for `path`, and fail."""
    context.output_file(context.config["path"]).write_text("half done")
    raise RuntimeError("it went wrong")


def see_shared(context: TaskContext) -> dict[str, Any]:
    """What the ancestors shared."""
    return dict(context.shared_state)


def tell_progress(context: TaskContext) -> None:
    """Tell of progress until the file `until` is there."""
    for percentage in range(0, 60, 10):
        context.progress_callback(percentage, f"step {percentage}")
        time.sleep(0.05)
    while not Path(context.config["until"]).exists():
        time.sleep(0.01)
    context.progress_callback(100, "done")


def die(context: TaskContext) -> None:
    """Kill the process that runs this, the first time."""
    note(context)
    if context.config.get("always") or len(Path(context.config["log"]).read_text().splitlines()) == 1:
        os.kill(os.getpid(), 9)


def granted_gpus(context: TaskContext) -> list[int]:
    """The GPUs that this was given."""
    return list(context.gpu_ids)


def plan_more(context: TaskContext) -> PlanChange:
    """Have two tasks done before whatever waits for this one."""
    more = [
        FunctionTask(f"more{number}", note, TaskConfig(f"more{number}", task_params=context.config))
        for number in (1, 2)
    ]
    return PlanChange(detour=more, output="planned")


class Greeting(Task):
    """A task with arguments of its own, whose cleanup leaves a trace."""

    def __init__(self, config: TaskConfig, greeting: str, trace: str | None = None) -> None:
        super().__init__(config)
        self.greeting, self.trace = greeting, trace

    def execute(self, context: TaskContext) -> TaskResult:
        """Greet."""
        return TaskResult(output=f"{self.greeting}, {context.config.get('whom', 'world')}")

    def cleanup(self, context: TaskContext) -> None:
        """Leave a trace."""
        if self.trace is not None:
            with Path(self.trace).open("a") as sink:
                sink.write(f"cleaned up attempt {context.attempt}\n")


class SleepingWithCleanup(Greeting):
    """Sleeps for a minute; its cleanup must run all the same."""

    def execute(self, context: TaskContext) -> TaskResult:
        """Sleep."""
        time.sleep(60)
        return TaskResult()
