"""The screening set: proteins with ids, metadata and unit embeddings, one Arrow IPC file, memory-mapped.

A file is written once, whole, under another name and then renamed, so a reader sees all of it or nothing. Everything that
reads Arrow opens it: pandas, polars, DuckDB. The columns are `protein_id`, the metadata columns, and `embedding`, a
fixed-size list of float32, float16 or (bfloat16, which Arrow has no type for) uint16 bit patterns.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayzyme.errors import CheckpointMismatch, InvalidInput, NotFound
from rayzyme.screening.index import as_rows
from rayzyme.storage.disk import writing

FORMAT_VERSION = 1
ID_COLUMN = "protein_id"
EMBEDDING_COLUMN = "embedding"
_METADATA_KEY = b"rayzyme"
_ARROW_TYPES: dict[str, Any] = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}
_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_UNIT_TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
_BLOCK_ROWS = 16_384

EmbeddingType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """Which checkpoint made an embedding: its name for people, its SHA-256 for comparison."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12] or 'no digest'})"


class NamedCheckpoint(Protocol):
    """Anything that says which checkpoint it is: an `Encoder`, a `CheckpointRef`."""

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        ...

    @property
    def digest(self) -> str:
        """The checkpoint's SHA-256, hexadecimal."""
        ...


