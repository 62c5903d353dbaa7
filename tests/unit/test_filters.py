"""Row filters: what they admit, how they are written, how they are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayzyme.errors import InvalidInput
from rayzyme.screening.filters import matching_rows, parse_filter, shared_levels

PROTEINS = pa.table(
    {
        "protein_id": ["A", "B", "C", "D", "E"],
        "ec": ["1.1.1.1", "1.1.10.1;2.7.1.1", "1.1.1.27", None, "3.2.1.n4"],
        "organism": ["Homo sapiens", "Mus musculus", "Homo sapiens", "Escherichia coli", ""],
        "length": [100, 250, 400, 90, 1000],
        "text_length": ["100", "250", " ", "90", "1000"],
        "plddt": [90.0, 70.5, 90.0, None, 50.0],
        "reviewed": [True, False, True, None, False],
    }
)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        ({}, "ABCDE"),
        ({"protein_id": ["C", "A", "Z"]}, "AC"),
        ({"ec": "1.1.1"}, "AC"),
        ({"ec": "1.1.1.1"}, "A"),
        ({"ec": "EC 2.7.-.-"}, "B"),
        ({"ec": ["3", "2"]}, "BE"),
        ({"organism": "Homo sapiens"}, "AC"),
        ({"organism": {"!=": "Homo sapiens"}}, "BDE"),
        ({"organism": {"contains": "COLI"}}, "D"),
        ({"length": {">=": 100, "<": 400}}, "AB"),
        ({"text_length": {">": "99"}}, "ABE"),
        ({"plddt": 90}, "AC"),
        ({"plddt": "90.0"}, "AC"),
        ({"reviewed": True}, "AC"),
        ({"reviewed": {"!=": True}}, "BDE"),
        ({"ec": {"!=": "1"}}, "DE"),
        ({"protein_id": {"A", "E"}}, "AE"),
        ({"length": 250}, "B"),
        ({"ec": "1", "length": {">": 200}}, "BC"),
        ({"organism": "nobody"}, ""),
    ],
)
def test_a_filter_admits(wanted: dict[str, object], admitted: str) -> None:
    rows = matching_rows(PROTEINS, wanted)
    assert rows.dtype == np.int64
    assert "".join(PROTEINS["protein_id"].take(pa.array(rows)).to_pylist()) == admitted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ec=1.1.1"], {"ec": "1.1.1"}),
        (["protein_id=A, B"], {"protein_id": ["A", "B"]}),
        (["length>=100", "length < 400"], {"length": {">=": "100", "<": "400"}}),
        (
            ["name~kinase", "organism!=Mus musculus"],
            {"name": {"contains": "kinase"}, "organism": {"!=": "Mus musculus"}},
        ),
    ],
)
def test_words_are_read_as_a_filter(words: list[str], wanted: dict[str, object]) -> None:
    assert parse_filter(words) == wanted


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"organ": "x"},
            "column 'organ', which the screening set lacks; it has: protein_id, ec, organism, length",
        ),
        ({"organism": {">": 5}}, "filter organism > 5: not a number"),
        ({"length": {"~~": 5}}, "unknown operator '~~'; known: <, <=, >, >=, !=, contains"),
        ({"length": "long"}, "filter length = 'long': the column holds int64"),
        ({"ec": None}, "the filter on column 'ec' has no value"),
        ({"ec": "oxidase"}, "'oxidase' is not an EC number or class"),
    ],
)
def test_a_wrong_filter_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        matching_rows(PROTEINS, wanted)


def test_words_without_an_operator_are_refused() -> None:
    with pytest.raises(InvalidInput, match="filter 'kinase' is not COLUMN=VALUE"):
        parse_filter(["kinase"])
    with pytest.raises(InvalidInput, match="column 'ec' already has an '=' condition"):
        parse_filter(["ec=1", "ec!=2"])
    with pytest.raises(InvalidInput, match="column 'ec' already has a condition; list alternatives with commas"):
        parse_filter(["ec=1", "ec=2"])


@pytest.mark.parametrize(
    ("found", "levels"), [("1.1.1.1", 4), ("1.1.1.27", 3), ("2.7.1.1;1.1.3.4", 2), ("3.1.1.1", 0), ("", 0), (None, 0)]
)
def test_shared_ec_levels_count_from_the_left(found: str | None, levels: int) -> None:
    assert shared_levels("1.1.1.1", found) == levels


@pytest.mark.parametrize(
    "wanted",
    [
        {"length": {">=": None}}, {"length": {">=": [1]}}, {"length": {"<": 10**400}}, {"protein_id": "\ud800"},
        {"protein_id": {"contains": "\ud800"}}, {"tags": {"contains": "x"}}, {"tags": {">": 1}}, {"tags": "x"},
    ],
)  # fmt: skip
def test_a_value_that_the_column_cannot_be_compared_with_is_the_callers_mistake(wanted: dict[str, Any]) -> None:
    proteins = pa.table({"protein_id": ["P1", "P2"], "length": [10, 20], "tags": [["a"], ["b"]]})
    with pytest.raises(InvalidInput, match=next(iter(wanted))):
        matching_rows(proteins, wanted)
