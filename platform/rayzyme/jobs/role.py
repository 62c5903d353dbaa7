"""Who the scheduler is: one process at a time holds its role, by a lease, and only what it writes under that counts.

A process is known by its machine's boot, its namespace of process ids, its id there and its start, so that a number that was
given again is no mistake. Of processes on other machines, or in other containers, nobody here can say that they are gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

SETTINGS: Final = "settings"
"""Under which the scheduler tells, with its role, the sections of the settings that it works by."""

_PROC = Path("/proc")
# Of the fields after the command's name, which may hold anything, the state is the first.
_STATE_FIELD, _START_FIELD = 0, 19
_DEAD = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, and no other that ever was or will be.

    Attributes:
        boot_id: Of its machine, since that was last started.
        pid_namespace: In which its id counts.
        pid: Its id there.
        start_time: When it began, in clock ticks since the boot.
        host: Name of the machine, for people.
    """

    boot_id: str
    pid_namespace: int
    pid: int
    start_time: int
    host: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ProcessIdentity:
        """What `to_dict` gave."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class RoleHolder:
    """Who holds the scheduler's role now.

    Attributes:
        identity: The process.
        info: What it told of itself: host, pid, address of its cluster, ...
        token: Its lease.
        expires_at: When that lapses unless it is renewed.
    """

    identity: ProcessIdentity
    info: Mapping[str, Any]
    token: int
    expires_at: datetime


def process_identity() -> ProcessIdentity:
    """This process."""
    own = identity_of(os.getpid())
    assert own is not None, "a process sees itself"
    return own


def identity_of(pid: int) -> ProcessIdentity | None:
    """A process beside this one, by its number here; None where there is none."""
    stat = _stat(str(pid))
    if stat is None:
        return None
    return ProcessIdentity(_boot_id(), _pid_namespace(), pid, int(stat[_START_FIELD]), socket.gethostname())


def is_provably_gone(identity: ProcessIdentity) -> bool:
    """Whether the process has certainly ended: it was one of ours to see, and is not there any more."""
    if (identity.boot_id, identity.pid_namespace) != (_boot_id(), _pid_namespace()):
        return False
    try:
        # Where the processes of others are hidden, /proc alone would make them look gone.
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    stat = _stat(str(identity.pid))
    return stat is not None and (stat[_STATE_FIELD] in _DEAD or int(stat[_START_FIELD]) != identity.start_time)


def _stat(process: str) -> list[str] | None:
    try:
        text = (_PROC / process / "stat").read_text(errors="replace")
    except (OSError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> int:
    return (_PROC / "self/ns/pid").stat().st_ino
