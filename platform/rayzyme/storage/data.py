"""The data handler: structures and trajectories on disk, by content of their names, lossless, in parts, within a limit.

An entry is one bundle (`rayzyme.storage.bundle`); its name is the digest of kind, id and metadata. Threads and processes may
share a folder. A kill at any moment leaves the old entry or the new one, and an index that is put right at the next look.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import rayzyme
from rayzyme.checks import folder_path, number_from_zero, positive_number, truth_value, whole_number
from rayzyme.errors import InvalidInput, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.storage.bundle import Bundle, write_bundle
from rayzyme.storage.data_index import Entry
from rayzyme.storage.disk import writing
from rayzyme.storage.entry_store import EntryStore, unknown
from rayzyme.storage.eviction import Departure, unneeded
from rayzyme.storage.values import ArrayBlocks, from_json, pack, to_json, unpack

Kind = Literal["structure", "trajectory"]
logger = logging.getLogger(__name__)

GIGABYTE = 1e9
"""Bytes in a GB here, as disks are sold."""

_OWN_METADATA = ("data_id", "kind", "timestamp", "rayzyme_version", "precision")
_LONGEST_ID = 512


class DataHandler:
    """A store of structures and trajectories. Close it, or use it as a context manager."""

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        max_cache_size: float = 100.0,
        enable_compression: bool = True,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the store, or make it; what killed writers left is removed.

        Args:
            cache_dir: Its folder; None is `$RAYZYME_HOME/data`.
            max_cache_size: Limit in GB (10^9 bytes).
            enable_compression: Compress what is stored from now on; entries of either kind are read.
            clock: Seconds since the epoch.

        Raises:
            ValidationError: An argument of a wrong type, a limit not above 0, a `cache_dir` that is a file.
        """
        if cache_dir is None:
            from rayzyme.settings import get_settings

            cache_dir = get_settings().home / "data"
        self.cache_dir = folder_path("cache_dir", cache_dir)
        limit = round(positive_number("max_cache_size", max_cache_size) * GIGABYTE)
        if limit < 1:
            raise ValidationError(f"max_cache_size is in GB, and {max_cache_size!r} is less than a byte")
        self._compress = truth_value("enable_compression", enable_compression)
        self._clock = clock
        self._store = EntryStore(self.cache_dir, limit, clock)

    def __enter__(self) -> DataHandler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; arrays that were loaded stay readable."""
        self._store.index.close()

    def store_structure(
        self,
        structure_data: Mapping[str, Any],
        data_id: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        intermediate: bool = False,
        pinned_by: str | None = None,
    ) -> str:
        """Store a structure.

        Args:
            structure_data: Anything that `rayzyme.storage.values` can take apart, by name. `positions`, where given, are
                (residues, atoms, 3) or (atoms, 3); `plddt` of another length than the residues is stored and warned about.
            data_id: The user's name for it, 1 to 512 characters.
            metadata: JSON that is part of what it is called; without data_id, kind, timestamp, rayzyme_version and precision,
                which the store adds.
            intermediate: Whether it may go as soon as nobody has it pinned.
            pinned_by: Who needs it from now on, for an hour, as by `pin`.

        Returns:
            Its key. The same id and metadata give the same key, and replace what was there.

        Raises:
            TypeError: Something that cannot be stored, by its place; metadata that is not JSON.
            ValueError: Positions of another shape; an entry called `metadata`; an id that is empty or too long.
            CacheTooSmall: It is larger than the whole store; nothing was evicted.
            InsufficientSpace: The disk is full; nothing was changed.
        """
        _require_structure_form(structure_data)
        return self._put("structure", structure_data, data_id, metadata, intermediate, pinned_by)

    def store_trajectory(
        self,
        trajectory_data: Mapping[str, Any],
        data_id: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        precision: float | None = None,
        intermediate: bool = False,
        pinned_by: str | None = None,
    ) -> str:
        """Store a trajectory.

        Args:
            trajectory_data: As for `store_structure`. `frames` is an array whose first axis are the frames, or an iterator of
                blocks of such frames, which is written as it comes; when it raises, nothing is stored.
            data_id: The user's name for it, 1 to 512 characters.
            metadata: As for `store_structure`.
            precision: Store floats of two and more axes as multiples of this step, off by half of it at most, in the
                arrays' own unit. None loses nothing.
            intermediate: As for `store_structure`.
            pinned_by: As for `store_structure`.

        Returns:
            Its key.

        Raises:
            ValueError: There are no `frames`, or blocks that do not fit together.
            TypeError, CacheTooSmall, InsufficientSpace: As `store_structure`.
        """
        if not isinstance(trajectory_data, Mapping) or "frames" not in trajectory_data:
            raise InvalidInput("trajectory_data must be a dict with an entry 'frames'")
        if precision is not None:
            positive_number("precision", precision)
        frames = trajectory_data["frames"]
        if hasattr(frames, "__next__"):
            trajectory_data = {**trajectory_data, "frames": ArrayBlocks(frames)}
        elif not np.shape(frames):
            raise InvalidInput("frames must be an array with the frames along its first axis, not a single number")
        return self._put("trajectory", trajectory_data, data_id, metadata, intermediate, pinned_by, precision)

    def load_data(self, cache_key: str) -> dict[str, Any]:
        """Everything that was stored under a key, equal in type, dtype, shape and bits, and `metadata`.

        Arrays of an entry stored without compression are read-only maps of its file; others are arrays of their own.

        Returns:
            The data's own entries; `metadata` holds the user's, and data_id, kind, timestamp (ISO 8601, UTC) and
            rayzyme_version.

        Raises:
            KeyError: No such key.
            CacheEntryLost: It was there, and its file is gone or damaged; a damaged one is moved to `bad/`.
        """
        with self._store.opened(cache_key) as bundle:
            data: dict[str, Any] = bundle.value()
            told = bundle.attributes
            own = {name: told[name] for name in _OWN_METADATA if name in told} | {"data_id": from_json(told["data_id"])}
            return {**data, "metadata": {**from_json(told["metadata"]), **own}}

    def load_frames(self, cache_key: str, start: int, stop: int, step: int = 1, *, name: str = "frames") -> Any:
        """A part of a trajectory's frames, as slicing would give it; the rest of the file is not read.

        Args:
            cache_key: Key of a trajectory.
            start: First frame.
            stop: One past the last frame.
            step: Distance between frames.
            name: Another entry with one row per frame, such as `time`.

        Returns:
            Frames of the dtype that was stored, (n, ...).

        Raises:
            KeyError: No such key, or no such entry in it.
            InvalidInput: The entry was not stored as an array.
            CacheEntryLost: As `load_data`.
        """
        with self._store.opened(cache_key) as bundle:
            document = _array_document(bundle, name)
            return unpack(document, lambda number: bundle.rows(number, start, stop, step))

    def iter_frames(self, cache_key: str, chunk: int = 100, *, name: str = "frames") -> Iterator[Any]:
        """A trajectory's frames in chunks of at most `chunk`, in constant memory; the entry is not evicted meanwhile.

        Raises:
            KeyError, InvalidInput, CacheEntryLost: As `load_frames`.
        """
        whole_number("chunk", chunk, at_least=1)
        return self._blocks(cache_key, chunk, name)

    def _blocks(self, cache_key: str, chunk: int, name: str) -> Iterator[Any]:
        with self._store.opened(cache_key) as bundle:
            document = _array_document(bundle, name)
            for block in bundle.blocks(document["value"], chunk):
                yield unpack(document, partial(_only, block))

    def list_entries(self, kind: Kind | None = None) -> list[dict[str, Any]]:
        """What is stored, the longest unused first: key, kind, data_id, metadata, size (bytes), times (epoch), pinned."""
        return [_as_row(entry) for entry in self._store.index.all(self._clock()) if kind in (None, entry.kind)]

    def get_cache_stats(self) -> dict[str, Any]:
        """Sizes in GB (10^9 bytes) as on the disk now, entries, `usage_percent` of the limit, and this handler's counts."""
        entries, size = self._store.size()
        get_metrics_collector().set_gauge("rayzyme_data_bytes", size)
        get_metrics_collector().set_gauge("rayzyme_data_entries", entries)
        return {
            "total_size_gb": size / GIGABYTE,
            "max_size_gb": self._store.limit / GIGABYTE,
            "num_entries": entries,
            "usage_percent": round(100 * size / self._store.limit, 2),
            **self._store.counts,
        }

    def delete(self, cache_key: str) -> bool:
        """Remove an entry; whether there was one. Who reads it goes on reading."""
        with self._store.alone():
            entry = self._store.index.get(cache_key, self._clock())
            return entry is not None and bool(self._store.depart([Departure(entry, "deleted")]))

    def clear_cache(self) -> int:
        """Remove all entries, pinned ones too, and what is in quarantine; how many entries went."""
        with self._store.alone():
            self._store.empty_quarantine()
            everything = self._store.index.all(self._clock())
            return len(self._store.depart([Departure(entry, "cleared") for entry in everything]))

    def cleanup(self, max_age_days: float | None = None, *, dry_run: bool = False) -> list[dict[str, Any]]:
        """Remove intermediates that nobody needs, and what was not used for so many days; pinned entries stay.

        Args:
            max_age_days: Days since the last use; None looks at intermediates only.
            dry_run: Only say what would go.

        Returns:
            What went, or would go: the rows of `list_entries` with a `reason`.
        """
        if max_age_days is not None:
            number_from_zero("max_age_days", max_age_days)
        with self._store.alone():
            now = self._clock()
            unused = unneeded(self._store.index.all(now), now, max_age_days)
            plan = [item for item in unused if not self._store.is_read(item.entry)]
            gone = plan if dry_run else self._store.depart(plan)
        return [{**_as_row(item.entry), "reason": item.reason} for item in gone]

    def verify(self) -> list[str]:
        """Read every byte; the keys of entries that are gone or damaged. They are repaired as `load_data` would."""
        bad = []
        for entry in self._store.index.all(self._clock()):
            try:
                with self._store.opened(entry.key, as_used=False) as bundle:
                    bundle.verify()
            except KeyError:
                bad.append(entry.key)
        return bad

    def pin(self, cache_key: str, owner: str, ttl: float = 3600.0) -> None:
        """Keep an entry from being evicted for `ttl` seconds, or until `unpin`; again to renew.

        Raises:
            KeyError: No such key.
        """
        positive_number("ttl", ttl)
        with self._store.alone():
            if self._store.index.get(cache_key, self._clock()) is None:
                raise unknown(cache_key)
            with writing("pinning an entry", self.cache_dir, 0):
                self._store.index.pin(cache_key, owner, self._clock() + ttl)

    def unpin(self, cache_key: str, owner: str) -> bool:
        """Say that `owner` needs the entry no more; whether it was pinned by them."""
        return self._store.index.unpin(cache_key, owner)

    @staticmethod
    def optimize_memory(data: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
        """A copy in which float64 arrays are float32. It loses digits; nothing that is stored is ever changed like this.

        Args:
            data: Arrays by name.
            names: Which; None is every float64 array.
        """
        return {
            name: value.astype(np.float32)
            if isinstance(value, np.ndarray) and value.dtype == np.float64 and (names is None or name in names)
            else value
            for name, value in data.items()
        }

    def _put(
        self,
        kind: Kind,
        data: Mapping[str, Any],
        data_id: str,
        metadata: Mapping[str, Any] | None,
        intermediate: bool,
        pinned_by: str | None,
        precision: float | None = None,
    ) -> str:
        if "metadata" in data:
            raise InvalidInput("an entry called 'metadata' is reserved; give it as metadata=")
        key, told = _key(kind, data_id, metadata)
        packed = pack(dict(data), f"{kind}_data")
        now = self._clock()
        attributes = {
            "kind": kind,
            "data_id": to_json(data_id, "data_id"),
            "metadata": to_json(told, "metadata"),
            "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "rayzyme_version": rayzyme.__version__,
            "intermediate": intermediate,
            **({} if precision is None else {"precision": precision}),
        }
        entry = Entry(key, kind, data_id, told, 0, now, now, intermediate)

        def write(sink: Any) -> None:
            write_bundle(
                sink,
                packed,
                compress=self._compress,
                by_frames=kind == "trajectory",
                precision=precision,
                attributes=attributes,
            )

        self._store.put(entry, write, pinned_by)
        return key


def _key(kind: Kind, data_id: str, metadata: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The key, and the metadata as a dict."""
    if not isinstance(data_id, str) or not 1 <= len(data_id) <= _LONGEST_ID:
        raise InvalidInput(f"data_id must be a text of 1 to {_LONGEST_ID} characters, not {str(data_id)[:80]!r}")
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"metadata of {data_id[:80]!r} must be a dict, not a {type(metadata).__name__}")
    told = dict(metadata or {})
    reserved = sorted({*told} & {*_OWN_METADATA})
    if reserved:
        raise InvalidInput(f"metadata may not hold {', '.join(reserved)}: the store adds these itself")
    try:
        text = json.dumps(
            [kind, data_id, told], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata of {data_id[:80]!r} is not JSON: {error}") from None
    plain = json.loads(text)[2]
    if plain != told:
        raise TypeError(f"metadata of {data_id[:80]!r} is not JSON: its keys must be texts, and lists no tuples")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), plain


def _require_structure_form(data: Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"structure_data must be a dict, not a {type(data).__name__}")
    if "positions" not in data:
        return
    shape = np.shape(data["positions"])
    if len(shape) not in (2, 3) or shape[-1] != 3:
        raise InvalidInput(f"positions must be (residues, atoms, 3) or (atoms, 3), not {shape}")
    scores = np.shape(data["plddt"]) if "plddt" in data else None
    if scores is not None and len(shape) == 3 and scores[:1] != shape[:1]:
        logger.warning("plddt has shape %s for %d residues; it is stored as it is", scores, shape[0])


def _array_document(bundle: Bundle, name: str) -> dict[str, Any]:
    entries = bundle.document["value"] if "$" in bundle.document else bundle.document
    document = dict(entries).get(name)
    if document is None and name not in dict(entries):
        raise KeyError(f"the entry has no {name!r}; it has {', '.join(map(str, dict(entries)))}")
    if not isinstance(document, dict) or document.get("$") not in ("array", "tensor"):
        raise InvalidInput(f"{name!r} was not stored as an array, so it has no rows to read one by one; use load_data")
    return document


def _only(block: Any, _number: int) -> Any:
    return block


def _as_row(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key, "kind": entry.kind, "data_id": entry.data_id, "metadata": entry.metadata, "size": entry.size,
        "stored_at": entry.stored_at, "last_used": entry.last_used, "intermediate": entry.intermediate,
        "pinned": entry.pinned,
    }  # fmt: skip
