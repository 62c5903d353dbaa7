"""A bundle: one file with a value, its arrays in pieces, and a digest of every piece.

Layout: the magic, the pieces one after the other, a JSON footer that says where each piece lies, and the footer's length and
digest. The footer comes last so that arrays can be written while they are being made. A piece is checked whenever it is
read, so a part of a large array is read, and checked, without the rest. Arrays stored as they are in memory begin at
multiples of 64 bytes and can be mapped.

Zarr and HDF5 keep arrays in pieces too, but not a whole tree of Python values, NumPy's byte orders and structured types, and
a digest of every byte, in one file that can be mapped.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayzyme.errors import DamagedFile, InvalidInput
from rayzyme.storage.chunk_coding import Coding, decode, encode
from rayzyme.storage.values import ArrayBlocks, PackedValue, describe_dtype, pack, read_dtype, unpack

AnyArray = NDArray[Any]

_MAGIC = b"RZBNDL1\n"
_LENGTH_BYTES = 8
_TRAILER = _LENGTH_BYTES + 32 + len(_MAGIC)
_ALIGNMENT = 64
_PIECE_BYTES = 1 << 20
_LARGEST_PIECE_BYTES = 16 << 20
_FRAMES_PER_PIECE = 64
_FEW_PIECES = 4
_THREADS = min(4, os.cpu_count() or 1)

Order = Literal["C", "F", "transposed"]
"""How an array lay in memory. "transposed" is Fortran's order stored as it lay, "F" Fortran's order stored in C's."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def write_bundle(
    sink: IO[bytes],
    packed: PackedValue,
    *,
    compress: bool = False,
    by_frames: bool = False,
    precision: float | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a value.

    Args:
        sink: Opened for binary writing, at its beginning.
        packed: Of `rayzyme.storage.values.pack`.
        compress: Whether to compress, without loss.
        by_frames: Arrays of two and more axes are frames along the first: pieces hold at most 64 of them.
        precision: Floats of frames are stored as multiples of this step, off by half of it at most.
        attributes: JSON that is read without reading any array.
    """
    writer = _Writer(sink, compress, by_frames, precision)
    arrays = [writer.write(array, place) for array, place in zip(packed.arrays, packed.places, strict=True)]
    footer = json.dumps(
        {"document": packed.document, "arrays": arrays, "attributes": dict(attributes or {})}, separators=(",", ":")
    ).encode()
    sink.write(footer + len(footer).to_bytes(_LENGTH_BYTES, "little") + hashlib.sha256(footer).digest() + _MAGIC)


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
        self._arrays = [_Layout(layout) for layout in footer["arrays"]]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a file.

        Raises:
            FileNotFoundError: There is none.
            DamagedFile: It is torn or was altered.
        """
        source = _File(path)
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
        return cls(_Memory(content), "the bundle")

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
                joined = _joined(waiting)
                yield joined[:rows]
                waiting, held = [joined[rows:]], held - rows
        if held:
            yield _joined(waiting)

    def verify(self) -> None:
        """Check every byte.

        Raises:
            DamagedFile: One is wrong.
        """
        end = len(_MAGIC)
        for layout in self._arrays:
            for _ in ahead(self._read, layout.pieces):
                pass
            end = layout.pieces[-1]["end"] if layout.pieces else end
        if end != self._footer_start:
            raise self._damage("there are bytes that belong to no piece")

    def _footer(self) -> dict[str, Any]:
        trailer = self._source.read(max(0, self.size - _TRAILER), _TRAILER)
        length = int.from_bytes(trailer[:_LENGTH_BYTES], "little")
        self._footer_start = self.size - _TRAILER - length
        if len(trailer) < _TRAILER or trailer[-len(_MAGIC) :] != _MAGIC or self._footer_start < len(_MAGIC):
            raise self._damage("its end is missing")
        footer = self._source.read(self._footer_start, length)
        digest = trailer[_LENGTH_BYTES : _LENGTH_BYTES + 32]
        if hashlib.sha256(footer).digest() != digest or self._source.read(0, len(_MAGIC)) != _MAGIC:
            raise self._damage("its table of contents was altered")
        parsed: dict[str, Any] = json.loads(footer)
        return parsed

    def _by_rows(self, number: int) -> _Layout:
        layout = self._arrays[number]
        if not layout.shape or layout.stored_shape != layout.shape or layout.order == "transposed":
            raise InvalidInput(f"an array of {self._name} was not stored by rows; read it whole")
        return layout

    def _pieces(self, layout: _Layout, numbers: Iterable[int]) -> Iterator[tuple[int, AnyArray]]:
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


