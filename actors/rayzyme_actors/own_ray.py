"""A Ray head on this machine that outlives the command which started it, and that can be ended to the last process.

All of its processes hang on one, `ray start --block`, and end when that one ends. What a kill has left of them is known by the
name of the folder that they were given. No other Ray of this machine is touched, as `ray stop` would.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from rayzyme.errors import WorkerLost
from rayzyme.jobs.role import identity_of
from rayzyme.settings import Settings
from rayzyme_actors.connection import OF_OUR_RAYS
from rayzyme_actors.platform_record import PlatformRecord, remove_record, write_record

_AUTHENTICATION: Final = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
_START_S: Final = 120.0
_END_S: Final = 45.0
_KILLED_S: Final = 10.0
_LOOK_S: Final = 0.1
_LINES_TOLD: Final = 15
# Ray's sockets lie some 70 characters below, and a socket's path has at most 107.
_LONGEST_FOLDER: Final = 30
# Ray makes a folder `ray` in it. Everything that it starts inherits the variable.
_FOLDER_VARIABLE: Final = "RAY_TMPDIR"
# Of the cluster that the command itself was started in, or was told to use.
_OF_ANOTHER_RAY: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")


def start_own_ray(settings: Settings, num_cpus: int | None = None, dashboard_port: int | None = None) -> PlatformRecord:
    """Start it, and wait until it answers. From its first moment on the record tells of it.

    Args:
        settings: In force.
        num_cpus: Logical CPUs; None takes the settings', else what the machine has.
        dashboard_port: Of the dashboard, on loopback; None takes 8265, or the next one that is free.

    Raises:
        WorkerLost: It did not start; nothing is left of it, and the message has the last lines that it wrote.
    """
    folder = _new_folder()
    record = PlatformRecord(folder=folder, authentication=authentication())
    write_record(settings.home, record)
    output = folder / "start.log"
    try:
        with output.open("wb") as sink:
            process = subprocess.Popen(
                _command(num_cpus or settings.ray.num_cpus, dashboard_port),
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd=settings.home,
                env=_environment(record), start_new_session=True,
            )  # fmt: skip
        record = PlatformRecord(folder=folder, authentication=record.authentication, process=identity_of(process.pid))
        write_record(settings.home, record)
        address = _address_when_started(process, folder / "ray" / "ray_current_cluster", output)
    except BaseException:
        end_own_ray(settings, record)
        raise
    record = PlatformRecord(
        address=address, folder=folder, authentication=record.authentication, process=record.process
    )
    write_record(settings.home, record)
    return record


def end_own_ray(settings: Settings, record: PlatformRecord) -> None:
    """End a Ray that `start_own_ray` started, or what a kill has left of it, with all that it wrote; then the record goes.

    Raises:
        WorkerLost: A process cannot be ended.
    """
    assert record.folder is not None, "only a Ray of our own is ended"
    members = _members(record)
    first = [process for process in members if record.process is not None and process.pid == record.process.pid]
    for process in first:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait(first, _END_S)
    # Who was started meanwhile is among the second.
    for process in _wait([*members, *_members(record)], 0):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    left = _wait([*members, *_members(record)], _KILLED_S)
    if left:
        told = ", ".join(str(process.pid) for process in left)
        raise WorkerLost(f"processes of Ray do not end: {told}; end them, then run `rayzyme down` again")
    shutil.rmtree(record.folder, ignore_errors=True)
    remove_record(settings.home)


def authentication() -> dict[str, str]:
    """What this process was told about Ray's own authentication."""
    return {name: os.environ[name] for name in _AUTHENTICATION if name in os.environ}


def _new_folder() -> Path:
    parent = tempfile.gettempdir()
    # Only its owner may enter: Ray opens what is in it to everybody.
    return Path(tempfile.mkdtemp(prefix="rayzyme-", dir=parent if len(parent) <= _LONGEST_FOLDER else "/tmp"))


def _command(num_cpus: int | None, dashboard_port: int | None) -> list[str]:
    # A port that another Ray of this machine has would end this one, so the system chooses all that it can.
    ports = {"port": 0, "min-worker-port": 0, "max-worker-port": 0, "dashboard-agent-listen-port": 0}
    options: dict[str, object] = {
        **ports, "ray-client-server-port": _free_port(), "dashboard-host": "127.0.0.1",
    }  # fmt: skip
    if os.environ.get("RAY_AUTH_MODE") != "token":
        # Nobody is asked who they are, so nobody from elsewhere may get here.
        options["node-ip-address"] = "127.0.0.1"
    if num_cpus is not None:
        options["num-cpus"] = num_cpus
    if dashboard_port is not None:
        options["dashboard-port"] = dashboard_port
    given = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *given]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _environment(record: PlatformRecord) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_RAY}
    # A GPU node's CPU actors must not see its GPUs.
    own = {**OF_OUR_RAYS, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    # Programs that are sent to it find this installation by the name `python`.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**own, **kept, "PATH": path, _FOLDER_VARIABLE: str(record.folder)}


def _address_when_started(process: subprocess.Popen[bytes], told: Path, output: Path) -> str:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(FileNotFoundError):
            # Written in place, so it may be empty for a moment.
            if address := told.read_text().strip():
                return address
        time.sleep(_LOOK_S)
    lines = output.read_text(errors="replace").splitlines()[-_LINES_TOLD:]
    outcome = f"did not start within {_START_S:.0f} s" if process.poll() is None else "ended as soon as it was started"
    raise WorkerLost(f"Ray {outcome}; it said:\n" + "\n".join(lines))


def _members(record: PlatformRecord) -> list[psutil.Process]:
    """Its processes that are alive: those that have the name of its folder in their environment, and those of their sessions.

    Some of Ray's processes write their titles over their environment; none of them is alone in its session.
    """
    by_session: dict[int, list[psutil.Process]] = defaultdict(list)
    marked: set[int] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            session = os.getsid(process.pid)
            by_session[session].append(process)
            if process.environ().get(_FOLDER_VARIABLE) == str(record.folder):
                marked.add(session)
    return [process for session in marked for process in by_session[session]]


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are still alive after so many seconds; what has ended and is only not collected yet is not."""
    end = time.monotonic() + seconds
    while alive := [process for process in processes if _is_alive(process)]:
        if time.monotonic() >= end:
            break
        time.sleep(_LOOK_S)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
