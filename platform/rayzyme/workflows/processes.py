"""The processes of an attempt, found by what stands in their environment, and ended.

A process inherits its environment, so a child that left its parent, its process group and its session is found too. One that
cleared its environment is found as long as its parent is there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

MARKER = "RAYZYME_ATTEMPT"
_LOOK_S = 0.02
_AFTER_KILL_S = 2.0


def marked(marker: str) -> list[psutil.Process]:
    """Live processes that carry the marker, and their descendants; never this one.

    Args:
        marker: The value of the environment variable `MARKER`.
    """
    wanted = f"{MARKER}={marker}".encode()
    found: dict[int, psutil.Process] = {}
    for pid in psutil.pids():
        if wanted in _environment(pid):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found[pid] = process
                found.update({child.pid: child for child in process.children(recursive=True)})
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _is_alive(process)]


def stop_marked(marker: str, grace: float) -> list[str]:
    """End every process that carries the marker: TERM, then KILL for what is left after the grace, until none is found.

    Args:
        marker: The value of the environment variable `MARKER`.
        grace: Seconds to end by themselves; 0 kills at once.

    Returns:
        Those that could not be ended, as "name (pid N)".
    """
    known: dict[int, psutil.Process] = {}
    if grace > 0:
        _end_all(marker, signal.SIGTERM, grace, known)
    left = _end_all(marker, signal.SIGKILL, _AFTER_KILL_S, known)
    return [_described(process) for process in left]


def _end_all(
    marker: str, sign: signal.Signals, patience: float, known: dict[int, psutil.Process]
) -> list[psutil.Process]:
    """Signal each process once, those that appear meanwhile too, and wait; gives those that are left."""
    end = time.monotonic() + patience
    told: set[psutil.Process] = set()
    while True:
        # Those that were known before are watched although their parents, who led to them, may be gone.
        known.update({process.pid: process for process in marked(marker)})
        left = [process for process in known.values() if _is_alive(process)]
        if not left:
            return []
        for process in left:
            if process not in told:
                told.add(process)
                _signal(process, sign)
        if time.monotonic() >= end:
            return left
        _wait(left, min(end, time.monotonic() + 10 * _LOOK_S))


def _signal(process: psutil.Process, sign: signal.Signals) -> None:
    # psutil makes sure that the number still means that process.
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(sign)


def _wait(processes: Iterable[psutil.Process], end: float) -> None:
    # psutil's own way of waiting would reap children and so take their exit status from those who started them.
    while any(map(_is_alive, processes)) and time.monotonic() < end:
        time.sleep(_LOOK_S)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is somebody else's
        return []


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.name()} (pid {process.pid})"
    except psutil.NoSuchProcess:
        return f"pid {process.pid}"
