"""Embeddings made elsewhere: what is read, and what is refused with which figures."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from rayzyme.errors import CheckpointError, InvalidInput, NotFound
from rayzyme.screening.importing import (
    ImportedEmbeddings,
    read_clipzyme_pickle,
    read_embeddings,
    read_npy,
    read_npz,
    read_parquet,
)

Rows = NDArray[np.float32]
IDS = ["P69905", "P68871", "P02042", "P02008"]


@pytest.fixture
def rows() -> Rows:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(len(IDS), 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _pickle(path: Path, hiddens: object, ids: object) -> Path:
    path.write_bytes(pickle.dumps({"hiddens": hiddens, "uniprots": ids}))
    return path


def _as_pickle(folder: Path, rows: Rows, ids: list[str]) -> ImportedEmbeddings:
    return read_embeddings(_pickle(folder / "set.p", torch.from_numpy(rows), ids))


def _as_npy(folder: Path, rows: Rows, ids: list[str]) -> ImportedEmbeddings:
    np.save(folder / "set.npy", rows)
    (folder / "ids.txt").write_text("".join(f"{identifier}\n" for identifier in ids))
    return read_embeddings(folder / "set.npy", folder / "ids.txt")


def _as_npz(folder: Path, rows: Rows, ids: list[str]) -> ImportedEmbeddings:
    np.savez(folder / "set.npz", embeddings=rows, protein_ids=np.array(ids))
    return read_embeddings(folder / "set.npz")


def _as_parquet(folder: Path, rows: Rows, ids: list[str]) -> ImportedEmbeddings:
    pq.write_table(pa.table({"protein_id": ids, "embedding": list(rows)}), folder / "set.parquet", row_group_size=3)
    return read_embeddings(folder / "set.parquet")


LAYOUTS = [_as_pickle, _as_npy, _as_npz, _as_parquet]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["pickle", "npy", "npz", "parquet"])
Layout = Callable[[Path, Rows, list[str]], ImportedEmbeddings]


@every_layout
def test_unit_rows_come_back_bit_for_bit(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    imported = layout(tmp_path, rows, IDS)
    assert imported.protein_ids == IDS
    assert imported.embeddings.dtype == np.float32
    np.testing.assert_array_equal(imported.embeddings, rows)
    assert not imported.was_normalised
    assert imported.metadata == {}


@every_layout
def test_rows_of_other_lengths_are_brought_to_one_and_that_is_said(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    lengths = np.array([[2], [1], [1e-20], [1e20]], np.float32)
    imported = layout(tmp_path, rows * lengths, IDS)
    np.testing.assert_allclose(imported.embeddings, rows, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(imported.embeddings, axis=1), 1, atol=1e-6)
    assert imported.was_normalised


@every_layout
def test_half_precision_rows_count_as_of_unit_length_and_become_exactly_so(
    tmp_path: Path, rows: Rows, layout: Layout
) -> None:
    imported = layout(tmp_path, rows.astype(np.float16), IDS)
    assert not imported.was_normalised
    np.testing.assert_allclose(np.linalg.norm(imported.embeddings.astype(np.float64), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(imported.embeddings, rows, atol=1e-3)


@every_layout
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_with_their_count_and_the_first_id(
    tmp_path: Path, rows: Rows, layout: Layout, value: float
) -> None:
    rows[1, 3] = rows[3, 0] = value
    with pytest.raises(InvalidInput, match=r"2 of 4 embeddings hold NaN or infinity, first 'P68871' \(row 2\)"):
        layout(tmp_path, rows, IDS)


@every_layout
def test_rows_of_zeros_are_refused_with_their_count_and_the_first_id(
    tmp_path: Path, rows: Rows, layout: Layout
) -> None:
    rows[2] = 0
    with pytest.raises(InvalidInput, match=r"1 of 4 embeddings hold nothing but zeros, first 'P02042' \(row 3\)"):
        layout(tmp_path, rows, IDS)


@every_layout
def test_repeated_ids_are_refused_with_their_count(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    with pytest.raises(InvalidInput, match=r"2 ids occur more than once, first 'A' \(2 times\)"):
        layout(tmp_path, rows, ["A", "B", "B", "A"])


@every_layout
def test_an_empty_id_is_refused_with_its_place(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    with pytest.raises(InvalidInput, match="id 2 of 4 is empty"):
        layout(tmp_path, rows, ["A", "", "B", "C"])


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=["pickle", "npy", "npz"])
def test_counts_that_differ_are_refused_with_both(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    with pytest.raises(InvalidInput, match="4 embeddings and 3 ids; there must be one id for each row"):
        layout(tmp_path, rows, IDS[:3])


@every_layout
def test_no_rows_at_all_are_refused(tmp_path: Path, rows: Rows, layout: Layout) -> None:
    with pytest.raises(InvalidInput, match=r"holds no embeddings|floating-point numbers"):
        layout(tmp_path, rows[:0], [])


def test_a_list_of_tensors_is_stacked(tmp_path: Path, rows: Rows) -> None:
    hiddens = [torch.from_numpy(row.copy()) for row in rows[:2]] + [
        torch.from_numpy(row[None].copy()) for row in rows[2:]
    ]
    imported = read_clipzyme_pickle(_pickle(tmp_path / "set.p", hiddens, np.array(IDS, dtype=object)))
    np.testing.assert_array_equal(imported.embeddings, rows)
    assert imported.protein_ids == IDS


def test_arrays_that_must_not_be_written_to_are_scaled_into_new_ones(tmp_path: Path, rows: Rows) -> None:
    pickled = read_clipzyme_pickle(_pickle(tmp_path / "set.p", rows * 3, IDS))
    flat = pa.FixedSizeListArray.from_arrays(pa.array((rows * 3).ravel()), 8)
    pq.write_table(pa.table({"protein_id": IDS, "embedding": flat}), tmp_path / "set.parquet")
    for imported in (pickled, read_parquet(tmp_path / "set.parquet")):
        np.testing.assert_allclose(imported.embeddings, rows, atol=1e-6)


def test_bfloat16_rows_are_widened(tmp_path: Path, rows: Rows) -> None:
    path = _pickle(tmp_path / "set.pkl", torch.from_numpy(rows).bfloat16(), IDS)
    np.testing.assert_allclose(read_embeddings(path).embeddings, rows, atol=1e-2)


def test_a_list_of_unequal_tensors_names_the_first_that_differs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="embedding 2 has 3 numbers, the ones before it 4"):
        read_clipzyme_pickle(_pickle(tmp_path / "set.p", [torch.ones(4), torch.ones(3)], ["a", "b"]))


def test_a_pickle_of_another_kind_is_described(tmp_path: Path) -> None:
    (tmp_path / "set.p").write_bytes(pickle.dumps({"P69905": "MVLS", "P68871": "MVHL"}))
    with pytest.raises(InvalidInput, match="dict with 'hiddens' and 'uniprots', and holds the keys P69905, P68871"):
        read_clipzyme_pickle(tmp_path / "set.p")
    (tmp_path / "set.p").write_bytes(pickle.dumps([1]))
    with pytest.raises(InvalidInput, match="and holds list"):
        read_clipzyme_pickle(tmp_path / "set.p")


def test_ids_that_are_not_strings_are_named(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(InvalidInput, match="id 1 is no string but 7"):
        read_clipzyme_pickle(_pickle(tmp_path / "set.p", torch.from_numpy(rows), [7, "a", "b", "c"]))


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        read_embeddings(_pickle(tmp_path / "set.p", Hostile(), []))
    assert not (tmp_path / "it-ran").exists()


def test_ids_from_a_table_bring_their_other_columns_along(tmp_path: Path, rows: Rows) -> None:
    np.save(tmp_path / "set.npy", rows)
    lines = ["protein_id,ec,organism", *(f'{identifier},1.1.1.{n},"a, b"' for n, identifier in enumerate(IDS))]
    (tmp_path / "ids.csv").write_text("\n".join(lines) + "\n")
    imported = read_npy(tmp_path / "set.npy", tmp_path / "ids.csv")
    assert imported.protein_ids == IDS
    assert imported.metadata == {"ec": [f"1.1.1.{n}" for n in range(4)], "organism": ["a, b"] * 4}


def test_a_table_line_with_too_few_columns_is_named(tmp_path: Path, rows: Rows) -> None:
    np.save(tmp_path / "set.npy", rows)
    (tmp_path / "ids.csv").write_text("protein_id,ec\nP1,1.1.1.1\nP2\n")
    with pytest.raises(InvalidInput, match=r"ids\.csv, line 3: 1 columns, the header has 2"):
        read_npy(tmp_path / "set.npy", tmp_path / "ids.csv")


def test_ids_from_npz(tmp_path: Path, rows: Rows) -> None:
    np.save(tmp_path / "set.npy", rows)
    np.savez(tmp_path / "ids.npz", ids=np.array(IDS))
    assert read_npy(tmp_path / "set.npy", tmp_path / "ids.npz").protein_ids == IDS


def test_further_arrays_become_metadata(tmp_path: Path, rows: Rows) -> None:
    np.savez(tmp_path / "set.npz", embedding=rows, ids=np.array(IDS), length=np.array([142, 147, 147, 142]))
    assert read_npz(tmp_path / "set.npz").metadata == {"length": [142, 147, 147, 142]}


def test_a_further_array_of_another_length_is_refused(tmp_path: Path, rows: Rows) -> None:
    np.savez(tmp_path / "set.npz", embeddings=rows, ids=np.array(IDS), length=np.array([1]))
    with pytest.raises(InvalidInput, match=r"array 'length' has shape \(1,\), where 4 values were due"):
        read_npz(tmp_path / "set.npz")


def test_a_missing_array_is_said_with_those_there(tmp_path: Path, rows: Rows) -> None:
    np.savez(tmp_path / "set.npz", vectors=rows, ids=np.array(IDS))
    with pytest.raises(InvalidInput, match=r"has no 'embeddings' \(nor embedding, hiddens\); it has vectors, ids"):
        read_npz(tmp_path / "set.npz")


def test_arrays_of_python_objects_are_refused_with_the_way_out(tmp_path: Path, rows: Rows) -> None:
    np.savez(tmp_path / "set.npz", embeddings=rows, ids=np.array(IDS, dtype=object))
    with pytest.raises(InvalidInput, match=r"array 'ids' holds Python objects.*np\.asarray\(ids, dtype=str\)"):
        read_npz(tmp_path / "set.npz")
    np.save(tmp_path / "set.npy", np.array([None, None]), allow_pickle=True)
    (tmp_path / "ids.txt").write_text("a\nb\n")
    with pytest.raises(InvalidInput, match=r"cannot be read as numpy's format \([\d,]+ bytes\).*can run code"):
        read_npy(tmp_path / "set.npy", tmp_path / "ids.txt")


@pytest.mark.parametrize("wrong", [np.ones(4, np.float32), np.ones((4, 2), np.int64), np.ones((2, 2, 2))])
def test_other_shapes_and_types_are_described(tmp_path: Path, wrong: NDArray[np.generic]) -> None:
    np.save(tmp_path / "set.npy", wrong)
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(InvalidInput, match=r"floating-point numbers of shape \(n, d\), found \w+ \("):
        read_npy(tmp_path / "set.npy", tmp_path / "ids.txt")


def test_a_truncated_file_is_said_with_its_size(tmp_path: Path, rows: Rows) -> None:
    np.save(tmp_path / "set.npy", rows)
    (tmp_path / "set.npy").write_bytes((tmp_path / "set.npy").read_bytes()[:150])
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    with pytest.raises(InvalidInput, match=r"cannot be read as numpy's format \(150 bytes\)"):
        read_npy(tmp_path / "set.npy", tmp_path / "ids.txt")


def test_fixed_size_lists_of_doubles_and_further_columns_are_read(tmp_path: Path, rows: Rows) -> None:
    flat = pa.array(rows.astype(np.float64).ravel())
    table = pa.table(
        {"ec": ["1", "2", None, "4"], "protein_id": IDS, "embedding": pa.FixedSizeListArray.from_arrays(flat, 8)}
    )
    pq.write_table(table, tmp_path / "set.pq")
    imported = read_embeddings(tmp_path / "set.pq")
    np.testing.assert_array_equal(imported.embeddings, rows)
    assert imported.metadata == {"ec": ["1", "2", None, "4"]}


def test_lists_of_different_length_are_counted(tmp_path: Path) -> None:
    table = pa.table({"protein_id": ["a", "b", "c"], "embedding": [[1.0], [1.0, 2.0], [1.0, 2.0]]})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(InvalidInput, match="embeddings differ in length: 1 rows of 1, 2 rows of 2"):
        read_parquet(tmp_path / "set.parquet")


def test_missing_embeddings_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"protein_id": ["a", "b"], "embedding": [[1.0], None]}), tmp_path / "set.parquet")
    with pytest.raises(InvalidInput, match="1 of 2 rows have no embedding"):
        read_parquet(tmp_path / "set.parquet")


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"protein_id": ["a"], "embedding": ["1 2 3"]}), tmp_path / "set.parquet")
    with pytest.raises(InvalidInput, match="column 'embedding' holds string; lists of floating-point numbers"):
        read_parquet(tmp_path / "set.parquet")


def test_a_file_that_is_no_parquet_is_said_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InvalidInput, match=r"cannot be read as Parquet \(15 bytes\)"):
        read_parquet(tmp_path / "set.parquet")


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"of no known kind; embeddings are read from \.npy, \.p, \.pkl"):
        read_embeddings(tmp_path / "set.h5")


def test_ids_are_asked_for_where_they_are_needed_and_only_there(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(InvalidInput, match="holds no ids; give a file of ids, one per line"):
        read_embeddings(tmp_path / "set.npy")
    with pytest.raises(InvalidInput, match=r"brings its own ids; leave out ids\.txt"):
        read_embeddings(tmp_path / "set.npz", "ids.txt")


@pytest.mark.parametrize("name", ["set.p", "set.npz", "set.parquet"])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match=f"There is no file at .*{name}"):
        read_embeddings(tmp_path / name)
