"""How a bundle's bytes lie, and where they are read from: what its reader and its writer agree on."""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayzyme.storage.values import read_dtype

AnyArray = NDArray[Any]

MAGIC = b"RZBNDL1\n"
LENGTH_BYTES = 8
DIGEST_BYTES = 32
TRAILER_BYTES = LENGTH_BYTES + DIGEST_BYTES + len(MAGIC)

_FEW_PIECES = 4
_THREADS = min(4, os.cpu_count() or 1)

Order = Literal["C", "F", "transposed"]
"""How an array lay in memory. "transposed" is Fortran's order stored as it lay, "F" Fortran's order stored in C's."""

Item = TypeVar("Item")
Made = TypeVar("Made")


class Layout:
    """How an array lies in a bundle."""

    def __init__(self, written: dict[str, Any]) -> None:
        self.dtype = read_dtype(written["dtype"])
        self.shape = tuple(written["shape"])
        self.stored_shape = tuple(written["stored_shape"])
        self.rows: int = self.stored_shape[0]
        self.rows_per_piece: int = written["rows_per_piece"]
        self.order: Order = written["order"]
        self.pieces: list[dict[str, Any]] = written["pieces"]
        self.is_raw = not any(piece["coding"] for piece in self.pieces)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def offset(self) -> int:
        """Where the first number is."""
        return int(self.pieces[0]["start"] + self.pieces[0]["padding"])


class Source(Protocol):
    """Where a bundle's bytes are."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """So many bytes, fewer at the end."""
        ...

    def map(self, layout: Layout) -> AnyArray:
        """A read-only view of an array stored as it is in memory."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FileSource:
    def __init__(self, path: Path) -> None:
        self._whole: Any = None
        self._file = path.open("rb")
        # Shared with every map made of it, and let go of by the system with the last of them.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, start)

    def map(self, layout: Layout) -> AnyArray:
        # One map for all arrays of a file: each takes a descriptor.
        if self._whole is None:
            self._whole = np.memmap(self._file, np.uint8, "r")
        array: AnyArray = self._whole[layout.offset : layout.offset + layout.nbytes].view(layout.dtype)
        return array.reshape(layout.stored_shape)

    def close(self) -> None:
        # What was mapped lives on with its arrays.
        self._whole = None
        self._file.close()


class MemorySource:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, length: int) -> bytes:
        return self._content[start : start + length]

    def map(self, layout: Layout) -> AnyArray:
        count = int(np.prod(layout.shape))
        return np.frombuffer(self._content, layout.dtype, count, layout.offset).reshape(layout.stored_shape)

    def close(self) -> None:
        return None


def is_being_read(path: Path) -> bool:
    """Whether some process has the bundle open, or holds an array mapped from it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def ahead(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`map`, in order, with several threads working a few items ahead: compressing and hashing let others run."""
    waiting = iter(items)
    first = list(islice(waiting, _FEW_PIECES))
    if len(first) < _FEW_PIECES:
        yield from map(function, first)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        rest = chain(first, waiting)
        begun = deque(pool.submit(function, item) for item in islice(rest, _THREADS))
        try:
            while begun:
                made = begun.popleft().result()
                begun.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield made
        finally:
            pool.shutdown(cancel_futures=True)


def joined(blocks: list[AnyArray]) -> AnyArray:
    """One array; a single block is not copied."""
    # NumPy would join big-endian blocks to a little-endian array.
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, dtype=blocks[0].dtype)
