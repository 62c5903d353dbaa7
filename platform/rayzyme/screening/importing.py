"""Reading embeddings that were made elsewhere, ready to become a screening set.

Four layouts: CLIPZyme's published pickle, `.npy` with a file of ids, `.npz`, and Parquet. Rows come back as float32 of
unit length; what cannot be such a row (NaN, infinity, zeros, a missing or repeated id) is refused with figures, since a
protein that silently fell out of a set would be missed for ever. Nothing is unpickled except through
`rayzyme.models.safe_loading`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput, NotFound

EMBEDDING_NAMES: Final = ("embeddings", "embedding", "hiddens")
ID_NAMES: Final = ("protein_ids", "protein_id", "ids", "uniprots")

_UNIT_TOLERANCE: Final = 1e-3  # what rounding to half precision leaves of a unit row
_EXACT_TOLERANCE: Final = 1e-5  # what float32 arithmetic leaves; such rows keep their very bits
_BLOCK_ROWS: Final = 16_384

Metadata = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class ImportedEmbeddings:
    """Embeddings read from a file.

    Attributes:
        protein_ids: n distinct, non-empty ids.
        embeddings: float32 (n, d), finite, rows of unit L2 norm.
        metadata: Other columns of the file, n values each.
        was_normalised: True where the file's rows were of other lengths and were divided by them here; False where
            they had unit length already (to 0.001, what rounding to half precision leaves).
    """

    protein_ids: list[str]
    embeddings: NDArray[np.float32]
    metadata: Metadata
    was_normalised: bool


def read_embeddings(path: Path | str, ids_path: Path | str | None = None) -> ImportedEmbeddings:
    """Read embeddings from `.p`/`.pkl`/`.pickle`, `.npy` (with `ids_path`), `.npz` or `.parquet`/`.pq`.

    Raises:
        NotFound: A file is missing.
        InvalidInput: The kind of file is not known, ids are missing or given twice over, or a row cannot be used.
        CheckpointError: A pickle is corrupt or asks for more than tensors, arrays, lists and strings.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if ids_path is None:
            raise InvalidInput(f"{path} holds no ids; give a file of ids, one per line, in the order of the rows.")
        return read_npy(path, ids_path)
    readers: dict[str, Callable[[Path | str], ImportedEmbeddings]] = {
        **dict.fromkeys((".p", ".pkl", ".pickle"), read_clipzyme_pickle),
        ".npz": read_npz,
        **dict.fromkeys((".parquet", ".pq"), read_parquet),
    }
    if suffix not in readers:
        raise InvalidInput(f"{path} is of no known kind; embeddings are read from .npy, {', '.join(readers)}.")
    if ids_path is not None:
        raise InvalidInput(f"{path} brings its own ids; leave out {ids_path}.")
    return readers[suffix](path)


def read_clipzyme_pickle(path: Path | str) -> ImportedEmbeddings:
    """Read CLIPZyme's published `clipzyme_screening_set.p` without running anything in it.

    The file is a pickled dict with `hiddens`, a tensor (n, d) or n tensors of length d, and `uniprots`, n accessions
    (Zenodo record 11187895, in `clipzyme_data.zip`).

    Raises:
        NotFound: There is no such file.
        CheckpointError: It is truncated, corrupt, or asks for more than tensors, arrays, lists and strings.
        InvalidInput: It holds something else, or a row cannot be used.
    """
    from rayzyme.models.safe_loading import load_tensor_pickle  # loading torch takes seconds, other layouts need none

    path = Path(path)
    content = load_tensor_pickle(path)
    if not isinstance(content, dict) or not {"hiddens", "uniprots"} <= content.keys():
        found = f"the keys {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise InvalidInput(f"{path} should be a dict with 'hiddens' and 'uniprots', and holds {found}.")
    return _checked(path, _as_ids(path, content["uniprots"]), _stacked(path, content["hiddens"]), {})


def read_npy(path: Path | str, ids_path: Path | str) -> ImportedEmbeddings:
    """Read a matrix from `.npy` and its ids from a second file.

    Args:
        path: Float array (n, d).
        ids_path: Text with one id per line; or `.csv`/`.tsv` with a header, whose first column holds the ids and whose
            others become metadata; or `.npz` with an array of ids.

    Raises:
        NotFound: A file is missing.
        InvalidInput: A file cannot be read as that, the counts differ, or a row cannot be used.
    """
    ids, metadata = _read_ids(Path(ids_path))
    return _checked(Path(path), ids, _load_numpy(Path(path)), metadata)


