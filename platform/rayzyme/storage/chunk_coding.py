"""How a piece of an array becomes bytes and comes back, bit for bit unless told otherwise.

Numbers of four or eight bytes are seen as integers: floats that are exact decimals (as coordinates from GROMACS's xtc files
are, in thousandths of a nm) by their multiple, others by their bits. The integers, or their differences along the first
axis, whichever takes less, are byte-shuffled and compressed with Zstandard. Everything is tried on the piece at hand and
undone to see that the same bits come back, so that nothing is assumed about where the data came from.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]
Coding = dict[str, Any]
"""JSON: `{"numbers": how numbers became integers, "differences": bool, ...}`; empty for bytes as they are in memory."""

_Reading = Literal["multiplied", "divided"]

_COMPRESSION_LEVEL = 3
_SCALES = tuple(10**power for power in range(7))
_SAMPLE = 256


def encode(piece: AnyArray, *, compress: bool, precision: float | None = None) -> tuple[Coding, memoryview]:
    """Turn a C-ordered piece into bytes.

    Args:
        piece: Any dtype but object, any shape.
        compress: Whether to; raw bytes otherwise.
        precision: Store floats as multiples of this step, off by half of it at most; where float32 cannot tell such
            multiples apart the piece is stored as it is.

    Returns:
        What `decode` needs to know, and the bytes.
    """
    if not compress and precision is None:
        return {}, bytes_of(piece).data
    if not piece.nbytes:
        return {}, memoryview(b"")
    if piece.dtype.kind not in "fiu" or piece.dtype.itemsize not in (4, 8) or not piece.dtype.isnative:
        return {"zstd": piece.dtype.itemsize}, _compressed(piece, piece.dtype.itemsize)
    how, integers = _as_integers(piece, precision)
    size = integers.dtype.itemsize
    best = _compressed(integers, size)
    differences = len(piece) > 1
    if differences:
        other = _compressed(_zigzag(_differences(integers)), size)
        differences = len(other) < len(best)
        best = min(best, other, key=len)
    return {"zstd": size, "differences": differences, **how}, best


def decode(content: bytes | memoryview, coding: Coding, dtype: np.dtype[Any], shape: tuple[int, ...]) -> AnyArray:
    """The piece that `encode` was given; it may be written to."""
    if not coding:
        plain: AnyArray = np.empty(shape, dtype)
        bytes_of(plain)[:] = np.frombuffer(content, np.uint8)
        return plain
    stored = np.dtype(f"i{coding['zstd']}") if "differences" in coding else dtype
    integers: AnyArray = np.empty(shape, stored)
    _codec(coding["zstd"]).decode(content, out=bytes_of(integers))
    if coding.get("differences"):
        integers = np.cumsum(_unzigzag(integers), axis=0, dtype=integers.dtype)
    if "scale" in coding:
        return _from_multiples(integers, dtype, coding["scale"], coding["reading"])
    if "step" in coding:
        return _from_steps(integers, dtype, coding["step"])
    return integers.view(dtype) if integers.dtype != dtype else integers


def bytes_of(array: AnyArray) -> NDArray[np.uint8]:
    """A C-ordered array's own memory; dtypes without bytes, such as U0, have none."""
    return array.reshape(-1).view(np.uint8) if array.nbytes else np.empty(0, np.uint8)


def _as_integers(piece: AnyArray, precision: float | None) -> tuple[Coding, AnyArray]:
    if piece.dtype.kind == "f" and piece.size:
        found = _as_steps(piece, precision) if precision is not None else _as_multiples(piece)
        if found is not None:
            return found
    return {}, piece.view(f"i{piece.dtype.itemsize}")


def _as_multiples(piece: AnyArray) -> tuple[Coding, AnyArray] | None:
    """Whole multiples of a power of ten, if every number is one and comes back with the same bits."""
    sample = piece.reshape(-1)[:_SAMPLE]
    for scale in _SCALES:
        for reading in ("divided", "multiplied"):
            if _multiples(sample, scale, reading) is not None:
                integers = _multiples(piece, scale, reading)
                if integers is not None:
                    return {"scale": scale, "reading": reading}, integers
    return None


def _multiples(numbers: AnyArray, scale: int, reading: _Reading) -> AnyArray | None:
    integers = _rounded(numbers.astype(np.float64) * scale)
    if integers is None:
        return None
    again = _from_multiples(integers, numbers.dtype, scale, reading)
    bits = f"u{numbers.dtype.itemsize}"
    return integers if np.array_equal(again.view(bits), numbers.view(bits)) else None


def _from_multiples(integers: AnyArray, dtype: np.dtype[Any], scale: int, reading: _Reading) -> AnyArray:
    # A reader of text divides and rounds once; GROMACS's own reader multiplies by the rounded inverse.
    if reading == "divided":
        return (integers / scale).astype(dtype)
    product: AnyArray = integers.astype(dtype) * dtype.type(1 / scale)
    return product


def _as_steps(piece: AnyArray, step: float) -> tuple[Coding, AnyArray] | None:
    wide = piece.astype(np.float64)
    integers = _rounded(wide / step)
    if integers is None:
        return None
    again = _from_steps(integers, piece.dtype, step).astype(np.float64)
    return ({"step": step}, integers) if np.abs(again - wide).max() <= step / 2 else None


def _from_steps(integers: AnyArray, dtype: np.dtype[Any], step: float) -> AnyArray:
    return (integers * step).astype(dtype)


def _rounded(numbers: NDArray[np.float64]) -> NDArray[np.int32] | None:
    """The nearest integers; None where one does not fit, NaN and infinities included."""
    limit = 2.0**31 - 1
    if not (np.abs(numbers) < limit).all():
        return None
    return np.rint(numbers).astype(np.int32)


def _differences(integers: AnyArray) -> AnyArray:
    """Each row less the one before it; the first as it is. Overflow wraps, and wraps back."""
    rows = integers.copy()
    rows[1:] -= integers[:-1]
    return rows


def _zigzag(integers: AnyArray) -> AnyArray:
    """Small numbers of either sign become small ones without, whose upper bytes are all zero."""
    bits = 8 * integers.dtype.itemsize - 1
    return (integers << 1) ^ (integers >> bits)


def _unzigzag(integers: AnyArray) -> AnyArray:
    halves: AnyArray = (integers.view(f"u{integers.dtype.itemsize}") >> 1).view(integers.dtype)
    signs: AnyArray = -(integers & 1)
    halves ^= signs
    return halves


def _compressed(piece: AnyArray, item_size: int) -> memoryview:
    return memoryview(_codec(item_size).encode(bytes_of(piece)))


@cache
def _codec(item_size: int) -> Any:
    # Loaded with the first compressed array: who stores none needs no compressor.
    from numcodecs import Blosc

    shuffle = Blosc.SHUFFLE if 1 < item_size < 256 else Blosc.NOSHUFFLE
    return Blosc(cname="zstd", clevel=_COMPRESSION_LEVEL, shuffle=shuffle, typesize=min(item_size, 255))
