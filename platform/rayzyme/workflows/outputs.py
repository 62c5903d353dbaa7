"""What tasks give and share, stored so that other tasks, in other processes and after a restart, can have it.

Small plain values stand in the row itself, larger ones and arrays in a file of the attempt's folder. What neither JSON nor a
bundle can hold is transient: it lives as long as the runner, and the task is run again when that is needed later.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rayzyme.errors import DamagedFile, NotFound
from rayzyme.storage.bundle import Bundle
from rayzyme.storage.bundle_writing import write_bundle
from rayzyme.storage.disk import atomic_file
from rayzyme.storage.values import PackedValue, pack, unpack
from rayzyme.workflows.result import ModelRef

StoredValue = Mapping[str, Any]
"""`{"kind": "inline" | "bundle" | "arrow" | "transient" | "deleted", "digest": ...}` and what the kind needs; JSON but for a
transient one, which holds the object itself."""

LARGEST_INLINE_BYTES = 64 * 1024
DELETED: StoredValue = {"kind": "deleted", "digest": "deleted"}
"""A key of the shared state that a task removed."""

_MODEL = "model reference"


def store_value(value: Any, folder: Path, name: str) -> StoredValue:
    """Store a value.

    Args:
        value: Anything; see `rayzyme.storage.values` for what is durable, and Arrow tables and `ModelRef`s are too.
        folder: Where a file is made if one is needed.
        name: What the file is called, and errors call the value.

    Raises:
        InsufficientSpace: The disk is full.
    """
    if _is_arrow(value):
        return _stored_file("arrow", value, folder / f"{quote(name, safe='')}.arrow")
    try:
        packed = _packed(value, name)
    except (TypeError, ValueError) as error:
        return {"kind": "transient", "digest": "", "object": value, "why": str(error)}
    if not packed.arrays:
        text = json.dumps(packed.document, sort_keys=True, separators=(",", ":"))
        if len(text) < LARGEST_INLINE_BYTES:
            return {"kind": "inline", "digest": hashlib.sha256(text.encode()).hexdigest(), "value": packed.document}
    return _stored_file("bundle", packed, folder / f"{quote(name, safe='')}.bundle")


def load_value(stored: StoredValue) -> Any:
    """The value of `store_value`. Arrays of files are read-only maps; containers are the caller's own.

    Raises:
        NotFound: Its file is gone, or it was transient and its runner is gone.
        DamagedFile: Its file was altered.
    """
    match stored["kind"]:
        case "inline":
            return _with_models(unpack(stored["value"], _no_array))
        case "transient" if "object" in stored:
            return stored["object"]
        case "transient":
            raise NotFound(f"a value that could not be stored went with the process that held it: {stored['why']}")
        case "bundle" | "arrow" as kind:
            try:
                return _loaded_file(kind, Path(stored["path"]))
            except FileNotFoundError as error:
                raise NotFound(f"{stored['path']}, which a task's result is in, is gone; run the job again") from error
    raise ValueError(f"unknown kind of stored value {stored['kind']!r}")


def is_durable(stored: StoredValue | None) -> bool:
    """Whether it outlives the process that holds it."""
    return stored is None or stored["kind"] != "transient"


def as_record(stored: StoredValue | None) -> dict[str, Any] | None:
    """As JSON, for a row: a transient one leaves its object behind."""
    return None if stored is None else {key: item for key, item in stored.items() if key != "object"}


class StoredValues(Mapping[str, Any]):
    """Values by name, each loaded when it is first asked for."""

    def __init__(self, stored: Mapping[str, StoredValue]) -> None:
        self._stored = {key: value for key, value in stored.items() if value["kind"] != "deleted"}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._loaded:
            self._loaded[key] = load_value(self._stored[key])
        return self._loaded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self)}>"


class SharedState(StoredValues, MutableMapping[str, Any]):
    """The shared state of a job as one task sees it.

    What is assigned counts as written, and so do changes inside of dicts, lists and sets that were read. Arrays are
    read-only; a tensor that was changed in place must be assigned again.
    """

    def __init__(self, stored: Mapping[str, StoredValue]) -> None:
        super().__init__(stored)
        self._assigned: dict[str, Any] = {}
        self._removed: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        return self._assigned[key] if key in self._assigned else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._assigned[key] = value
        self._removed.discard(key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._assigned.pop(key, None)
        self._loaded.pop(key, None)
        if self._stored.pop(key, None) is not None:
            self._removed.add(key)

    def __iter__(self) -> Iterator[str]:
        yield from self._stored
        yield from (key for key in self._assigned if key not in self._stored)

    def __len__(self) -> int:
        return len(self._stored.keys() | self._assigned.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._stored or key in self._assigned

    def writes(self, folder: Path) -> dict[str, StoredValue]:
        """What was written, stored; what is the same as before is left out."""
        written: dict[str, StoredValue] = dict.fromkeys(sorted(self._removed), DELETED)
        for key, value in self._assigned.items():
            stored = store_value(value, folder, f"shared-{key}")
            if not stored["digest"] or stored["digest"] != self._stored.get(key, DELETED)["digest"]:
                written[key] = stored
        for key, value in self._loaded.items():
            if key not in self._assigned and _was_changed(value, self._stored[key]):
                written[key] = store_value(value, folder, f"shared-{key}")
        return written


def _was_changed(value: Any, stored: StoredValue) -> bool:
    """Whether containers changed since they were loaded; what is in arrays cannot."""
    if (
        value is None
        or isinstance(value, (bool, int, float, str, bytes, ModelRef))
        or stored["kind"] in ("transient", "arrow")
    ):
        return False
    try:
        document = json.loads(json.dumps(_packed(value, "value").document))
    except (TypeError, ValueError):
        return True
    if stored["kind"] == "inline":
        return bool(document != json.loads(json.dumps(stored["value"])))
    with Bundle.open(Path(stored["path"])) as bundle:
        return bool(document != bundle.document)


def _packed(value: Any, name: str) -> PackedValue:
    if type(value) is ModelRef:
        value = _as_document(value)
    try:
        return pack(value, name)
    except TypeError:
        # References to models are rare, so only what cannot be packed is searched for them.
        return pack(_without_models(value), name)


def _without_models(value: Any) -> Any:
    if type(value) is ModelRef:
        return _as_document(value)
    if type(value) is dict:
        return {key: _without_models(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_models(item) for item in value)
    return value


def _as_document(model: ModelRef) -> dict[str, Any]:
    return {_MODEL: asdict(model)}


def _with_models(value: Any) -> Any:
    if type(value) is dict:
        if len(value) == 1 and _MODEL in value:
            return ModelRef(**value[_MODEL])
        return {key: _with_models(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_models(item) for item in value)
    return value


def _stored_file(kind: str, content: Any, path: Path) -> StoredValue:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as sink:
        if kind == "arrow":
            _write_arrow(sink, content)
        else:
            write_bundle(sink, content)
        size = sink.tell()
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return {"kind": kind, "digest": digest, "path": str(path), "size": size}


def _loaded_file(kind: str, path: Path) -> Any:
    if kind == "arrow":
        return _read_arrow(path)
    with Bundle.open(path) as bundle:
        return _with_models(bundle.value())


def _is_arrow(value: Any) -> bool:
    pyarrow: Any = sys.modules.get("pyarrow")
    return pyarrow is not None and isinstance(value, pyarrow.Table)


def _write_arrow(sink: Any, table: Any) -> None:
    import pyarrow

    with pyarrow.ipc.new_file(pyarrow.PythonFile(sink, mode="w"), table.schema) as writer:
        writer.write_table(table)


def _read_arrow(path: Path) -> Any:
    import pyarrow

    try:
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
    except pyarrow.ArrowInvalid as error:
        raise DamagedFile(f"{path}, which a task's result is in, is damaged: {error}; run the job again") from error


def _no_array(number: int) -> Any:
    raise ValueError(f"array {number} is not here")