def read_npz(path: Path | str) -> ImportedEmbeddings:
    """Read `.npz` with an array of embeddings and one of ids; further arrays of n values become metadata.

    Raises:
        NotFound: There is no such file.
        InvalidInput: An array is missing or holds Python objects, the counts differ, or a row cannot be used.
    """
    path = Path(path)
    arrays = _load_numpy(path)
    if isinstance(arrays, np.ndarray):
        raise InvalidInput(f"{path} is a single array, not an .npz archive; rename it to .npy and give its ids.")
    with arrays:
        rows_name = _first_present(path, EMBEDDING_NAMES, arrays.files)
        ids_name = _first_present(path, ID_NAMES, arrays.files)
        ids = _as_ids(path, _member(path, arrays, ids_name))
        rows = _member(path, arrays, rows_name)
        others = [name for name in arrays.files if name not in (rows_name, ids_name)]
        metadata = {name: _member(path, arrays, name) for name in others}
    for name, values in metadata.items():
        if values.ndim != 1 or len(values) != len(ids):
            raise InvalidInput(f"{path}: array {name!r} has shape {values.shape}, where {len(ids):,} values were due.")
    return _checked(path, ids, rows, {name: values.tolist() for name, values in metadata.items()})


def read_parquet(path: Path | str) -> ImportedEmbeddings:
    """Read a Parquet table with `protein_id` and `embedding` (a list of floats per row); other columns become metadata.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is no Parquet file, a column is missing, rows differ in length, or a row cannot be used.
    """
    path = _existing(Path(path))
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet ({path.stat().st_size:,} bytes): {error}") from error
    rows_name = _first_present(path, EMBEDDING_NAMES, table.column_names)
    ids_name = _first_present(path, ID_NAMES, table.column_names)
    ids = _as_ids(path, table.column(ids_name).to_pylist())
    rows = _rows_of_lists(path, table.column(rows_name), rows_name)
    others = table.drop_columns([rows_name, ids_name])
    return _checked(path, ids, rows, {name: others.column(name).to_pylist() for name in others.column_names})


def _checked(path: Path, ids: list[str], rows: Any, metadata: Metadata) -> ImportedEmbeddings:
    """Refuse what cannot be used, and bring the rest to unit length without a second copy."""
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InvalidInput(f"{path}: embeddings must be floating-point numbers of shape (n, d), found {found}.")
    if len(ids) != len(rows):
        raise InvalidInput(f"{path}: {len(rows):,} embeddings and {len(ids):,} ids; there must be one id for each row.")
    if not ids or not rows.shape[1]:
        raise InvalidInput(f"{path} holds no embeddings: its array has shape {rows.shape}.")
    _refuse_ids(path, ids)
    norms = np.concatenate([_norms(rows[start : start + _BLOCK_ROWS]) for start in range(0, len(rows), _BLOCK_ROWS)])
    _refuse_rows(path, ids, ~np.isfinite(norms), "NaN or infinity")
    _refuse_rows(path, ids, norms == 0, "nothing but zeros")
    deviation = float(np.abs(norms - 1).max())
    unit = _scaled(rows, norms) if deviation > _EXACT_TOLERANCE else np.ascontiguousarray(rows, dtype=np.float32)
    return ImportedEmbeddings(ids, unit, metadata, was_normalised=deviation > _UNIT_TOLERANCE)


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    # In float64: the square of a large float32 would overflow and make a good row look infinite.
    wide = rows.astype(np.float64)
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return norms


def _scaled(rows: NDArray[Any], norms: NDArray[np.float64]) -> NDArray[np.float32]:
    in_place = rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    out: NDArray[np.float32] = rows if in_place else np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        out[block] = rows[block].astype(np.float64) / norms[block, None]
    return out


def _refuse_rows(path: Path, ids: Sequence[str], bad: NDArray[np.bool_], what: str) -> None:
    count = int(bad.sum())
    if count:
        first = int(bad.argmax())
        raise InvalidInput(
            f"{path}: {count:,} of {len(ids):,} embeddings hold {what}, first {ids[first]!r} (row {first + 1:,}). "
            "Remove or recompute them."
        )


def _stacked(path: Path, hiddens: Any) -> NDArray[Any]:
    """One matrix from a tensor, an array, or a list of either."""
    if not isinstance(hiddens, (list, tuple)):
        matrix: NDArray[Any] = _as_array(hiddens)
        return matrix
    if not hiddens:
        raise InvalidInput(f"{path} holds no embeddings: its list is empty.")
    out: NDArray[np.float32] | None = None
    for number, hidden in enumerate(hiddens, start=1):
        row = _as_array(hidden)
        if not isinstance(row, np.ndarray) or row.dtype.kind != "f":
            raise InvalidInput(f"{path}: embedding {number:,} is no vector of numbers but a {type(hidden).__name__}.")
        row = row.reshape(-1)
        if out is None:
            out = np.empty((len(hiddens), len(row)), np.float32)
        if len(row) != out.shape[1]:
            raise InvalidInput(
                f"{path}: embedding {number:,} has {len(row):,} numbers, the ones before it {out.shape[1]:,}."
            )
        out[number - 1] = row
    assert out is not None
    return out


