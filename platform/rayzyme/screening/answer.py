"""The answer of a screen: one JSON shape for the command line, Python and HTTP, and the files written from it.

{"schema": "rayzyme.screen/1", "checkpoint", "checkpoint_digest", "screening_set", "screening_set_size",
 "results": [{"reaction_id", "reaction", "mapped_reaction", "mapping_confidence", "note",
              "hits": [{"rank", "protein_id", "score", "metadata"}]}],
 "rejected": [{"reaction_id", "reaction", "line", "reason"}], "notes": [...], "timing": {...}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

# pydantic, which describes HTTP answers by these types, asks for this TypedDict before Python 3.12.
from typing_extensions import TypedDict

from rayzyme.screening.screening_set import ID_COLUMN
from rayzyme.storage.disk import writing

SCHEMA = "rayzyme.screen/1"
# What a shard adds to its proteins on the wire; no column of a user's is called so.
QUERY_COLUMN, SCORE_COLUMN = "rayzyme:query", "rayzyme:score"


class Hit(TypedDict):
    """A protein of the ranking; rank counts from 1, metadata holds the set's columns."""

    rank: int
    protein_id: str
    score: float
    metadata: dict[str, Any]


class ReactionResult(TypedDict):
    """The ranking of one reaction."""

    reaction_id: str
    reaction: str
    mapped_reaction: str | None
    mapping_confidence: float | None
    note: str | None
    hits: list[Hit]
    known_enzymes: NotRequired[list[str]]
    ec: NotRequired[str]


class Rejection(TypedDict):
    """A reaction that was not screened, and why; `line` is that of the file, else the 1-based position."""

    reaction_id: str
    reaction: str
    line: int
    reason: str


class ScreeningAnswer(TypedDict):
    """Everything that a screen found. Times in `timing` are seconds."""

    schema: str
    checkpoint: str
    checkpoint_digest: str
    screening_set: str
    screening_set_size: int
    results: list[ReactionResult]
    rejected: list[Rejection]
    notes: list[str]
    timing: dict[str, float]


def merge_hits(parts: Sequence[pa.Table], queries: int, k: int) -> list[list[Hit]]:
    """The k best of several shards' hits.

    Args:
        parts: From each shard a table with columns QUERY_COLUMN (0-based), SCORE_COLUMN, `protein_id` and metadata.
        queries: How many queries there were.
        k: Hits to keep per query.

    Returns:
        For each query its hits, by falling score, then by protein id.
    """
    table = pa.concat_tables(parts).sort_by(
        [(QUERY_COLUMN, "ascending"), (SCORE_COLUMN, "descending"), (ID_COLUMN, "ascending")]
    )
    merged: list[list[Hit]] = [[] for _ in range(queries)]
    names = [name for name in table.column_names if name not in (QUERY_COLUMN, SCORE_COLUMN, ID_COLUMN)]
    columns = zip(*(table[name].to_pylist() for name in names), strict=True) if names else ((),) * table.num_rows
    rows = zip(
        table[QUERY_COLUMN].to_pylist(),
        table[SCORE_COLUMN].to_pylist(),
        table[ID_COLUMN].to_pylist(),
        columns,
        strict=True,
    )
    for query, score, protein_id, values in rows:
        hits = merged[query]
        if len(hits) < k:
            metadata = {name: _plain(value) for name, value in zip(names, values, strict=True)}
            hits.append({"rank": len(hits) + 1, "protein_id": protein_id, "score": score, "metadata": metadata})
    return merged


def hits_table(answer: ScreeningAnswer) -> pa.Table:
    """All hits as one table: reaction_id, reaction, rank, protein_id, score, then the metadata columns."""
    rows = [
        {"reaction_id": result["reaction_id"], "reaction": result["reaction"], "rank": hit["rank"],
         "protein_id": hit["protein_id"], "score": hit["score"], **_without_clash(hit["metadata"])}
        for result in answer["results"]
        for hit in result["hits"]
    ]  # fmt: skip
    if rows:
        return pa.Table.from_pylist(rows)
    text, number = pa.string(), pa.int64()
    return pa.schema(
        [("reaction_id", text), ("reaction", text), ("rank", number), ("protein_id", text), ("score", pa.float64())]
    ).empty_table()


def write_answer(answer: ScreeningAnswer, directory: Path) -> list[Path]:
    """Write `screening_results.json`, `.csv` and `.parquet` into a folder, each atomically.

    Raises:
        InsufficientSpace: The disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table = hits_table(answer)
    written = []
    for suffix in ("json", "csv", "parquet"):
        path = directory / f"screening_results.{suffix}"
        draft = path.with_suffix(f".{suffix}.partial")
        with writing(f"writing {path.name}", directory, table.nbytes):
            if suffix == "json":
                draft.write_text(json.dumps(answer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            elif suffix == "csv":
                pyarrow.csv.write_csv(_flat(table), draft)
            else:
                pq.write_table(table, draft)
            draft.replace(path)
        written.append(path)
    return written


def _flat(table: pa.Table) -> pa.Table:
    """The table with lists as JSON text, since CSV has none."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = pa.array([None if value is None else json.dumps(value) for value in table[field.name].to_pylist()])
            table = table.set_column(index, field.name, texts)
    return table


def _plain(value: Any) -> Any:
    """A metadata value as JSON knows it: dates and the like become text, numbers that are not finite None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else str(value)


def _without_clash(metadata: dict[str, Any]) -> dict[str, Any]:
    own = {"reaction_id", "reaction", "rank", "protein_id", "score"}
    return {f"{name}_of_protein" if name in own else name: value for name, value in metadata.items()}
