"""Bundles: what was put in comes out, in parts too, and a byte that was altered is found."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.values import same, values

from rayzyme.errors import DamagedFile
from rayzyme.storage.bundle import Bundle, dump_value, is_being_read, load_value, write_bundle
from rayzyme.storage.chunk_coding import decode, encode
from rayzyme.storage.values import ArrayBlocks, PackedValue, pack

PEPTIDE = Path(__file__).parent.parent / "fixtures" / "peptide_trajectory.npz"


def write(path: Path, packed: PackedValue, **options: Any) -> Path:
    with path.open("wb") as sink:
        write_bundle(sink, packed, **options)
    return path


@given(values(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_value_comes_back(value: Any, compress: bool) -> None:
    """C24, C66"""
    assert same(load_value(dump_value(value, "value", compress=compress)), value)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("shape", [(300_000,), (1000, 7, 3), (3, 5_000_000), (1, 3_000_000, 3), (0, 5), (5, 0)])
def test_large_and_empty_arrays_come_back(shape: tuple[int, ...], compress: bool) -> None:
    """C24"""
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert same(load_value(dump_value(array, "array", compress=compress)), array)


floats = st.floats(width=32) | st.integers(-(10**7), 10**7).map(lambda n: n / 1000)


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=20), st.sampled_from(["f4", "f8"]))
@settings(max_examples=200, deadline=None)
def test_compressed_numbers_have_the_same_bits(rows: list[list[float]], kind: str) -> None:
    """C33"""
    piece = np.array(rows, kind)
    coding, content = encode(piece, compress=True)
    assert same(decode(bytes(content), coding, piece.dtype, piece.shape), piece)


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8"])
def test_differences_of_extreme_integers_wrap_back(kind: str) -> None:
    """C33"""
    limits = np.iinfo(kind)
    piece = np.array([[limits.min], [limits.max], [limits.min], [0], [limits.max]] * 50, kind)
    coding, content = encode(piece, compress=True)
    assert same(decode(bytes(content), coding, piece.dtype, piece.shape), piece)


@pytest.mark.parametrize("numbers", ["text", "xtc"])
def test_decimals_are_found_however_their_reader_rounded(numbers: str) -> None:
    """C33"""
    thousandths = np.random.default_rng(0).integers(-9000, 9000, (50, 20, 3)).astype(np.int32)
    divided, multiplied = (thousandths / 1000).astype(np.float32), thousandths.astype(np.float32) * np.float32(0.001)
    piece = divided if numbers == "text" else multiplied
    assert not same(divided, multiplied)
    coding, content = encode(piece, compress=True)
    assert coding["scale"] == 1000
    assert same(decode(bytes(content), coding, piece.dtype, piece.shape), piece)


def test_a_real_trajectory_shrinks_by_more_than_sixty_percent() -> None:
    """C33"""
    frames = np.load(PEPTIDE)["frames"]
    stored = dump_value(frames, "frames", compress=True)
    assert same(load_value(stored), frames)
    assert len(stored) < 0.4 * frames.nbytes


@given(st.floats(1e-4, 1.0), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_precision_is_kept(precision: float, seed: int) -> None:
    """C34"""
    frames = np.random.default_rng(seed).normal(scale=50, size=(5, 4, 3)).astype(np.float32)
    sink = io.BytesIO()
    write_bundle(sink, pack(frames, "frames"), compress=True, by_frames=True, precision=precision)
    error = np.abs(load_value(sink.getvalue()).astype(np.float64) - frames.astype(np.float64))
    assert error.max() <= precision / 2


def test_a_precision_that_float32_cannot_tell_apart_loses_nothing() -> None:
    """C34"""
    frames = (np.random.default_rng(0).normal(size=(5, 4, 3)) * 1e6).astype(np.float32)
    sink = io.BytesIO()
    write_bundle(sink, pack(frames, "frames"), compress=True, by_frames=True, precision=0.001)
    assert same(load_value(sink.getvalue()), frames)


@pytest.fixture(params=[True, False], ids=["compressed", "plain"])
def trajectory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bundle, NDArray[np.float32]]]:
    frames = np.random.default_rng(0).normal(size=(1000, 20, 3)).astype(np.float32)
    path = write(tmp_path / "bundle", pack(frames, "frames"), by_frames=True, compress=request.param)
    with Bundle.open(path) as bundle:
        yield bundle, frames


@given(st.integers(-1200, 1200), st.integers(-1200, 1200), st.integers(-300, 300).filter(bool))
@settings(max_examples=40, deadline=None)
def test_rows_are_what_slicing_gives(start: int, stop: int, step: int) -> None:
    """C27"""
    frames = np.arange(3000, dtype=np.int32).reshape(1000, 3)
    sink = io.BytesIO()
    write_bundle(sink, pack(frames, "frames"), by_frames=True, compress=True)
    with Bundle.of_bytes(sink.getvalue()) as bundle:
        assert same(bundle.rows(0, start, stop, step), np.ascontiguousarray(frames[start:stop:step]))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 999, 5000])
def test_blocks_join_to_the_whole(trajectory: tuple[Bundle, NDArray[np.float32]], size: int) -> None:
    """C27"""
    bundle, frames = trajectory
    blocks = list(bundle.blocks(0, size))
    assert all(len(block) == size for block in blocks[:-1])
    assert same(np.concatenate(blocks), frames)


@pytest.mark.parametrize("sizes", [[1000], [1] * 10, [7, 64, 100, 1], [0, 3, 0]])
def test_an_array_may_come_in_blocks(tmp_path: Path, sizes: list[int]) -> None:
    """C28"""
    frames = np.random.default_rng(0).normal(size=(sum(sizes), 4, 3)).astype(np.float32)
    blocks = iter(np.split(frames, np.cumsum(sizes)[:-1]))
    path = write(tmp_path / "bundle", pack({"frames": ArrayBlocks(blocks)}, "data"), by_frames=True, compress=True)
    with Bundle.open(path) as bundle:
        assert same(bundle.value(), {"frames": frames})


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", [">f4", ">f8", ">i4", ">f2", ">c8", "<U3", [("a", ">i2"), ("b", "f4")]])
def test_blocks_keep_their_byte_order(kind: Any, compress: bool) -> None:
    """C24, C28"""
    rows = np.arange(1800).reshape(300, 2, 3)
    frames = rows.astype(kind) if isinstance(kind, str) else np.zeros(rows.shape, kind)
    sink = io.BytesIO()
    blocks = iter(np.split(frames, range(50, 300, 50)))
    write_bundle(sink, pack({"frames": ArrayBlocks(blocks)}, "data"), by_frames=True, compress=compress)
    with Bundle.of_bytes(sink.getvalue()) as bundle:
        assert same(bundle.value()["frames"], frames)
        assert same(np.concatenate(list(bundle.blocks(0, 70)), dtype=frames.dtype), frames)
        assert all(block.dtype == frames.dtype for block in bundle.blocks(0, 70))


@pytest.mark.parametrize("block", [[[1, 2]], 7, torch.ones(2, 3), np.array([[None]])])
def test_what_is_no_block_is_named(block: Any) -> None:
    """C28"""
    with pytest.raises(TypeError, match=r"data\['frames'\]"):
        write_bundle(io.BytesIO(), pack({"frames": ArrayBlocks(iter([block]))}, "data"), by_frames=True)


@pytest.mark.parametrize("by_frames", [True, False])
def test_fortran_order_comes_back_and_is_mapped_where_it_was_stored_as_it_lay(tmp_path: Path, by_frames: bool) -> None:
    """C24, C25"""
    array = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    path = write(tmp_path / "bundle", pack(array, "array"), by_frames=by_frames)
    with Bundle.open(path) as bundle:
        found = bundle.value()
    assert found.flags.f_contiguous
    assert same(found, array)
    assert isinstance(found, np.memmap) is not by_frames


def test_many_arrays_of_a_file_share_one_descriptor(tmp_path: Path) -> None:
    """C3"""
    path = write(tmp_path / "bundle", pack([np.full(100, number) for number in range(300)], "arrays"))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Bundle.open(path) as bundle:
        arrays = bundle.value()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
    assert [array[0] for array in arrays] == list(range(300))


def test_distant_rows_do_not_read_what_lies_between(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """C27"""
    frames = np.random.default_rng(0).normal(size=(6400, 50, 3)).astype(np.float32)
    path = write(tmp_path / "bundle", pack(frames, "frames"), by_frames=True)
    read: list[int] = []
    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda *args: (lambda content: (read.append(len(content)), content)[1])(real(*args))
    )
    with Bundle.open(path) as bundle:
        assert same(bundle.rows(0, 0, 6400, 3200), np.ascontiguousarray(frames[::3200]))
    assert sum(read) < 0.04 * path.stat().st_size


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "has no block"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "does not continue"),
        ([np.zeros((2, 3)), np.zeros((2, 3), np.float32)], "does not continue"),
    ],
)
def test_blocks_that_do_not_fit_together_are_refused(blocks: list[Any], message: str) -> None:
    """C28"""
    with pytest.raises(ValueError, match=message):
        write_bundle(io.BytesIO(), pack({"frames": ArrayBlocks(iter(blocks))}, "data"), by_frames=True)


@pytest.mark.parametrize("compress", [True, False])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, compress: bool) -> None:
    """C26"""
    value = {"a": np.arange(40, dtype=np.int16), "b": np.arange(9.0).reshape(3, 3), "c": "text"}
    whole = dump_value(value, "value", compress=compress)
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        with pytest.raises(DamagedFile), Bundle.of_bytes(bytes(altered)) as bundle:
            bundle.verify()


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    """C26"""
    path = write(tmp_path / "bundle", pack(np.arange(1000), "array"))
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match=rf"{path} is damaged"):
            Bundle.open(path)


def test_plain_arrays_are_maps_that_outlive_the_bundle_and_cannot_be_written(tmp_path: Path) -> None:
    """C25, C30"""
    path = write(tmp_path / "bundle", pack(np.arange(1000), "array"))
    with Bundle.open(path) as bundle:
        array = bundle.value()
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7
    assert is_being_read(path)
    del array
    assert not is_being_read(path)
