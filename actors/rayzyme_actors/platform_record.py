"""What `rayzyme up` runs on this machine: written down in RAYZYME_HOME, found there by every other command."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rayzyme.errors import DamagedFile
from rayzyme.jobs.role import ProcessIdentity, is_provably_gone
from rayzyme.storage.disk import atomic_write

_FORMAT: Final = 1
_ANSWER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class PlatformRecord:
    """The Ray that was started or joined, and the HTTP endpoint on it.

    Attributes:
        address: `host:port` of Ray; empty for as long as a Ray of our own is starting.
        dashboard: URL of its dashboard; empty where it has none.
        authentication: Variables of the environment by which programs are let in.
        process: The one that all of a Ray of our own hang on; None where a Ray was joined.
        folder: What that Ray writes; None where a Ray was joined.
        endpoint: URL of the HTTP endpoint; empty until it was started.
        host: Address that it listens on.
        is_ending: Whether `rayzyme down` is at work.
    """

    address: str = ""
    dashboard: str = ""
    authentication: Mapping[str, str] = field(default_factory=dict)
    process: ProcessIdentity | None = None
    folder: Path | None = None
    endpoint: str = ""
    host: str = ""
    is_ending: bool = False

    @property
    def is_own(self) -> bool:
        """Whether `rayzyme up` started that Ray, and so `rayzyme down` ends it."""
        return self.folder is not None

    def is_running(self) -> bool:
        """Whether that Ray is there: it listens, and it is not another one that listens now."""
        if not self.address or (self.process is not None and is_provably_gone(self.process)):
            return False
        host, _, port = self.address.rpartition(":")
        return listens(host, int(port))

    def endpoint_listens(self) -> bool:
        """Whether somebody is at the endpoint."""
        url = urlsplit(self.endpoint)
        return bool(url.hostname and url.port and listens(url.hostname, url.port))


def record_file(home: Path) -> Path:
    """Where it is: machines may share a home, and each has its own."""
    return home / "ray" / f"up-{os.uname().nodename}.json"


def read_record(home: Path) -> PlatformRecord | None:
    """What `rayzyme up` runs, or ran until the machine was switched off; None after `rayzyme down`.

    Raises:
        DamagedFile: It cannot be read.
    """
    path = record_file(home)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.pop("format") != _FORMAT:
            raise ValueError("another format")
        process, folder = told.pop("process"), told.pop("folder")
        return PlatformRecord(
            **told, process=process and ProcessIdentity.from_dict(process), folder=Path(folder) if folder else None
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}); end the processes of Ray that `rayzyme up` started, then delete it"
        ) from None


def running_platform(home: Path) -> PlatformRecord | None:
    """What runs on this machine by `rayzyme up`; None where nothing does. Errors as `read_record`."""
    record = read_record(home)
    return record if record is not None and record.is_running() else None


def write_record(home: Path, record: PlatformRecord) -> None:
    """Replace it."""
    told: dict[str, Any] = {
        **asdict(record),
        "format": _FORMAT,
        "authentication": dict(record.authentication),
        "folder": str(record.folder) if record.folder else None,
    }
    atomic_write(record_file(home), json.dumps(told, indent=1).encode())


def remove_record(home: Path) -> None:
    """Nothing runs any more."""
    record_file(home).unlink(missing_ok=True)


def listens(host: str, port: int) -> bool:
    """Whether somebody listens there; Ray itself would wait 20 s to find out."""
    try:
        socket.create_connection((host, port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
