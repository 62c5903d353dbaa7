"""What writing asks of the disk: one owner of a file at a time, bytes that outlive a power cut, and a lack
of space that is said in figures.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rayzyme.errors import InsufficientSpace

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def sole_owner(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` against other threads and processes; the system lets go of it when its holder dies.

    The lock file stays: deleting it would let two processes hold two different files of one name.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that works on %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def flush_to_disk(path: Path) -> None:
    """Have the system write a file's bytes, or a folder's names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
        InsufficientSpace: The disk, or the user's share of it, became full; `needed` bytes were still to come.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _out_of_space(f"the disk is full: {what}", folder, needed) from error


def _out_of_space(what: str, folder: Path, needed: int) -> InsufficientSpace:
    return InsufficientSpace(
        f"{what} needs {needed:,} bytes in {folder}, where {shutil.disk_usage(folder).free:,} are free. Free some space, "
        "or point RAYZYME_HOME to a larger disk."
    )
