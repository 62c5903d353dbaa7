"""Processes of an attempt: found wherever they went, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from rayzyme.workflows import processes
from rayzyme.workflows.processes import MARKER, marked, stop_marked

GRANDCHILDREN = "setsid sleep 300 & setsid sh -c 'sleep 301 & sleep 302' & (sleep 303 &) ; echo ready; wait"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(300)"
)


@pytest.fixture
def marker() -> str:
    return f"job_{uuid4().hex[:12]}/1/task/1"


def start(marker: str, *command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, env=os.environ | {MARKER: marker}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_grandchildren_with_sessions_of_their_own_are_found_and_none_survives(marker: str) -> None:
    """D18"""
    shell = start(marker, "sh", "-c", GRANDCHILDREN)
    until(lambda: sum(process.name() == "sleep" for process in marked(marker)) == 4)
    assert stop_marked(marker, 5.0) == []
    assert marked(marker) == []
    assert shell.wait(10) != 0


def test_orphans_are_found_after_the_process_that_started_them(marker: str) -> None:
    """D18"""
    shell = start(marker, "sh", "-c", "setsid sleep 300 > /dev/null & echo ready")
    assert shell.wait(10) == 0
    until(lambda: [process.name() for process in marked(marker)] == ["sleep"])
    assert stop_marked(marker, 1.0) == []
    assert marked(marker) == []


def test_a_child_that_cleared_its_environment_goes_with_its_parent(marker: str) -> None:
    """D18"""
    shell = start(marker, "sh", "-c", "env -i sleep 300 & echo ready; wait")
    until(lambda: "sleep" in [process.name() for process in marked(marker)])
    child = next(process for process in marked(marker) if process.name() == "sleep")
    assert stop_marked(marker, 5.0) == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    shell.wait(10)


def test_term_comes_first_and_kill_after_the_grace(marker: str, tmp_path: Path) -> None:
    """D18"""
    polite = tmp_path / "polite"
    program = (
        f"import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(polite)!r}).touch(), sys.exit(0)))\n"
        f"print('ready', flush=True)\ntime.sleep(300)"
    )
    process = start(marker, sys.executable, "-c", program)
    assert stop_marked(marker, 10.0) == []
    assert polite.exists()
    assert process.wait(10) == 0, "its exit status is left to the one who started it"
    stubborn = start(marker, sys.executable, "-c", STUBBORN)
    assert stop_marked(marker, 0.2) == []
    assert stubborn.wait(10) == -9


def test_without_grace_it_is_killed_at_once(marker: str) -> None:
    """D18"""
    process = start(marker, sys.executable, "-c", STUBBORN)
    assert stop_marked(marker, 0.0) == []
    assert process.wait(10) == -9


def test_a_process_that_carries_the_marker_does_not_end_itself(marker: str) -> None:
    """D18"""
    program = (
        "import sys\nfrom rayzyme.workflows.processes import marked, stop_marked\n"
        "print(marked(sys.argv[1]), stop_marked(sys.argv[1], 0.0))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, marker], env=os.environ | {MARKER: marker}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "[] []\n")


def test_other_attempts_are_left_alone(marker: str) -> None:
    """D18"""
    other = start(f"{marker}0", "sh", "-c", "echo ready; sleep 300")
    assert marked(marker) == []
    assert stop_marked(marker, 0.0) == []
    assert other.poll() is None
    assert stop_marked(f"{marker}0", 0.0) == []
    other.wait(10)


def test_what_cannot_be_stopped_is_described(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """D18"""
    process = start(marker, sys.executable, "-c", STUBBORN)
    monkeypatch.setattr(processes, "_signal", lambda *_: None)
    monkeypatch.setattr(processes, "_AFTER_KILL_S", 0.1)
    assert stop_marked(marker, 0.0) == [f"{psutil.Process(process.pid).name()} (pid {process.pid})"]
    process.kill()
    process.wait(10)