class _Layout:
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

    def map(self, layout: _Layout) -> AnyArray:
        """A read-only view of an array stored as it is in memory."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class _File:
    def __init__(self, path: Path) -> None:
        self._whole: Any = None
        self._file = path.open("rb")
        # Shared with every map made of it, and let go of by the system with the last of them.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, start)

    def map(self, layout: _Layout) -> AnyArray:
        # One map for all arrays of a file: each takes a descriptor.
        if self._whole is None:
            self._whole = np.memmap(self._file, np.uint8, "r")
        array: AnyArray = self._whole[layout.offset : layout.offset + layout.nbytes].view(layout.dtype)
        return array.reshape(layout.stored_shape)

    def close(self) -> None:
        # What was mapped lives on with its arrays.
        self._whole = None
        self._file.close()


class _Memory:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, length: int) -> bytes:
        return self._content[start : start + length]

    def map(self, layout: _Layout) -> AnyArray:
        count = int(np.prod(layout.shape))
        return np.frombuffer(self._content, layout.dtype, count, layout.offset).reshape(layout.stored_shape)

    def close(self) -> None:
        return None


class _Writer:
    def __init__(self, sink: IO[bytes], compress: bool, by_frames: bool, precision: float | None) -> None:
        self._sink = sink
        self._compress = compress
        self._by_frames = by_frames
        self._precision = precision
        self._end = sink.write(_MAGIC)

    def write(self, array: AnyArray | ArrayBlocks, place: str) -> dict[str, Any]:
        """Write an array's pieces; gives what `_Layout` reads. Errors call it `place`."""
        if isinstance(array, ArrayBlocks):
            return self._write_blocks(array, place)
        order: Order = "C"
        if array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous:
            # Frames are read one by one, so they lie together; others are stored as they lie, to be mapped.
            order = "F" if self._by_frames else "transposed"
        plain = array.T if order == "transposed" else np.ascontiguousarray(array).reshape(array.shape)
        rows_per_piece = self._rows_per_piece(plain)
        stored = plain if rows_per_piece else plain.reshape(-1)
        rows_per_piece = rows_per_piece or max(1, _PIECE_BYTES // max(1, plain.itemsize))
        firsts = range(0, len(stored), rows_per_piece)
        pieces = self._write_pieces(stored[first : first + rows_per_piece] for first in firsts)
        return _described(array.dtype, array.shape, stored.shape, rows_per_piece, pieces, order)

    def _write_blocks(self, blocks: ArrayBlocks, place: str) -> dict[str, Any]:
        first, rest = _peek(blocks.blocks, place)
        rows_per_piece = self._rows_per_piece(first) or 1
        total = 0

        def cut() -> Iterator[AnyArray]:
            nonlocal total
            waiting: list[AnyArray] = []
            for block in rest:
                some = np.ascontiguousarray(_require_array(block, place))
                if some.shape[1:] != first.shape[1:] or some.dtype != first.dtype:
                    raise ValueError(
                        f"a block of {some.dtype} {some.shape} does not continue one of {first.dtype} {first.shape}"
                    )
                total += len(some)
                waiting.append(some)
                while sum(map(len, waiting)) >= rows_per_piece:
                    joined = _joined(waiting)
                    yield joined[:rows_per_piece]
                    waiting = [joined[rows_per_piece:]]
            if sum(map(len, waiting)):
                yield _joined(waiting)

        pieces = self._write_pieces(cut())
        shape = (total, *first.shape[1:])
        return _described(first.dtype, shape, shape, rows_per_piece, pieces, "C")

    def _rows_per_piece(self, array: AnyArray) -> int:
        """0 where rows are too large, or there are none: such arrays are cut anywhere."""
        if array.ndim == 0:
            return 0
        row_bytes = max(1, int(np.prod(array.shape[1:])) * array.itemsize)
        if self._by_frames and array.ndim > 1:
            return min(_FRAMES_PER_PIECE, max(1, _LARGEST_PIECE_BYTES // row_bytes))
        return max(1, _PIECE_BYTES // row_bytes) if row_bytes <= _LARGEST_PIECE_BYTES else 0

    def _write_pieces(self, pieces: Iterable[AnyArray]) -> list[dict[str, Any]]:
        written = []
        for coding, padding, content, digest in ahead(self._encoded, enumerate(pieces)):
            start = self._end
            self._end += padding + len(content)
            self._sink.write(bytes(padding))
            self._sink.write(content)
            written.append({"start": start, "end": self._end, "padding": padding, "sha256": digest, "coding": coding})
        return written

    def _encoded(self, numbered: tuple[int, AnyArray]) -> tuple[Coding, int, memoryview, str]:
        number, piece = numbered
        precision = self._precision if piece.ndim > 1 and piece.dtype.kind == "f" else None
        coding, content = encode(piece, compress=self._compress, precision=precision)
        # Before its first piece nothing else of an array is on its way, so this is where it will lie.
        padding = -self._end % _ALIGNMENT if number == 0 and not coding else 0
        digest = hashlib.sha256(bytes(padding))
        digest.update(content)
        return coding, padding, content, digest.hexdigest()


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


def _peek(blocks: Iterator[Any], place: str) -> tuple[AnyArray, Iterator[Any]]:
    """The first block, and all of them."""
    first = next(blocks, None)
    if first is None:
        raise ValueError(f"{place} has no block; give at least one, if only an empty one")
    array = _require_array(first, place)
    try:
        describe_dtype(array.dtype)
    except TypeError as error:
        raise TypeError(f"{place} has {error}") from None
    return array, chain([first], blocks)


def _require_array(block: Any, place: str) -> AnyArray:
    if type(block) not in (np.ndarray, np.memmap) or not block.ndim:
        raise TypeError(f"the blocks of {place} must be NumPy arrays with rows, not {type(block).__name__}")
    array: AnyArray = block
    return array


def _joined(blocks: list[AnyArray]) -> AnyArray:
    """One array; a single block is not copied."""
    # NumPy would join big-endian blocks to a little-endian array.
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, dtype=blocks[0].dtype)


def _described(
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    stored_shape: tuple[int, ...],
    rows_per_piece: int,
    pieces: list[dict[str, Any]],
    order: Order,
) -> dict[str, Any]:
    return {
        "dtype": describe_dtype(dtype), "shape": shape, "stored_shape": stored_shape, "rows_per_piece": rows_per_piece,
        "order": order, "pieces": pieces,
    }  # fmt: skip
