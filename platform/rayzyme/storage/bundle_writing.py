"""Writing a bundle, in pieces, while its arrays may still be in the making."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import IO, Any

import numpy as np

from rayzyme.storage.bundle_layout import LENGTH_BYTES, MAGIC, AnyArray, Order, ahead, joined
from rayzyme.storage.chunk_coding import Coding, encode
from rayzyme.storage.values import ArrayBlocks, PackedValue, describe_dtype

_ALIGNMENT = 64
_PIECE_BYTES = 1 << 20
_LARGEST_PIECE_BYTES = 16 << 20
_FRAMES_PER_PIECE = 64


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
    sink.write(footer + len(footer).to_bytes(LENGTH_BYTES, "little") + hashlib.sha256(footer).digest() + MAGIC)


class _Writer:
    def __init__(self, sink: IO[bytes], compress: bool, by_frames: bool, precision: float | None) -> None:
        self._sink = sink
        self._compress = compress
        self._by_frames = by_frames
        self._precision = precision
        self._end = sink.write(MAGIC)

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
                    together = joined(waiting)
                    yield together[:rows_per_piece]
                    waiting = [together[rows_per_piece:]]
            if sum(map(len, waiting)):
                yield joined(waiting)

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
