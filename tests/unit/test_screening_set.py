"""The screening set's file: what it keeps, who reads it, what it refuses."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from rayzyme.errors import CheckpointMismatch, InsufficientSpace, InvalidInput, NotFound
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.screening.library import ScreeningSetLibrary

CHECKPOINT = CheckpointRef("toy", "ab" * 32)


def unit_rows(n: int = 4, d: int = 8) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = ScreeningSet.from_arrays(
        list("ABCD"), unit_rows(), {"ec": ["1.1.1.1", "", "2", "3"], "length": [1, 2, 3, 4]}, CHECKPOINT
    )
    return made.save(tmp_path / "sets" / "toy.arrow")


def test_what_was_saved_is_opened(saved: Path) -> None:
    opened = ScreeningSet.open(saved)
    assert opened.protein_ids == list("ABCD")
    np.testing.assert_array_equal(opened.embeddings, unit_rows())
    assert opened.metadata.column_names == ["ec", "length"]
    assert (opened.checkpoint, opened.dimension, len(opened), opened.normalised) == (CHECKPOINT, 8, 4, True)
    assert opened.info()["bytes"] == saved.stat().st_size


def test_embeddings_are_a_view_of_the_mapped_file(saved: Path) -> None:
    opened = ScreeningSet.open(saved)
    assert not opened.embeddings.flags.owndata
    assert not opened.embeddings.flags.writeable
    assert opened.tensor(1, 3).data_ptr() == opened.embeddings[1:3].ctypes.data


@pytest.mark.parametrize(("stored", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 4e-3)])
def test_each_type_keeps_its_precision(tmp_path: Path, stored: str, tolerance: float) -> None:
    rows = unit_rows(50, 64)
    made = ScreeningSet.from_arrays([str(i) for i in range(50)], rows, None, CHECKPOINT, embedding_type=stored)  # type: ignore[arg-type]
    opened = ScreeningSet.open(made.save(tmp_path / "s.arrow"))
    assert opened.embedding_type == stored
    np.testing.assert_allclose(opened.embeddings.astype(np.float32), rows, atol=tolerance)
    assert opened.tensor().dtype == getattr(torch, stored)


def test_other_programs_open_the_file(saved: Path) -> None:
    assert polars.read_ipc(saved)["protein_id"].to_list() == list("ABCD")
    frame = pa.ipc.open_file(saved).read_pandas()
    np.testing.assert_array_equal(np.stack(frame["embedding"]), unit_rows())
    stored = pa.ipc.open_file(saved).read_all()  # noqa: F841 - DuckDB reads the variable by its name
    assert duckdb.sql("SELECT max(length), any_value(len(embedding)) FROM stored").fetchall() == [(4, 8)]


def test_the_digest_tells_sets_apart_and_equal_ones_together() -> None:
    first = ScreeningSet.from_arrays(list("ABCD"), unit_rows(), {"ec": list("1234")}, CHECKPOINT)
    same = ScreeningSet.from_arrays(list("ABCD"), unit_rows(), {"ec": list("1234")}, CHECKPOINT)
    other = ScreeningSet.from_arrays(list("ABCD"), unit_rows(), {"ec": list("1235")}, CHECKPOINT)
    assert first.digest == same.digest != other.digest


def test_a_query_of_another_checkpoint_is_refused_with_both_names(saved: Path) -> None:
    opened = ScreeningSet.open(saved)
    opened.require_checkpoint(CheckpointRef("renamed", CHECKPOINT.digest))
    with pytest.raises(
        CheckpointMismatch, match=r"made by checkpoint toy \(abababababab\), the query by clip \(cdcdcdcdcdcd\)"
    ):
        opened.require_checkpoint(CheckpointRef("clip", "cd" * 32))


@pytest.mark.parametrize(
    ("ids", "rows", "metadata", "message"),
    [
        (list("ABC"), unit_rows(), {}, "3 protein ids for 4 embeddings"),
        (list("ABCA"), unit_rows(), {}, "protein id 'A' occurs twice"),
        (["A", "", "C", "D"], unit_rows(), {}, "the protein in row 2 has an empty id"),
        (list("ABCD"), np.where(np.eye(4, 8) > 0, np.nan, unit_rows()), {}, r"protein 'A' \(row 1\) is not finite"),
        (list("ABCD"), unit_rows()[0], {}, r"shape \(rows, dimension\), not \(8,\)"),
        (list("ABCD"), unit_rows(), {"ec": ["1"]}, "metadata column 'ec' has 1 values for 4 proteins"),
        (list("ABCD"), unit_rows(), {"embedding": list("1234")}, "column 'embedding' clashes"),
    ],
)
def test_what_cannot_be_a_set_is_refused(
    ids: list[str], rows: NDArray[np.float32], metadata: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        ScreeningSet.from_arrays(ids, rows, metadata, CHECKPOINT)


def test_what_is_no_set_is_refused(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.arrow does not exist"):
        ScreeningSet.open(tmp_path / "absent.arrow")
    truncated = tmp_path / "truncated.arrow"
    truncated.write_bytes(saved.read_bytes()[:-40])
    with pytest.raises(InvalidInput, match="it may be truncated: build or import it again"):
        ScreeningSet.open(truncated)
    foreign = tmp_path / "foreign.arrow"
    with pa.ipc.new_file(foreign, pa.schema([("x", pa.int8())])):
        pass
    with pytest.raises(InvalidInput, match=r"is an Arrow file but no screening set \(columns: x\)"):
        ScreeningSet.open(foreign)


def test_a_full_disk_leaves_the_older_set_and_no_litter(small_disk: Path) -> None:
    path = small_disk / "s.arrow"
    ScreeningSet.from_arrays(list("ABCD"), unit_rows(), None, CHECKPOINT).save(path)
    large = ScreeningSet.from_arrays([str(i) for i in range(2_000)], unit_rows(2_000, 64), None, CHECKPOINT)
    with pytest.raises(
        InsufficientSpace,
        match=r"the disk is full: writing s\.arrow needs [\d,]+ bytes in .*small, where [\d,]+ are free\. Free some space",
    ):
        large.save(path)
    assert len(ScreeningSet.open(path)) == 4
    assert [file.name for file in small_disk.iterdir()] == ["s.arrow"]


def test_other_disk_errors_stay_what_they_are(saved: Path) -> None:
    made = ScreeningSet.open(saved)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked below
        made.save("/proc/nowhere/s.arrow")
    assert caught.value.errno == errno.ENOENT


class TestLibrary:
    """Sets by name."""

    def test_names_and_paths_are_resolved(self, saved: Path) -> None:
        library = ScreeningSetLibrary(saved.parent)
        assert library.names() == ["reference", "toy"]
        assert library.resolve("toy") == saved
        assert library.resolve(str(saved)) == saved

    def test_an_unknown_name_is_refused_with_the_nearest(self, saved: Path) -> None:
        with pytest.raises(NotFound, match=r"unknown screening set 'tyo'.*did you mean 'toy'\? known: reference, toy"):
            ScreeningSetLibrary(saved.parent).resolve("tyo")

    def test_a_set_is_removed_but_not_the_bundled_one(self, saved: Path) -> None:
        library = ScreeningSetLibrary(saved.parent)
        library.remove("toy")
        assert not saved.exists()
        with pytest.raises(NotFound, match="no screening set 'toy' to remove"):
            library.remove("toy")
        with pytest.raises(InvalidInput, match="'reference' is the bundled set"):
            library.remove("reference")

    @pytest.mark.parametrize("name", ["../evil", "", "a/b", ".hidden"])
    def test_a_name_that_is_no_file_name_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidInput, match="cannot name a screening set"):
            ScreeningSetLibrary(tmp_path).path(name)


def test_rows_of_any_length_are_kept_and_the_set_says_so(tmp_path: Path) -> None:
    opened = ScreeningSet.open(
        ScreeningSet.from_arrays(list("ABCD"), unit_rows() * 2, None, CHECKPOINT).save(tmp_path / "s.arrow")
    )
    assert not opened.normalised
    np.testing.assert_array_equal(opened.embeddings, unit_rows() * 2)


@pytest.mark.parametrize("form", ["mapping", "rows", "table", "frame"])
def test_metadata_may_come_in_any_usual_form(form: str) -> None:
    columns = {"protein_id": list("ABCD"), "ec": ["1.1.1.1", None, "2", "3"]}
    given: Any = {
        "mapping": columns,
        "rows": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        "table": pa.table(columns),
        "frame": pandas.DataFrame(columns),
    }[form]
    made = ScreeningSet.from_arrays(list("ABCD"), unit_rows(), given, CHECKPOINT)
    assert made.metadata.to_pydict() == {"ec": ["1.1.1.1", None, "2", "3"]}


def test_metadata_of_mixed_kinds_is_refused_by_column() -> None:
    with pytest.raises(InvalidInput, match="metadata column 'note' holds values of different kinds"):
        ScreeningSet.from_arrays(list("ABCD"), unit_rows(), {"note": [1, "two", 3, 4]}, CHECKPOINT)
