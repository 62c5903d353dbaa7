"""JSON from the wire: what cannot be kept or sent on is refused at the door."""

from __future__ import annotations

from typing import Any

import pytest

from rayzyme_serve.plain_json import plain_json


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "text", {"b": "é𝄞"}]}, nested(30), r"not \u0000"])
def test_what_every_database_and_process_can_have_passes(value: Any) -> None:
    assert plain_json(value) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": "\ud800"}, "half of a character"),
        ({"\ud800": 1}, "half of a character"),
        ({"x": ["a\0b"]}, "NUL"),
        ({"x": float("nan")}, "nan is no number"),
        ({"x": float("inf")}, "inf is no number"),
        (nested(40), "nested more than 32 deep"),
    ],
)
def test_what_cannot_be_kept_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_json(value)
