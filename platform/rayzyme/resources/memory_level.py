"""Values in memory up to a number of bytes, the longest unused forgotten first, safe from those who are given them."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Held:
    """A value in memory.

    Attributes:
        value: As `kept` or `sealed` gives it.
        size: Bytes that it takes, about.
        expires_at: On the cache's clock; None never.
        stamp: What the disk level's stamp was when the value was surely the newest; None where it had none.
        digest: The key's.
    """

    value: Any
    size: int
    expires_at: float | None
    stamp: int | None
    digest: str


class MemoryLevel:
    """Held values by key; threads may share it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.evictions = 0
        self._entries: OrderedDict[str, Held] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Held | None:
        """The value of a key, which is the most recently used one now."""
        with self._lock:
            held = self._entries.get(key)
            if held is not None:
                self._entries.move_to_end(key)
            return held

    def put(self, key: str, held: Held) -> None:
        """Take a value in, unless it is larger than the level; then nothing is under the key."""
        with self._lock:
            self._remove(key)
            if held.size > self.capacity:
                return
            self._entries[key] = held
            self.size += held.size
            while self.size > self.capacity:
                self._remove(next(iter(self._entries)))
                self.evictions += 1

    def remove(self, key: str, held: Held | None = None) -> bool:
        """Forget a key, or only the given value of it; whether there was one."""
        with self._lock:
            if held is not None and self._entries.get(key) is not held:
                return False
            return self._remove(key)

    def remove_expired(self, now: float) -> set[str]:
        """Forget what has expired; gives the digests."""
        with self._lock:
            expired = {
                key: held.digest
                for key, held in self._entries.items()
                if held.expires_at is not None and held.expires_at <= now
            }
            for key in expired:
                self._remove(key)
            return set(expired.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _remove(self, key: str) -> bool:
        held = self._entries.pop(key, None)
        self.size -= 0 if held is None else held.size
        return held is not None


def kept(value: Any) -> Any:
    """`value` apart from its giver: containers and tensors copied, arrays too unless they lie in `bytes`."""
    return _rebuilt(value, _unchangeable, _brought_here)


def sealed(value: Any) -> Any:
    """`value`, which nobody else has, with its arrays in memory that nobody can write to."""
    return _rebuilt(value, _unchangeable, _as_it_is)


def handed_out(value: Any) -> Any:
    """What a caller gets of a kept value: containers and tensors of its own, and views of the arrays."""
    return _rebuilt(value, _viewed, _cloned)


def size_of(value: Any) -> int:
    """Bytes that a value takes, about."""
    if isinstance(value, np.ndarray):
        return 128 + value.nbytes
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return sys.getsizeof(value) + sum(map(size_of, value))
    return sys.getsizeof(value) + int(getattr(value, "nbytes", 0) if _is_tensor(value) else 0)


def _rebuilt(value: Any, array: Callable[[AnyArray], AnyArray], tensor: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _rebuilt(item, array, tensor) for key, item in value.items()}
    if kind is list:
        return [_rebuilt(item, array, tensor) for item in value]
    if kind is tuple:
        return tuple([_rebuilt(item, array, tensor) for item in value])
    if kind is set:
        return set(value)
    if isinstance(value, np.ndarray):
        return array(value)
    return tensor(value) if _is_tensor(value) else value


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_it_is(value: Any) -> Any:
    return value


def _brought_here(tensor: Any) -> Any:
    # Where it would be after a restart.
    return tensor.detach().cpu().clone()


def _cloned(tensor: Any) -> Any:
    return tensor.clone()


def _viewed(array: AnyArray) -> AnyArray:
    # Not the array itself: its shape and dtype can be set in place.
    return array.view()


def _unchangeable(array: AnyArray) -> AnyArray:
    """The array in memory that cannot be made writeable: NumPy refuses that for `bytes`, and for no array of its own."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        memory = memory.base
    if type(array) is np.ndarray and type(memory) is bytes:
        return array.view()
    order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return np.ndarray(array.shape, array.dtype, array.tobytes(order), order=order)
