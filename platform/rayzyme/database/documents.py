"""JSON as the database keeps it: what PostgreSQL would refuse is mended here, the same way on both engines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

# `json.dumps` makes an encoder for each call that is not of the plainest sort.
_ENCODE: Final = json.JSONEncoder(allow_nan=False).encode


class JsonText(str):
    """JSON that is written already, to be stored as it stands."""

    __slots__ = ()


def to_json(value: Any) -> str:
    """A value as JSON; numbers that JSON does not know, such as NaN, become their names.

    Raises:
        TypeError: JSON does not know it at all.
    """
    if isinstance(value, JsonText):
        return value
    try:
        return _ENCODE(value)
    except ValueError:
        return json.dumps(_finite(value))


def clean_text(text: str) -> str:
    """Text without what no database takes: NUL characters and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
