"""Row filters: which proteins of a set may be hits, said in plain values so that files, URLs and shells can carry them.

A filter maps a column to what it must be:

    {"protein_id": ["P00330", "P08319"],     one of these
     "ec": "1.1.1",                          this EC class (by whole levels; any of several, ";"-joined, EC numbers)
     "organism": "Homo sapiens",             exactly this
     "length": {">=": 100, "<": 600},        compared as numbers
     "name": {"contains": "kinase"}}         a piece of text, any case

All columns named must hold. `parse_filter` reads the same from `column=value` words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput
from rayzyme.screening.screening_set import EMBEDDING_COLUMN, ID_COLUMN

Filter = Mapping[str, Any]
EC_COLUMN = "ec"

# What a value of another kind than the column's comes to.
_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)
_COMPARISONS = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_WORD = re.compile(r"^(?P<column>[^<>=!~]+?)\s*(?P<operator><=|>=|!=|~|<|>|=)\s*(?P<value>.*)$")


def matching_rows(proteins: pa.Table, wanted: Filter) -> NDArray[np.int64]:
    """Row numbers, rising, of the proteins that a filter admits.

    Args:
        proteins: Columns `protein_id` and metadata.
        wanted: The filter.

    Raises:
        InvalidInput: An unknown column (the known ones are named), an unknown operator, text compared as a number.
    """
    kept = pa.array(np.ones(proteins.num_rows, dtype=bool))
    for column, condition in wanted.items():
        if column not in proteins.column_names or column == EMBEDDING_COLUMN:
            known = ", ".join(name for name in proteins.column_names if name != EMBEDDING_COLUMN)
            raise InvalidInput(f"the filter names column {column!r}, which the screening set lacks; it has: {known}")
        mask = _mask(column, proteins[column], condition)
        kept = pc.and_(kept, pc.fill_null(mask, False))
    return np.flatnonzero(kept.to_numpy(zero_copy_only=False)).astype(np.int64)


def parse_filter(words: Sequence[str]) -> dict[str, Any]:
    """Read a filter from words such as `ec=1.1.1`, `organism=Homo sapiens`, `length>=100`, `name~kinase`, `id!=P1`.

    A value of `=` may list alternatives with commas. Several comparisons of one column are joined.

    Raises:
        InvalidInput: A word has no operator.
    """
    parsed: dict[str, Any] = {}
    for word in words:
        match = _WORD.match(word.strip())
        if match is None:
            raise InvalidInput(f"filter {word!r} is not COLUMN=VALUE; operators: = != ~ (contains) < <= > >=")
        column, operator, value = match["column"].strip(), match["operator"], match["value"].strip()
        if operator == "=":
            if column in parsed:
                raise InvalidInput(
                    f"filter {word!r}: column {column!r} already has a condition; list alternatives with commas"
                )
            alternatives = [part.strip() for part in value.split(",")]
            parsed[column] = alternatives if len(alternatives) > 1 else value
        else:
            conditions = parsed.setdefault(column, {})
            if not isinstance(conditions, dict):
                raise InvalidInput(f"filter {word!r}: column {column!r} already has an '=' condition")
            conditions["contains" if operator == "~" else operator] = value
    return parsed


def shared_levels(wanted: str, found: str | None) -> int:
    """How many leading levels (0 to 4) an EC number shares with the best of several, ";"-joined, ones."""
    levels = wanted.split(".")
    best = 0
    for number in (found or "").split(";"):
        equal = [own == theirs for own, theirs in zip(levels, number.strip().split("."), strict=False)]
        best = max(best, equal.index(False) if False in equal else len(equal))
    return best


def _mask(column: str, values: pa.ChunkedArray, condition: Any) -> Any:
    if isinstance(condition, Mapping):
        masks = [_operator_mask(column, values, operator, operand) for operator, operand in condition.items()]
        result = masks[0] if masks else pa.scalar(True)
        for mask in masks[1:]:
            result = pc.and_(result, mask)
        return result
    alternatives = [condition] if isinstance(condition, str) or not isinstance(condition, Iterable) else list(condition)
    if None in alternatives:
        raise InvalidInput(
            f"the filter on column {column!r} has no value (null); leave the column out to admit every protein"
        )
    if column == EC_COLUMN:
        return pc.match_substring_regex(_as_text(values), _ec_pattern([str(value) for value in alternatives]))
    try:
        # In the column's own type, so that 90.0 finds 90 and True finds true.
        wanted = pa.array([str(value).lower() if isinstance(value, bool) else str(value) for value in alternatives])
        return pc.is_in(values, value_set=pc.cast(wanted, values.type))
    except _UNFIT as error:
        raise InvalidInput(f"filter {column} = {condition!r}: the column holds {values.type} ({error})") from None


def _operator_mask(column: str, values: pa.ChunkedArray, operator: str, operand: Any) -> Any:
    if operator in _COMPARISONS:
        try:
            if pa.types.is_string(values.type):
                # A blank cell of a CSV is no number, and no fault either.
                values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)
            numbers = pc.cast(values, pa.float64())
            return _COMPARISONS[operator](numbers, float(operand))
        except _UNFIT as error:
            raise InvalidInput(f"filter {column} {operator} {operand}: not a number ({error})") from None
    if operator == "!=":
        # Whatever "=" does not admit, rows without a value included.
        return pc.invert(pc.fill_null(_mask(column, values, operand), False))
    if operator == "contains":
        try:
            return pc.match_substring(_as_text(values), str(operand), ignore_case=True)
        except _UNFIT as error:
            raise InvalidInput(
                f"filter {column} contains {operand!r}: the column holds {values.type} ({error})"
            ) from None
    known = ", ".join([*_COMPARISONS, "!=", "contains"])
    raise InvalidInput(f"filter on column {column!r} has unknown operator {operator!r}; known: {known}")


def _as_text(values: pa.ChunkedArray) -> Any:
    return values if pa.types.is_string(values.type) else pc.cast(values, pa.string())


def _ec_pattern(classes: Sequence[str]) -> str:
    cleaned = [value.removeprefix("EC").strip(" :").rstrip(".-") for value in classes]
    for given, value in zip(classes, cleaned, strict=True):
        if not re.fullmatch(r"\d+(\.(\d+|[nB]\d+)){0,3}", value):
            raise InvalidInput(f"{given!r} is not an EC number or class such as 1.1.1 or 3.2.1.23")
    return r"(^|;)\s*(" + "|".join(re.escape(value) for value in cleaned) + r")(\.|\s*;|\s*$)"


__all__ = ["EC_COLUMN", "ID_COLUMN", "Filter", "matching_rows", "parse_filter", "shared_levels"]
