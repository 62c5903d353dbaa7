"""Checks of arguments at the door: what is wrong is said with the argument's name, before anything is done."""

from __future__ import annotations

import unicodedata
from numbers import Integral
from pathlib import Path
from typing import Any

from rayzyme.errors import ValidationError


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """An int of at least `at_least`; True is not one.

    Raises:
        ValidationError: Names the argument.
    """
    if not _is_int(value):
        raise ValidationError(f"{name} must be a whole number, not {value!r}")
    if value < at_least:
        raise ValidationError(f"{name} must be at least {at_least}, not {value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """A finite number above zero; True is not one.

    Raises:
        ValidationError: Names the argument.
    """
    if not 0 < _number(name, value) < float("inf"):
        raise ValidationError(f"{name} must be a finite number above 0, not {value!r}")
    return float(value)


def number_from_zero(name: str, value: Any) -> float:
    """A finite number of at least zero; True is not one.

    Raises:
        ValidationError: Names the argument.
    """
    if not 0 <= _number(name, value) < float("inf"):
        raise ValidationError(f"{name} must be a finite number of at least 0, not {value!r}")
    return float(value)


def truth_value(name: str, value: Any) -> bool:
    """A bool and nothing that only counts as one.

    Raises:
        ValidationError: Names the argument.
    """
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, not {value!r}")
    return value


def short_text(name: str, value: Any, *, at_most: int) -> str:
    """A str of 1 to `at_most` characters.

    Raises:
        ValidationError: Names the argument.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= at_most:
        raise ValidationError(f"{name} must be a text of 1 to {at_most} characters, not {value!r}")
    return value


def printable_text(name: str, value: Any, *, at_most: int) -> str:
    """A str of 1 to `at_most` characters on one line, without control characters: a name that people read.

    Raises:
        ValidationError: Names the argument.
    """
    text = short_text(name, value, at_most=at_most)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValidationError(
            f"{name} must not contain control characters, line breaks or halves of characters: {text!r}"
        )
    return text


def folder_path(name: str, value: Any) -> Path:
    """A path that is a folder or may become one, with `~` opened and in full.

    Raises:
        ValidationError: Names the argument: not a path, or a file stands there or above it.
    """
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValidationError(f"{name} must be the path of a folder, not {value!r}")
    path = Path(value).expanduser().absolute()
    in_the_way = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
    if in_the_way is not None:
        raise ValidationError(f"{name} must be a folder, and {in_the_way} is a file; choose another path")
    return path


def _number(name: str, value: Any) -> float:
    if not (_is_int(value) or isinstance(value, float)):
        raise ValidationError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValidationError(f"{name} must be a number below 1e308, not one of {value.bit_length()} bits") from None


def _is_int(value: Any) -> bool:
    # NumPy's integers are `Integral`; its arrays and truth values are not.
    return isinstance(value, Integral) and not isinstance(value, bool)
