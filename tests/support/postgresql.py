"""A PostgreSQL server of our own: in a temporary folder, on a free loopback port, ended by its own process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABSENT = "no PostgreSQL server: apt-get install postgresql"


def server_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`: Debian keeps them off the PATH."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return versions[-1].parent if versions else None


@contextmanager
def postgresql_server(binaries: Path) -> Iterator[str]:
    """Start a server; gives the URL of its database `postgres`."""
    # Not pytest's own folder: that one is closed to the user `postgres`, and root may not run the server.
    with tempfile.TemporaryDirectory(prefix="rayzyme-postgresql-") as folder:
        data = Path(folder) / "data"
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(folder, "postgres", "postgres")
        run = [*as_user, str(binaries / "initdb"), "-D", str(data), "-U", "rayzyme", "-A", "trust", "--no-sync"]
        subprocess.run(run, check=True, capture_output=True, cwd=folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        control = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-w"]
        log = ["-l", f"{folder}/log", "-o", options, "start"]
        subprocess.run([*control, *log], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            yield f"postgresql+psycopg://rayzyme@127.0.0.1:{port}/postgres"
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
