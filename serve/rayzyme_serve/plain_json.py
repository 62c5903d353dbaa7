"""JSON from the wire that can be kept, sent on and written out again: in every database, to every process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import AfterValidator

_DEEPEST: Final = 32


def plain_json(value: Any) -> Any:
    """The same value.

    Raises:
        ValueError: It holds NaN or an infinity, half of a character, a NUL, or is nested too deeply.
    """
    _check(value, _DEEPEST)
    return value


def _check(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is no number that JSON has")
        case str():
            _check_text(value)
        case dict():
            _check_all([*value, *value.values()], left)
        case list():
            _check_all(value, left)


def _check_all(values: Iterable[Any], left: int) -> None:
    for value in values:
        _check(value, left - 1)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a character (a lone surrogate)") from None


PlainJson = Annotated[dict[str, Any], AfterValidator(plain_json)]
"""An object of such values."""
