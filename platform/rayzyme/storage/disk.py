"""What writing asks of the disk: one owner of a file at a time, bytes that outlive a power cut, and a lack
of space that is said in figures.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rayzyme.errors import InsufficientSpace

TEMPORARY_PREFIX = ".tmp-"
"""How the names of files begin that are being written, or whose writers died; 32 hexadecimal digits follow."""

_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{32}}")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def sole_owner(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` against other threads and processes; the system lets go of it when its holder dies.

    The lock file stays: deleting it would let two processes hold two different files of one name.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that works on %s", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def flush_to_disk(path: Path) -> None:
    """Have the system write a file's bytes, or a folder's names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A new file in `folder` to be written, synced and renamed inside of the block; at its end it is removed if it was not.

    It is locked meanwhile, so that `remove_leftovers` can tell a writer at work from one that died.
    """
    with _open_temporary(folder) as sink:
        try:
            yield sink
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(sink.name).unlink()


def _open_temporary(folder: Path) -> IO[bytes]:
    while True:
        sink = (folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}").open("xb")
        fcntl.flock(sink, fcntl.LOCK_EX)
        # Between the two lines above another process may have taken it for a dead writer's.
        if os.fstat(sink.fileno()).st_nlink:
            return sink
        sink.close()


def put_in_place(sink: IO[bytes], path: Path) -> None:
    """Give a `temporary_file` its name, once its bytes are on the disk; from then on others may read it."""
    sink.flush()
    os.fsync(sink.fileno())
    Path(sink.name).replace(path)
    fcntl.flock(sink, fcntl.LOCK_UN)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file so that others see the old content or the new, never a mixture, whenever this process is killed.

    Args:
        path: Its folder must exist.

    Raises:
        InsufficientSpace: The disk is full; nothing is left behind.
    """
    with writing(f"writing {path.name}", path.parent, 0), temporary_file(path.parent) as sink:
        yield sink
        put_in_place(sink, path)


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file's whole content by `atomic_file`.

    Raises:
        InsufficientSpace: The disk is full; the old content stands.
    """
    with atomic_file(path) as sink:
        sink.write(content)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files, and folders of them, whose writers died; those that are being written stay."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if not _TEMPORARY_NAME.fullmatch(path.name):
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            logger.debug("%s is being written", path)
        finally:
            os.close(descriptor)


def require_space(what: str, folder: Path, needed: int) -> None:
    """Refuse to start on bytes that the disk cannot hold.

    Raises:
        InsufficientSpace: Names `what` needs the bytes, the folder, and both figures.
    """
    if needed > shutil.disk_usage(folder).free:
        raise _out_of_space(what, folder, needed)


@contextlib.contextmanager
def writing(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Write inside of this where others may take the space meanwhile.

    Raises:
        InsufficientSpace: The disk, or the user's share of it, became full; `needed` bytes were still to come, 0 where nobody
            knows.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _out_of_space(f"the disk is full: {what}", folder, needed) from error


@contextlib.contextmanager
def full_database_as_os_error() -> Iterator[None]:
    """SQLite says in words that the disk is full; the rest of Rayzyme knows it as ENOSPC."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        raise OSError(errno.ENOSPC, str(error)) from error


def _out_of_space(what: str, folder: Path, needed: int) -> InsufficientSpace:
    free = f"{shutil.disk_usage(folder).free:,}"
    figures = (
        f"needs {needed:,} bytes in {folder}, where {free} are" if needed else f"in {folder}, where {free} bytes are"
    )
    return InsufficientSpace(f"{what} {figures} free. Free some space, or point RAYZYME_HOME to a larger disk.")