class ScreeningSet:
    """Proteins with ids, metadata and unit embeddings of one checkpoint.

    Attributes:
        checkpoint: The checkpoint that made the embeddings.
        dimension: Length of an embedding.
        embedding_type: How embeddings are stored: "float32", "float16" or "bfloat16".
        normalised: True where every row has unit L2 norm.
        created: UTC time of making, ISO 8601.
        digest: SHA-256 of ids, metadata and embeddings, hexadecimal: what makes this set this set.
        path: The file it was opened from, None for one in memory.
    """

    def __init__(self, table: pa.Table, path: Path | None = None, mapping: pa.MemoryMappedFile | None = None) -> None:
        """Wrap a table in the file's layout; use `open` or `from_arrays` instead."""
        header = _read_header(table.schema, path)
        self.checkpoint = CheckpointRef(header["checkpoint"], header["checkpoint_digest"])
        self.dimension = int(header["dimension"])
        self.embedding_type: EmbeddingType = header["embedding_type"]
        self.normalised = bool(header["normalised"])
        self.created = str(header["created"])
        self.digest = str(header["digest"])
        self.path = path
        self._table = table
        self._mapping = mapping

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ScreeningSet:
        """Open a file by memory map; nothing is copied, however large it is.

        Raises:
            NotFound: There is no such file.
            InvalidInput: The file is no screening set, is truncated, or was written by a newer version.
        """
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"screening set {file} does not exist; `rayzyme sets list` shows the sets known by name")
        mapping = pa.memory_map(str(file), "r")
        try:
            table = pa.ipc.open_file(mapping).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInput(
                f"{file} is not a readable screening set ({error}); it may be truncated: build or import it again"
            ) from None
        return cls(table, file, mapping)

    @classmethod
    def from_arrays(
        cls,
        protein_ids: Sequence[str],
        embeddings: NDArray[Any] | torch.Tensor,
        metadata: Mapping[str, Sequence[Any]] | pa.Table | None = None,
        checkpoint: NamedCheckpoint | str = "unnamed",
        *,
        embedding_type: EmbeddingType | None = None,
    ) -> ScreeningSet:
        """Make a set in memory.

        Args:
            protein_ids: n distinct, non-empty ids.
            embeddings: (n, dimension), float32, float16 or bfloat16 (a tensor), finite. Rows of unit length make scores
                cosines; `normalised` says whether all are.
            metadata: Columns of n values each: a mapping, a list of n mappings, an Arrow table or a pandas data frame.
            checkpoint: What made the embeddings; a plain string names a checkpoint whose digest is not known, and such a
                set is compared by name alone.
            embedding_type: How to store the embeddings; None keeps their type (float64 becomes float32).

        Raises:
            InvalidInput: Lengths differ, an id is empty or occurs twice, a value is not finite; the message names the
                first one at fault.
        """
        ids = [str(identifier) for identifier in protein_ids]
        stored = _as_tensor(embeddings, embedding_type)
        _check_ids(ids, stored.shape[0])
        type_name = next(name for name, dtype in _TORCH_TYPES.items() if dtype == stored.dtype)
        normalised = _check_rows(stored, ids, _UNIT_TOLERANCE[type_name])
        columns: dict[str, Any] = {ID_COLUMN: pa.array(ids, pa.string())}
        columns |= _metadata_columns(metadata, ids)
        columns[EMBEDDING_COLUMN] = _embedding_array(stored, type_name)
        reference = CheckpointRef(checkpoint, "") if isinstance(checkpoint, str) else checkpoint
        header = {
            "format_version": FORMAT_VERSION,
            "checkpoint": reference.name,
            "checkpoint_digest": reference.digest,
            "dimension": int(stored.shape[1]),
            "embedding_type": type_name,
            "normalised": normalised,
            "digest": _content_digest(columns),
            "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        return cls(pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(header)}))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set as one file, atomically; an older file of that name is replaced.

        Raises:
            InsufficientSpace: The disk is full; no partial file is left.
        """
        destination = Path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        needed = self._table.nbytes
        with writing(f"writing {destination.name}", destination.parent, needed):
            descriptor, temporary = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    # One record batch, so that the embeddings are one contiguous block that can be viewed as a matrix.
                    single = self._table.combine_chunks()
                    with pa.ipc.new_file(sink, single.schema) as writer:
                        writer.write_table(single)
                    sink.flush()
                    os.fsync(sink.fileno())
                Path(temporary).chmod(0o644)
                Path(temporary).replace(destination)
            finally:
                Path(temporary).unlink(missing_ok=True)
        return destination

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def protein_ids(self) -> list[str]:
        """The n ids."""
        ids: list[str] = self._table[ID_COLUMN].to_pylist()
        return ids

    @property
    def metadata(self) -> pa.Table:
        """The metadata columns, without ids and embeddings."""
        return self._table.drop_columns([ID_COLUMN, EMBEDDING_COLUMN])

    @property
    def embeddings(self) -> np.ndarray[Any, Any]:
        """Read-only (n, dimension) view of float32 or float16; bfloat16 is widened to a float32 copy."""
        if self.embedding_type == "bfloat16":
            return self.tensor().float().numpy()
        return self._matrix()

    @property
    def proteins(self) -> pa.Table:
        """Ids and metadata columns, without embeddings."""
        return self._table.drop_columns([EMBEDDING_COLUMN])

    def tensor(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop` as a CPU tensor of the stored type, a view where the file has one batch. Never write to it."""
        with warnings.catch_warnings():
            # Memory-mapped rows are read-only; torch knows no such tensors and warns. Nothing here writes to them.
            warnings.simplefilter("ignore", UserWarning)
            rows = torch.from_numpy(self._matrix()[start:stop])
        return rows.view(torch.bfloat16) if self.embedding_type == "bfloat16" else rows

    def require_checkpoint(self, other: NamedCheckpoint) -> None:
        """Refuse a query embedded by another checkpoint.

        Raises:
            CheckpointMismatch: Names both.
        """
        same = (
            self.checkpoint.digest == other.digest
            if self.checkpoint.digest and other.digest
            else self.checkpoint.name == other.name
        )
        if not same:
            query = CheckpointRef(other.name, other.digest)
            raise CheckpointMismatch(
                f"the screening set was made by checkpoint {self.checkpoint}, the query by {query}: their scores mean "
                f"nothing together; use that checkpoint, or build the set again with `rayzyme sets build`"
            )

    def info(self) -> dict[str, Any]:
        """Facts about the set as plain values: sizes in bytes, counts in proteins."""
        return {
            "proteins": len(self),
            "dimension": self.dimension,
            "embedding_type": self.embedding_type,
            "checkpoint": self.checkpoint.name,
            "checkpoint_digest": self.checkpoint.digest,
            "normalised": self.normalised,
            "created": self.created,
            "digest": self.digest,
            "metadata_columns": self.metadata.column_names,
            "path": str(self.path) if self.path else None,
            "bytes": self.path.stat().st_size if self.path else self._table.nbytes,
        }

    def _matrix(self) -> np.ndarray[Any, Any]:
        column = _single_chunk(self._table[EMBEDDING_COLUMN])
        flat = column.flatten().to_numpy(zero_copy_only=True)
        return np.asarray(flat).reshape(len(self), self.dimension)


def _read_header(schema: pa.Schema, path: Path | None) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(_METADATA_KEY)
    if raw is None or ID_COLUMN not in schema.names or EMBEDDING_COLUMN not in schema.names:
        raise InvalidInput(
            f"{path or 'the table'} is an Arrow file but no screening set (columns: {', '.join(schema.names)}); "
            f"`rayzyme sets import` makes one from embeddings"
        )
    try:
        header: dict[str, Any] = json.loads(raw)
        missing = {"format_version", "checkpoint", "checkpoint_digest", "dimension", "embedding_type", "normalised", "created",
                   "digest"} - set(header)  # fmt: skip
    except (ValueError, TypeError):
        missing = {"everything"}
    if missing:
        raise InvalidInput(
            f"{path or 'the table'} has a damaged header (missing: {', '.join(sorted(missing))}): build it again"
        )
    if header["format_version"] > FORMAT_VERSION:
        raise InvalidInput(
            f"{path or 'the table'} has format version {header['format_version']}; this Rayzyme reads up to "
            f"{FORMAT_VERSION}: upgrade Rayzyme"
        )
    return header


def _as_tensor(embeddings: NDArray[Any] | torch.Tensor, embedding_type: EmbeddingType | None) -> torch.Tensor:
    tensor = as_rows(embeddings).cpu()
    return tensor if embedding_type is None else tensor.to(_TORCH_TYPES[embedding_type])


def _check_ids(ids: Sequence[str], rows: int) -> None:
    if len(ids) != rows:
        raise InvalidInput(f"{len(ids)} protein ids for {rows} embeddings: give one id per row")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        double = next(identifier for identifier in ids if identifier in seen or seen.add(identifier))  # type: ignore[func-returns-value]
        raise InvalidInput(f"protein id {double!r} occurs twice: ids must be distinct")
    if "" in ids:
        raise InvalidInput(f"the protein in row {ids.index('') + 1} has an empty id")


def _check_rows(stored: torch.Tensor, ids: Sequence[str], tolerance: float) -> bool:
    """Refuse rows that are not finite; tell whether all are of unit length."""
    unit = True
    for start in range(0, stored.shape[0], _BLOCK_ROWS):
        norms = stored[start : start + _BLOCK_ROWS].float().norm(dim=1)
        broken = torch.nonzero(~torch.isfinite(norms)).flatten()
        if len(broken):
            first = start + int(broken[0])
            raise InvalidInput(
                f"the embedding of protein {ids[first]!r} (row {first + 1}) is not finite (NaN or infinity)"
            )
        unit = unit and bool(((norms - 1).abs() <= tolerance).all())
    return unit


def _metadata_columns(metadata: Any, ids: Sequence[str]) -> dict[str, Any]:
    if metadata is None:
        return {}
    if isinstance(metadata, (list, tuple)):
        table = pa.Table.from_pylist([dict(row) for row in metadata])
    elif isinstance(metadata, Mapping):
        table = metadata
    elif isinstance(metadata, (pa.Table, pa.RecordBatch)):
        table = metadata if isinstance(metadata, pa.Table) else pa.Table.from_batches([metadata])
    else:
        table = pa.Table.from_pandas(metadata, preserve_index=False)
    columns: dict[str, Any] = {}
    for name in table.column_names if isinstance(table, pa.Table) else table:
        values = table[name]
        if len(values) != len(ids):
            raise InvalidInput(f"metadata column {name!r} has {len(values)} values for {len(ids)} proteins")
        column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else _column(name, list(values))
        if name == ID_COLUMN and column.to_pylist() == list(ids):
            continue
        if name in (ID_COLUMN, EMBEDDING_COLUMN):
            raise InvalidInput(f"metadata column {name!r} clashes with the set's own column; rename it")
        columns[name] = column
    return columns


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidInput(f"metadata column {name!r} holds values of different kinds: {error}") from None


def _embedding_array(stored: torch.Tensor, type_name: str) -> pa.FixedSizeListArray:
    bits = stored.view(torch.uint16) if type_name == "bfloat16" else stored
    flat = pa.array(bits.numpy().reshape(-1), type=_ARROW_TYPES[type_name])
    return pa.FixedSizeListArray.from_arrays(flat, int(stored.shape[1]))


def _content_digest(columns: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, column in columns.items():
        digest.update(name.encode())
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return digest.hexdigest()


def _single_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
