"""Random values of every kind that can be stored, and what it means that two are the same."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst


def same(found: Any, expected: Any) -> bool:
    """Equal in type, and all the way down: dtype, byte order, shape, NaN positions, bits of floats, order of keys."""
    if isinstance(expected, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and found.dtype == expected.dtype
            and found.dtype.str == expected.dtype.str
            and found.shape == expected.shape
            and found.tobytes() == expected.tobytes()
        )
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, set):
        return len(found) == len(expected) and all(any(same(item, other) for item in found) for other in expected)
    if isinstance(expected, (np.str_, np.bytes_)):
        return len(found) == len(expected) and bool(found == expected)
    if isinstance(expected, np.generic):
        return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    if isinstance(expected, (float, complex)):
        return repr(found) == repr(expected)
    return bool(found == expected)


def arrays() -> st.SearchStrategy[Any]:
    """Arrays of many dtypes and shapes, empty and 0-d ones among them, in either memory order."""
    made = npst.arrays(
        st.one_of(npst.scalar_dtypes(), npst.array_dtypes()),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    )
    return st.one_of(made, made.map(np.asfortranarray))


def values() -> st.SearchStrategy[Any]:
    """Trees of everything that can be stored."""
    hashable = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(max_size=20),
        st.datetimes(timezones=st.sampled_from([None, UTC])), st.just(Path("a/b")),
    )  # fmt: skip
    leaves = st.one_of(hashable, arrays(), npst.scalar_dtypes().flatmap(npst.from_dtype), st.sets(hashable, max_size=3))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=4),
        ),
        max_leaves=12,
    )
