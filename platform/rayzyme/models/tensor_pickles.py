"""What a plain pickle of tensors and arrays may be built from.

A pickle names what it calls; each name admitted here leads to a stand-in of ours that only builds data. Any other name is
refused before it is looked up.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import numpy as np
import torch

from rayzyme.errors import CheckpointError


class _Admitted:
    """A stand-in for one admitted name: it can be called and nothing else.

    A pickle may also set attributes on whatever it holds (BUILD); a bare function would let a file change our own
    defaults for every later call.
    """

    __slots__ = ("_build",)
    _build: Callable[..., Any]

    def __init__(self, build: Callable[..., Any]) -> None:
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError("the file tries to alter a function")

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("the file tries to alter a function")


class _PickledDtype:
    """A numpy dtype in the making. Only plain ones: no fields, no objects except as an array of strings."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not re.fullmatch(r"O8?|[biufc]\d{1,2}|[SU]\d{1,9}|\?", str(code)):
            raise pickle.UnpicklingError(f"the file holds an array of dtype {code!r}; only numbers and text are read")
        self.dtype = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, byte_order, subarray, names, fields = state[:5]
        if subarray is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("the file holds a structured array; only numbers and text are read")
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)

    def read(self, data: bytes | bytearray, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
        if self.dtype.hasobject:
            raise pickle.UnpicklingError("the file holds Python objects where an array's bytes should be")
        return np.frombuffer(data, self.dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


class _PickledArray:
    """A numpy array in the making: numpy's own pickles first build an empty one and then set its state."""

    __slots__ = ("array",)

    def __init__(self, *_empty: object) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _PickledDtype):
            raise pickle.UnpicklingError("the file holds an array without a dtype")
        if not dtype.dtype.hasobject:
            self.array = dtype.read(data, shape, "F" if is_fortran else "C")
            return
        if not isinstance(data, list) or not all(type(item) is str for item in data):
            raise pickle.UnpicklingError("the file holds an array of Python objects other than strings")
        strings = np.empty(len(data), dtype=object)
        strings[:] = data
        self.array = strings.reshape(shape)  # numpy lists objects in C order whatever the flag says


def _scalar(dtype: _PickledDtype, data: bytes) -> Any:
    return dtype.read(data, (1,), "C")[0]


def _array_from_buffer(data: bytes, dtype: _PickledDtype, shape: tuple[int, ...], order: str) -> Any:
    return dtype.read(data, shape, order)


def _latin1(text: str, encoding: str) -> bytes:
    # How protocols before 3 carry bytes; any other codec could be made to do work.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file asks for the codec {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_gradient_and_hooks: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("the file holds a tensor without a storage")
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    if offset < 0 or len(shape) != len(strides) or any(size < 0 for size in shape + strides):
        raise pickle.UnpicklingError("the file holds a tensor with a negative size, stride or offset")
    values = torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)
    empty = 0 in shape
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A stride of zero would let a few bytes claim any amount of memory once they are copied.
    if not empty and (last >= values.numel() or int(np.prod(shape, dtype=object)) > values.numel()):
        raise pickle.UnpicklingError(f"the file holds a tensor of shape {shape} in {values.numel()} stored values")
    return values.as_strided(shape, strides, 0 if empty else offset)


def _parameter(data: Any, *_gradient_and_hooks: Any) -> Any:
    return data


_NUMPY_BUILDERS: Final[dict[str, Callable[..., Any]]] = {
    "multiarray._reconstruct": _PickledArray,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _array_from_buffer,
}
_DATA_BUILDERS: Final[dict[str, Callable[..., Any]]] = {
    "collections.OrderedDict": dict,
    "_codecs.encode": _latin1,
    "__builtin__.bytes": _empty_bytes,
    "builtins.bytes": _empty_bytes,
    "numpy.dtype": _PickledDtype,
    "numpy.ndarray": _PickledArray,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"numpy.core.{name}": build for name, build in _NUMPY_BUILDERS.items()},  # numpy 1
    **{f"numpy._core.{name}": build for name, build in _NUMPY_BUILDERS.items()},  # numpy 2
}


class TensorUnpickler(pickle.Unpickler):
    """Reads a pickle, admitting the names above only.

    Args:
        stream: The pickle.
        path: Where it is from, for messages.
        load_storage: Reads the stream that torch puts inside the pickle for a tensor's numbers, just as strictly.
    """

    def __init__(self, stream: IO[bytes], path: Path, load_storage: Callable[[bytes], Any]) -> None:
        super().__init__(stream)
        self._path = path
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted == "torch.storage._load_from_bytes":
            return _Admitted(self._load_storage)
        if wanted not in _DATA_BUILDERS:
            raise CheckpointError(
                f"{self._path} asks for {wanted}; only tensors, numpy arrays, lists, dicts, strings and numbers are "
                "read from a pickle. It was refused and nothing in it has run. If you trust its origin, save the "
                "arrays as .npz where it was made."
            )
        return _Admitted(_DATA_BUILDERS[wanted])


def settle(value: Any, seen: dict[int, Any]) -> Any:
    """Replace the arrays in the making by arrays, and refuse any kind of object that was not promised."""
    if isinstance(value, (str, int, float, bytes, torch.Tensor, np.ndarray, np.generic, type(None))):
        return value
    if isinstance(value, _PickledArray) and value.array is not None:
        return value.array
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, list):
        settled = seen[id(value)] = value
        settled[:] = [settle(item, seen) for item in value]
        return settled
    if isinstance(value, tuple):
        return tuple(settle(item, seen) for item in value)
    if isinstance(value, dict):
        seen[id(value)] = value
        for key in list(value):
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise pickle.UnpicklingError(f"it holds a dict with a {type(key).__name__.strip('_')} as key")
            value[key] = settle(value[key], seen)
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__.strip('_')} outside of an array or tensor")
