"""Stored values come back equal and of the same types, or are refused by their place."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, namedtuple
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.support.values import same, values

from rayzyme.storage.values import pack, unpack


def round_trip(value: Any) -> Any:
    packed = pack(value, "value")
    document = json.loads(json.dumps(packed.document))
    return unpack(document, packed.arrays.__getitem__)


@given(values())
@settings(max_examples=200, deadline=None)
def test_every_value_comes_back(value: Any) -> None:
    """C4, C66"""
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "value",
    [
        {"$": "array", "value": 0},
        {1: "one", "1": "another"},
        {"order": 1, "is": 2, "kept": 3},
        (1, [2, (3,)], {(4, 5)}),
        [math.nan, math.inf, -math.inf, -0.0, 1e-310],
        complex(math.nan, -0.0),
        pytest.param(10**5000, id="a very long int"),
        -(2**70),
        "\ud800 lone",
        "\ud83d\ude00 two halves",
        {"\ud83d\ude00": 1, 2: 3},
        np.str_(""),
        np.str_("a\0"),
        np.bytes_(b""),
        np.bytes_(b"a\0"),
        datetime(2026, 3, 29, 2, 30, fold=1),
        datetime(2026, 3, 29, 2, 30, 1, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime.now(UTC),
        Path("/a/ä"),
        np.float16(1.5),
        np.datetime64("2026-11-25T10:00", "ns"),
        np.str_("text"),
        np.array((1, 2.5), dtype=[("a", ">i2"), ("b", "<f8")])[()],
    ],
)
def test_values_that_are_easily_lost_come_back(value: Any) -> None:
    """C4"""
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(">f4"),
        np.dtype("<M8[us]"),
        np.dtype("U7"),
        np.dtype([("a", "i2"), ("b", "f8", (3, 2)), ("c", [("d", "S3")])]),
        np.dtype({"names": ["a", "b"], "formats": ["i1", "i4"], "offsets": [0, 8], "itemsize": 16}),
        np.dtype([("name", "S4")], align=True),
        np.dtype("V5"),
    ],
)
def test_arrays_of_any_dtype_come_back(dtype: np.dtype[Any]) -> None:
    """C4"""
    array = np.zeros((2, 3), dtype)
    assert same(round_trip({"array": array}), {"array": array})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor(3.25, dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0]).to(torch.float8_e5m2),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([True, False]),
        torch.empty(0, 3),
    ],
)
def test_tensors_come_back_as_tensors(tensor: torch.Tensor) -> None:
    """C1"""
    found = round_trip({"weights": [tensor]})["weights"][0]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found.to(torch.complex128), tensor.to(torch.complex128))


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, 2, 3, object()]}}, r"states\['a'\]\['b'\]\[3\] is of type builtins\.object"),
        ({"a": np.array([None])}, r"states\['a'\] has dtype object"),
        ({"a": np.array(["x"], dtype=np.dtypes.StringDType())}, r"states\['a'\] has dtype StringDType"),
        (
            {"a": np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]})},
            r"states\['a'\] has dtype",
        ),
        (
            {"a": np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})},
            r"states\['a'\] has dtype",
        ),
        ({"a": {(1, 2): 3}}, r"states\['a'\] has the key \(1, 2\) of type tuple; keys must be str or int"),
        ({True: 1}, r"states has the key True of type bool"),
        ([Point(1, 2)], r"states\[0\] is of type .*Point"),
        (OrderedDict(), r"states is of type collections\.OrderedDict"),
        ((frozenset(),), r"states\[0\] is of type builtins\.frozenset"),
        ({"a": Decimal(1)}, r"states\['a'\] is of type decimal\.Decimal"),
        ({"a": np.ma.masked_array([1, 2], [True, False])}, r"states\['a'\] is of type .*MaskedArray"),
        ({"a": torch.nn.Parameter(torch.ones(2))}, r"states\['a'\] is of type torch\.nn\.parameter\.Parameter"),
        ({"a": torch.ones(2).to_sparse()}, r"states\['a'\] is a tensor of layout torch\.sparse_coo"),
    ],
)
def test_what_cannot_be_stored_is_named_by_its_place(value: Any, place: str) -> None:
    """C4"""
    with pytest.raises(TypeError, match=place):
        pack(value, "states")


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        pack(value, "states")
