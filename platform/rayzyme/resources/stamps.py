"""Stamps tell a process, for the price of reading a number, whether another one changed an entry of the cache."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path

SLOTS = 2048
"""How many stamps there are."""

_CHANGING = 2**64 - 1


class Stamps:
    """Random numbers in a file that processes share; several keys share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # A hole in a mapped file kills its reader when the disk is full.
            os.posix_fallocate(descriptor, 0, 8 * SLOTS)
            self._map = mmap.mmap(descriptor, 8 * SLOTS, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        self._numbers = memoryview(self._map).cast("Q")

    def read(self, slot: int) -> int | None:
        """A stamp; None while it is being renewed, and after its renewer was killed until the next one comes."""
        number = self._numbers[slot]
        return None if number == _CHANGING else number

    @contextlib.contextmanager
    def renewing(self, first: int, count: int) -> Iterator[int]:
        """Hold some stamps while what they stand for is changed; they get the number that this gives at the end."""
        number = secrets.randbelow(_CHANGING)
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            # The lock is the descriptor's, so it keeps threads apart as well.
            wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 8 * first, 8 * count, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, wanted)
            # Written through the file, since a disk's errors on a map are deadly.
            os.pwrite(descriptor, struct.pack("Q", _CHANGING) * count, 8 * first)
            try:
                yield number
            finally:
                os.pwrite(descriptor, struct.pack("Q", number) * count, 8 * first)
        finally:
            os.close(descriptor)

    def renew_all(self) -> None:
        """Renew them at once, held or not: nothing is under them any more."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(secrets.token_bytes(8 * SLOTS))

    def close(self) -> None:
        """Let go of the file."""
        self._numbers.release()
        self._map.close()


def slot_of(digest: str) -> int:
    """Which stamp is a key's, by its digest in hexadecimal."""
    return int(digest[:8], 16) % SLOTS