def _as_array(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        # numpy has no bfloat16; float32 holds every value of it.
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


def _rows_of_lists(path: Path, column: Any, name: str) -> NDArray[Any]:
    """The (n, d) matrix of a column of lists; without a copy where the column is one chunk."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise InvalidInput(f"{path}: column {name!r} holds {kind}; lists of floating-point numbers are needed.")
    if column.null_count:
        raise InvalidInput(f"{path}: {column.null_count:,} of {len(column):,} rows have no {name}.")
    lengths = Counter(pc.list_value_length(column).to_pylist())
    if len(lengths) > 1:
        shown = ", ".join(f"{count:,} rows of {length:,}" for length, count in sorted(lengths.items())[:5])
        raise InvalidInput(f"{path}: embeddings differ in length: {shown}.")
    dimension = next(iter(lengths), 0)
    # flatten() leaves out what a slice does not show; .values would not.
    blocks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension) for chunk in column.chunks]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty((0, dimension), np.float32)])


def _as_ids(path: Path, values: Any) -> list[str]:
    if isinstance(values, np.ndarray):
        values = values.astype(str).tolist() if values.dtype.kind == "S" else values.tolist()
    if not isinstance(values, (list, tuple)):
        raise InvalidInput(f"{path}: ids must be a list of strings, found a {type(values).__name__}.")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise InvalidInput(f"{path}: id {number:,} is no string but {value!r}.")
    return list(values)


def _refuse_ids(path: Path, ids: Sequence[str]) -> None:
    for number, identifier in enumerate(ids, start=1):
        if not identifier.strip():
            raise InvalidInput(f"{path}: id {number:,} of {len(ids):,} is empty.")
    if len(set(ids)) != len(ids):
        repeated = [(identifier, count) for identifier, count in Counter(ids).items() if count > 1]
        raise InvalidInput(
            f"{path}: {len(repeated):,} ids occur more than once, first {repeated[0][0]!r} ({repeated[0][1]} times). "
            "Every protein needs an id of its own."
        )


def _read_ids(path: Path) -> tuple[list[str], Metadata]:
    _existing(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = _load_numpy(path)
        with arrays:
            return _as_ids(path, _member(path, arrays, _first_present(path, ID_NAMES, arrays.files))), {}
    try:
        if suffix in (".csv", ".tsv"):
            return _read_ids_table(path, "," if suffix == ".csv" else "\t")
        return path.read_text(encoding="utf-8").splitlines(), {}
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not text in UTF-8 ({error}); give ids one per line.") from error


def _read_ids_table(path: Path, delimiter: str) -> tuple[list[str], Metadata]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = _complete_rows(path, csv.reader(stream, delimiter=delimiter))
        header = next(lines, None)
        if header is None:
            raise InvalidInput(f"{path} is empty; its first line names the columns, the first column holds the ids.")
        columns: list[list[Any]] = [list(column) for column in zip(*lines, strict=True)] or [[] for _ in header]
    return columns[0], dict(zip(header[1:], columns[1:], strict=True))


def _complete_rows(path: Path, lines: Any) -> Iterator[list[str]]:
    width = None
    for line in lines:
        width = width or len(line)
        if len(line) != width:
            raise InvalidInput(f"{path}, line {lines.line_num}: {len(line)} columns, the header has {width}.")
        yield line


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFound(f"There is no file at {path}.")
    return path


def _load_numpy(path: Path) -> Any:
    try:
        return np.load(_existing(path), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidInput(
            f"{path} cannot be read as numpy's format ({path.stat().st_size:,} bytes): {error}. Files of Python objects "
            "are not read, since they can run code; save numbers and strings."
        ) from error


def _member(path: Path, arrays: Any, name: str) -> NDArray[Any]:
    try:
        member: NDArray[Any] = arrays[name]
    except ValueError as error:
        raise InvalidInput(
            f"{path}: array {name!r} holds Python objects, which are not read, since they can run code. Save it as "
            "numbers or strings, for instance np.asarray(ids, dtype=str)."
        ) from error
    return member


def _first_present(path: Path, wanted: Sequence[str], found: Sequence[str]) -> str:
    for name in wanted:
        if name in found:
            return name
    raise InvalidInput(
        f"{path} has no {wanted[0]!r} (nor {', '.join(wanted[1:])}); it has {', '.join(found) or 'nothing'}."
    )
