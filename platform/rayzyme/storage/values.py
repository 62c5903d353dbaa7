"""Values that can be stored, as a JSON document and a list of arrays; nothing is pickled, and types come back as they went in.

Supported: None, bool, int, float, complex, str, bytes, list, tuple, set, dict with str or int keys, datetime, Path, NumPy
arrays and scalars of every dtype but object, and dense PyTorch tensors. What is anything else is refused by its place in
the tree before anything is written.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayzyme.errors import MissingExtra

AnyArray = NDArray[Any]

_TAG = "$"
_DEEPEST = 100
_LONGEST_INT_BITS = 4096
_ARRAY, _TENSOR = "array", "tensor"


@dataclass(frozen=True, slots=True)
class ArrayBlocks:
    """An array that comes in blocks along its first axis, and is never wholly in memory.

    Attributes:
        blocks: Arrays of one dtype that agree in all axes but the first.
    """

    blocks: Iterator[AnyArray]


@dataclass(slots=True)
class PackedValue:
    """A value taken apart.

    Attributes:
        document: What JSON can hold; arrays stand in it as their numbers.
        arrays: The arrays, in order.
        places: Where each array was, as `name['key'][0]`.
    """

    document: Any = None
    arrays: list[AnyArray | ArrayBlocks] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add(self, array: AnyArray | ArrayBlocks, place: str) -> int:
        """Note an array; gives its number."""
        self.arrays.append(array)
        self.places.append(place)
        return len(self.arrays) - 1


def pack(value: Any, name: str) -> PackedValue:
    """Take a value apart.

    Args:
        value: Anything of the types above; strided tensors are copied to the CPU, their gradients are left behind.
        name: What errors call it.

    Raises:
        TypeError: Names the place of the first value of another type, such as `states['a']['b'][3]`.
        ValueError: It is nested more than 100 levels deep, or contains itself.
    """
    packed = PackedValue()
    packed.document = _pack(value, name, packed, 0)
    return packed


def unpack(document: Any, array: Callable[[int], AnyArray]) -> Any:
    """Put a value together again.

    Args:
        document: Of `pack`.
        array: Gives the array of a number.

    Raises:
        MissingExtra: It holds tensors and PyTorch is not installed.
        ValueError: It is not a document of `pack`.
    """
    if isinstance(document, list):
        return [unpack(item, array) for item in document]
    if not isinstance(document, dict):
        return document
    if _TAG not in document:
        return {key: unpack(item, array) for key, item in document.items()}
    tag = document[_TAG]
    content: Any = document["value"]
    match tag:
        case "array":
            return array(content)
        case "tensor":
            return _as_tensor(array(content), document["dtype"])
        case "scalar":
            return _scalar(content, document["dtype"])
        case "text":
            return base64.b64decode(content).decode("utf-8", "surrogatepass")
        case "numpy text":
            return np.str_(unpack(content, array))
        case "numpy bytes":
            return np.bytes_(unpack(content, array))
        case "tuple":
            return tuple(unpack(item, array) for item in content)
        case "set":
            return {unpack(item, array) for item in content}
        case "dict":
            return {unpack(key, array): unpack(item, array) for key, item in content}
        case "float":
            return float(content)
        case "int":
            return int(content, 16)
        case "complex":
            return complex(float(content[0]), float(content[1]))
        case "bytes":
            return base64.b64decode(content)
        case "datetime":
            return datetime.fromisoformat(content).replace(fold=document["fold"])
        case "path":
            return Path(content)
    raise ValueError(f"unknown kind of value {tag!r}")


def to_json(value: Any, name: str) -> str:
    """A value without arrays as text, in ASCII.

    Raises:
        TypeError: It holds an array, or something that cannot be stored.
    """
    packed = pack(value, name)
    if packed.arrays:
        raise TypeError(f"{packed.places[0]} is an array, which has no place here")
    return json.dumps(packed.document)


def from_json(text: str) -> Any:
    """The value of `to_json`."""
    return unpack(json.loads(text), _no_array)


def array_numbers(document: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """The arrays of a document: (keys that lead to it, its number), for dicts and lists above it."""
    if isinstance(document, list):
        items: list[tuple[str | int, Any]] = list(enumerate(document))
    elif isinstance(document, dict) and _TAG not in document:
        items = list(document.items())
    elif isinstance(document, dict) and document[_TAG] == "dict":
        items = [(unpack(key, _no_array), item) for key, item in document["value"]]
    else:
        if isinstance(document, dict) and document[_TAG] in (_ARRAY, _TENSOR):
            yield (), document["value"]
        return
    for key, item in items:
        for keys, number in array_numbers(item):
            yield (key, *keys), number


def describe_dtype(dtype: np.dtype[Any]) -> Any:
    """A dtype as JSON: its byte order, fields and padding included.

    Raises:
        TypeError: It holds Python objects, or NumPy alone could not make it again.
    """
    if not dtype.hasobject and dtype.kind != "T":
        # NumPy has no description for fields out of order or over one another.
        with suppress(ValueError):
            description = json.loads(json.dumps(np.lib.format.dtype_to_descr(dtype)))
            if read_dtype(description) == dtype:
                return description
    raise TypeError(f"dtype {dtype} cannot be stored")


def read_dtype(description: Any) -> np.dtype[Any]:
    """The dtype of `describe_dtype`."""
    return np.lib.format.descr_to_dtype(_with_tuples(description))


def _with_tuples(description: Any) -> Any:
    """JSON knows lists only; NumPy tells a field, or a dtype with a shape, by its being a tuple."""
    if isinstance(description, str):
        return description
    if isinstance(description[0], list):
        return [_field(item) for item in description]
    return (_with_tuples(description[0]), tuple(description[1]))


def _field(description: list[Any]) -> tuple[Any, ...]:
    name, inner, *shape = description
    label = tuple(name) if isinstance(name, list) else name
    return (label, _with_tuples(inner), *(tuple(item) for item in shape))


def _pack(value: Any, place: str, packed: PackedValue, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"{place[:200]}... is nested more than {_DEEPEST} levels deep, or contains itself")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _pack_text(value)
    if kind is int:
        return value if value.bit_length() <= _LONGEST_INT_BITS else _tagged("int", hex(value))
    if kind is float:
        # JSON has no words for these.
        return value if np.isfinite(value) else _tagged("float", repr(value))
    if kind is list:
        return _pack_items(value, place, packed, depth)
    if kind is tuple:
        return _tagged("tuple", _pack_items(value, place, packed, depth))
    if kind is dict:
        return _pack_dict(value, place, packed, depth)
    if kind is set:
        items = [_pack(item, f"{place}{{{item!r}}}", packed, depth + 1) for item in value]
        return _tagged("set", sorted(items, key=lambda item: json.dumps(item, sort_keys=True)))
    if kind is complex:
        return _tagged("complex", [repr(value.real), repr(value.imag)])
    if kind is bytes:
        return _tagged("bytes", base64.b64encode(value).decode())
    if kind is datetime:
        return _tagged("datetime", value.isoformat(), fold=value.fold)
    if isinstance(value, Path):
        return _tagged("path", str(value))
    return _pack_numbers(value, place, packed)


def _pack_items(items: Sequence[Any], place: str, packed: PackedValue, depth: int) -> list[Any]:
    return [_pack(item, f"{place}[{number}]", packed, depth + 1) for number, item in enumerate(items)]


def _pack_dict(value: dict[Any, Any], place: str, packed: PackedValue, depth: int) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{place} has the key {key!r} of type {type(key).__name__}; keys must be str or int")
    items = [
        [_pack(key, place, packed, depth + 1), _pack(item, f"{place}[{key!r}]", packed, depth + 1)]
        for key, item in value.items()
    ]
    # JSON's own objects know texts as keys only, and one with our tag would look like one of ours.
    if _TAG in value or not all(type(key) is str for key, _ in items):
        return _tagged("dict", items)
    return dict(items)


def _pack_text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves of a surrogate pair beside each other would come back from JSON as one character.
        return _tagged("text", base64.b64encode(text.encode("utf-8", "surrogatepass")).decode())
    return text


def _pack_numbers(value: Any, place: str, packed: PackedValue) -> Any:
    if isinstance(value, ArrayBlocks):
        return _tagged(_ARRAY, packed.add(value, place))
    # As arrays these would lose NULs at their ends, and be nothing at all where they are empty.
    if type(value) is np.str_:
        return _tagged("numpy text", _pack_text("".join(value)))
    if type(value) is np.bytes_:
        return _tagged("numpy bytes", _tagged("bytes", base64.b64encode(bytes(value)).decode()))
    if isinstance(value, np.generic):
        return _tagged("scalar", base64.b64encode(value.tobytes()).decode(), dtype=_describe(value.dtype, place))
    if type(value) in (np.ndarray, np.memmap):
        _describe(value.dtype, place)
        return _tagged(_ARRAY, packed.add(np.asarray(value), place))
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor:
        if value.layout is not torch.strided or value.is_quantized:
            raise TypeError(f"{place} is a tensor of layout {value.layout}; only dense ones can be stored")
        return _tagged(_TENSOR, packed.add(_from_tensor(value, torch), place), dtype=str(value.dtype))
    raise TypeError(
        f"{place} is of type {type(value).__module__}.{type(value).__qualname__}, which cannot be stored; plain values, NumPy "
        "arrays and tensors can"
    )


def _describe(dtype: np.dtype[Any], place: str) -> Any:
    try:
        return describe_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{place} has {error}") from None


def _tagged(tag: str, value: Any, **more: Any) -> dict[str, Any]:
    return {_TAG: tag, "value": value, **more}


def _scalar(content: str, dtype: Any) -> Any:
    return np.frombuffer(base64.b64decode(content), dtype=read_dtype(dtype))[0]


def _no_array(number: int) -> AnyArray:
    raise ValueError(f"array {number} is not here")


def _from_tensor(tensor: Any, torch: Any) -> AnyArray:
    """The tensor's bytes as NumPy knows them; dtypes that it lacks (bfloat16, float8) as integers of their size."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    try:
        array: AnyArray = plain.numpy()
    except TypeError:
        array = plain.contiguous().view(getattr(torch, f"uint{8 * plain.element_size()}")).numpy()
    return array


def _as_tensor(array: AnyArray, dtype: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("stored tensors need PyTorch to be read; install it with: pip install torch") from error
    # A tensor may be written to, what is read from a store may not.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    wanted = getattr(torch, dtype.removeprefix("torch."))
    return tensor if tensor.dtype == wanted else tensor.view(wanted)
