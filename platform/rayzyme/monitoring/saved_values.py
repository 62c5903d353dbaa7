"""Reading back what was saved as JSON: a value that cannot stand where it stands is a ValueError, not a later surprise."""

from __future__ import annotations

from typing import Any, Final

LARGEST: Final = 1e100
"""Beyond any real figure, and its square can still be reckoned with."""

_LARGEST_COUNT: Final = 10**100


def read_number(value: Any, at_least: float = -LARGEST, at_most: float = LARGEST) -> float:
    """A finite number; True is not one."""
    if type(value) not in (int, float) or not at_least <= value <= at_most:
        raise ValueError(f"{value!r:.100} is not a number from {at_least:g} to {at_most:g}")
    number: float = value
    return number


def read_count(value: Any, at_least: int = 0, at_most: int = _LARGEST_COUNT) -> int:
    """A whole number; True is not one."""
    if type(value) is not int or not at_least <= value <= at_most:
        raise ValueError(f"{value!r:.100} is not a whole number from {at_least} to {at_most}")
    return value


def read_text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.100} is not a text")
    return value


def read_truth(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.100} is neither true nor false")
    return value
