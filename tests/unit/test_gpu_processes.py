"""Leases among real processes: they compete, are killed, freeze, end and fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayzyme.database import Database, open_database
from rayzyme.resources.devices import FakeGPUs
from rayzyme.resources.gpu import GPUManager

FREE = [20000, 9000, 24000]
TTL = 2.0
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Starts processes that hold leases; those still alive at the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, ttl: float = 60, renew: float = 10) -> subprocess.Popen[str]:
        environment = os.environ | {"RAYZYME_LEASES__TTL": str(ttl), "RAYZYME_LEASES__RENEW": str(renew)}
        command = [sys.executable, "tests/support/lease_holder.py", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=repository, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


def until(condition: Callable[[], bool], seconds: float) -> None:
    pause = threading.Event()
    for _ in range(int(seconds * 50)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"it did not come true within {seconds} s")


def news(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_four_processes_never_promise_more_than_is_free(start: Start, database_url: str) -> None:
    """C13 C66 D15"""
    competitors = [start(database_url, "compete", seed, 15) for seed in range(4)]
    assert [news(process) for process in competitors] == ["ready"] * 4
    for process in competitors:
        go(process)
    outcomes = [news(process) for process in competitors]
    assert [outcome["broken"] for outcome in outcomes] == [[]] * 4
    assert all(outcome["granted"] for outcome in outcomes)
    assert [process.wait(30) for process in competitors] == [0] * 4


def test_a_killed_holder_frees_its_share_within_the_ttl_and_five_seconds(
    start: Start, database: Database, database_url: str
) -> None:
    """C14 D15"""
    holder = start(database_url, "hold", ttl=TTL, renew=TTL / 5)
    assert news(holder) == [2, 0, 1]
    with GPUManager({"rest": 13000, "most": 20000}, provider=FakeGPUs(FREE), store=database) as manager:
        assert manager.allocate_gpus("rest") == [2]
        manager.release_gpus("rest")
        renewals = {lease.expires_at for lease in _all(database)}
        # It goes on holding as long as it lives: every renewal moves the end.
        until(lambda: renewals.add(_all(database)[0].expires_at) or len(renewals) > 2, 30)
        assert manager.allocate_gpus("most") == []
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        until(lambda: manager.allocate_gpus("most") == [2, 0], TTL + 5)


def test_a_frozen_holder_that_wakes_too_late_has_lost_its_share(
    start: Start, database: Database, database_url: str
) -> None:
    """D15"""
    # It renews so rarely that it is not frozen while it holds the database.
    holder = start(database_url, "hold", ttl=TTL, renew=TTL * 0.9)
    assert news(holder) == [2, 0, 1]
    holder.send_signal(signal.SIGSTOP)
    with GPUManager({"most": 20000}, provider=FakeGPUs(FREE), store=database) as manager:
        assert manager.allocate_gpus("most") == []
        until(lambda: manager.allocate_gpus("most") == [2, 0], TTL + 5)
        holder.send_signal(signal.SIGCONT)
        # It gives back the third GPU too, which nobody took: what it held is lost as a whole.
        until(lambda: len(_all(database)) == 2, TTL + 5)
        assert {lease.purpose for lease in _all(database)} == {"most"}


@pytest.mark.parametrize("ending", ["return", "exception"])
def test_a_process_that_ends_gives_everything_back_at_once(ending: str, home: Path) -> None:
    """C3"""
    code = (
        "from rayzyme.resources.devices import FakeGPUs; from rayzyme.resources.gpu import GPUManager\n"
        "manager = GPUManager(provider=FakeGPUs([40000])); assert manager.allocate_gpus('prediction') == [0]\n"
        "if " + str(ending == "exception") + ": raise SystemExit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == (3 if ending == "exception" else 0)
    database = open_database(f"sqlite:///{home / 'rayzyme.db'}")
    assert _all(database) == []
    database.close()


def test_a_forked_child_has_leases_of_its_own(database: Database) -> None:
    """C3"""
    with GPUManager(provider=FakeGPUs(FREE), prefer_single_gpu=True, store=database) as manager:
        assert manager.allocate_gpus("prediction") == [2]
        child = os.fork()
        if child == 0:
            outcome = 1
            try:
                outcome = 0 if manager.allocate_gpus("prediction") == [0] else 2
                manager.close()
            finally:
                os._exit(outcome)
        assert os.waitpid(child, 0)[1] == 0
        assert manager.allocate_gpus("prediction") == [2]
        assert [lease.pid for lease in _all(database)] == [os.getpid()]


def test_loading_the_room_needs_nothing_heavy(repository: Path) -> None:
    """C1"""
    heavy = ["torch", "jax", "tensorflow", "ray", "pynvml", "sqlalchemy", "psutil", "pydantic", "filelock"]
    code = f"import sys, rayzyme.resources.gpu, rayzyme.resources.memory; print({{*sys.modules}} & {{*{heavy}}} or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def _all(database: Database) -> list[object]:
    """All live leases of every GPU of this machine."""
    from sqlalchemy import select

    from rayzyme.database.tables import Lease

    with database.read() as connection:
        return list(connection.execute(select(Lease.__table__)).all())
