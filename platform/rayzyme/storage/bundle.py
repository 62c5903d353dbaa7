"""A bundle: one file with a value, its arrays in pieces, and a digest of every piece.

Layout: the magic, the pieces one after the other, a JSON footer that says where each piece lies, and the footer's length and
digest. The footer comes last so that arrays can be written while they are being made. A piece is checked whenever it is
read, so a part of a large array is read, and checked, without the rest. Arrays stored as they are in memory begin at
multiples of 64 bytes and can be mapped.

Zarr and HDF5 keep arrays in pieces too, but not a whole tree of Python values, NumPy's byte orders and structured types, and
a digest of every byte, in one file that can be mapped.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayzyme.errors import DamagedFile, InvalidInput
from rayzyme.storage.bundle_layout import (
    DIGEST_BYTES,
    LENGTH_BYTES,
    MAGIC,
    TRAILER_BYTES,
    AnyArray,
    FileSource,
    Layout,
    MemorySource,
    Source,
    ahead,
    is_being_read,
    joined,
)
from rayzyme.storage.bundle_writing import write_bundle
from rayzyme.storage.chunk_coding import decode
from rayzyme.storage.values import pack, unpack

__all__ = ["Bundle", "dump_value", "is_being_read", "load_value", "write_bundle"]


def dump_value(value: Any, name: str, *, compress: bool = False) -> bytes:
    """A value as a bundle's bytes.

    Raises:
        TypeError: It holds something that cannot be stored; names its place, beginning with `name`.
    """
    sink = io.BytesIO()
    write_bundle(sink, pack(value, name), compress=compress)
    return sink.getvalue()


def load_value(content: bytes) -> Any:
    """The value of `dump_value`.

    Raises:
        DamagedFile: The bytes are torn or were altered.
    """
    return Bundle.of_bytes(content).value()


class Bundle:
    """A bundle opened for reading; a context manager. While a file is open, and as long as an array mapped from it lives,
    it is locked as being read (see `is_being_read`).

    Attributes:
        attributes: As given to `write_bundle`.
        document: The value, with numbers for arrays.
        size: Bytes in all.
    """

    def __init__(self, source: Source, name: str) -> None:
        """Read the footer.

        Raises:
            DamagedFile: It is torn or was altered.
        """
        self._source = source
        self._name = name
        self.size = source.size
        footer = self._footer()
        self.attributes: dict[str, Any] = footer["attributes"]
        self.document: Any = footer["document"]
        self._arrays = [Layout(layout) for layout in footer["arrays"]]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a file.

        Raises:
            FileNotFoundError: There is none.
            DamagedFile: It is torn or was altered.
        """
        source = FileSource(path)
        try:
            return cls(source, str(path))
        except BaseException:
            source.close()
            raise

    @classmethod
    def of_bytes(cls, content: bytes) -> Bundle:
        """Read one from memory; its arrays stored as they are in memory are read-only views of `content`.

        Raises:
            DamagedFile: It is torn or was altered.
        """
        return cls(MemorySource(content), "the bundle")

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays mapped from it stay readable."""
        self._source.close()

    def value(self) -> Any:
        """The whole value. Arrays stored as they are in memory are read-only maps, others arrays of their own.

        Raises:
            DamagedFile: A piece is torn or was altered.
        """
        return unpack(self.document, self.array)

    def array(self, number: int) -> AnyArray:
        """A whole array.

        Raises:
            DamagedFile: A piece is torn or was altered.
        """
        layout = self._arrays[number]
        if layout.is_raw and layout.nbytes:
            for _ in ahead(self._read, layout.pieces):
                pass
            array = self._source.map(layout)
        else:
            array = np.empty(layout.stored_shape, layout.dtype)
            for first, rows in self._pieces(layout, range(len(layout.pieces))):
                array[first : first + len(rows)] = rows
        if layout.order == "transposed":
            return array.reshape(layout.shape[::-1]).T
        array = array.reshape(layout.shape)
        return np.asfortranarray(array) if layout.order == "F" else array

    def rows(self, number: int, start: int, stop: int, step: int = 1) -> AnyArray:
        """Rows `start` to `stop` of an array, as slicing would give them; pieces that hold none of them are not touched.

        Raises:
            InvalidInput: The array was not stored by rows.
            DamagedFile: A piece is torn or was altered.
        """
        layout = self._by_rows(number)
        wanted = range(layout.rows)[start:stop:step]
        array: AnyArray = np.empty((len(wanted), *layout.shape[1:]), layout.dtype)
        if not wanted:
            return array
        chosen = np.arange(wanted.start, wanted.stop, wanted.step)
        for first, rows in self._pieces(layout, np.unique(chosen // layout.rows_per_piece).tolist()):
            here = (chosen >= first) & (chosen < first + len(rows))
            array[here] = rows[chosen[here] - first]
        return array

    def blocks(self, number: int, rows: int) -> Iterator[AnyArray]:
        """An array in blocks of so many rows, each piece read once.

        Raises:
            InvalidInput: The array was not stored by rows.
            DamagedFile: A piece is torn or was altered.
        """
        layout = self._by_rows(number)
        waiting: list[AnyArray] = []
        held = 0
        for _, piece in self._pieces(layout, range(len(layout.pieces))):
            waiting.append(piece)
            held += len(piece)
            while held >= rows:
                together = joined(waiting)
                yield together[:rows]
                waiting, held = [together[rows:]], held - rows
        if held:
            yield joined(waiting)

    def verify(self) -> None:
        """Check every byte.

        Raises:
            DamagedFile: One is wrong.
        """
        end = len(MAGIC)
        for layout in self._arrays:
            for _ in ahead(self._read, layout.pieces):
                pass
            end = layout.pieces[-1]["end"] if layout.pieces else end
        if end != self._footer_start:
            raise self._damage("there are bytes that belong to no piece")

    def _footer(self) -> dict[str, Any]:
        trailer = self._source.read(max(0, self.size - TRAILER_BYTES), TRAILER_BYTES)
        length = int.from_bytes(trailer[:LENGTH_BYTES], "little")
        self._footer_start = self.size - TRAILER_BYTES - length
        if len(trailer) < TRAILER_BYTES or trailer[-len(MAGIC) :] != MAGIC or self._footer_start < len(MAGIC):
            raise self._damage("its end is missing")
        footer = self._source.read(self._footer_start, length)
        digest = trailer[LENGTH_BYTES : LENGTH_BYTES + DIGEST_BYTES]
        if hashlib.sha256(footer).digest() != digest or self._source.read(0, len(MAGIC)) != MAGIC:
            raise self._damage("its table of contents was altered")
        parsed: dict[str, Any] = json.loads(footer)
        return parsed

    def _by_rows(self, number: int) -> Layout:
        layout = self._arrays[number]
        if not layout.shape or layout.stored_shape != layout.shape or layout.order == "transposed":
            raise InvalidInput(f"an array of {self._name} was not stored by rows; read it whole")
        return layout

    def _pieces(self, layout: Layout, numbers: Iterable[int]) -> Iterator[tuple[int, AnyArray]]:
        """Some pieces: (their first row, the rows)."""

        def read(number: int) -> tuple[int, AnyArray]:
            piece, first = layout.pieces[number], number * layout.rows_per_piece
            shape = (min(layout.rows_per_piece, layout.rows - first), *layout.stored_shape[1:])
            return first, decode(self._read(piece), piece["coding"], layout.dtype, shape)

        yield from ahead(read, numbers)

    def _read(self, piece: dict[str, Any]) -> memoryview:
        # The padding before it is part of what is checked.
        content = memoryview(self._source.read(piece["start"], piece["end"] - piece["start"]))
        if hashlib.sha256(content).hexdigest() != piece["sha256"]:
            raise self._damage(f"bytes {piece['start']} to {piece['end']} were altered or are missing")
        return content[piece["padding"] :]

    def _damage(self, what: str) -> DamagedFile:
        return DamagedFile(f"{self._name} is damaged: {what}; make it again, or take it from a backup")
