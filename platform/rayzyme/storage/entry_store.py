"""Entries as files in a folder, within a limit of bytes: put in place, opened, evicted, and put right after a kill.

The files are the truth, the index is a memory of them. While an entry comes or goes its row says so; whoever opens the store
after a kill, or asks for its size, looks at the disk for exactly those.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rayzyme.errors import CacheEntryLost, CacheTooSmall, DamagedFile, DatabaseError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.storage.bundle import Bundle, is_being_read
from rayzyme.storage.data_index import DataIndex, Entry
from rayzyme.storage.disk import put_in_place, remove_leftovers, sole_owner, temporary_file, writing
from rayzyme.storage.eviction import Departure, candidates
from rayzyme.storage.values import from_json

logger = logging.getLogger(__name__)

Write = Callable[[Any], None]

FIRST_PIN_S = 3600.0
"""How long a pin lasts that is given with a new entry."""

# Damaged files that are kept for whoever wants to see what happened.
_QUARANTINED = 20


class EntryStore:
    """The files and the index of one folder; threads and processes may share it.

    Attributes:
        folder: Where everything is.
        limit: Bytes that the entries may take.
        index: What is known of them.
        counts: Hits, misses and evictions through this object.
    """

    def __init__(self, folder: Path, limit: int, clock: Callable[[], float]) -> None:
        """Open it, or make it; what dead writers left is removed."""
        self.folder = folder
        self.limit = limit
        self.counts = {"hits": 0, "misses": 0, "evictions": 0}
        self._clock = clock
        self._entries = folder / "entries"
        self._quarantine = folder / "bad"
        self._entries.mkdir(parents=True, exist_ok=True)
        self.index = DataIndex(folder / "index.sqlite", self._read_entries)
        with self.alone():
            self._settle()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that changes the store, over all threads and processes."""
        with sole_owner(self._entries):
            yield

    def put(self, entry: Entry, write: Write, pinned_by: str | None = None) -> None:
        """Write an entry's file and evict others until it fits.

        Args:
            entry: Its size is filled in here.
            write: Given a sink with `write(bytes)`.
            pinned_by: Who needs it from the first moment on, for `FIRST_PIN_S` seconds.

        Raises:
            CacheTooSmall: It is larger than the limit; nothing was evicted.
            InsufficientSpace: The disk is full; nothing was changed.
        """
        path = self._path(entry.key)
        path.parent.mkdir(exist_ok=True)
        with writing(f"storing {entry.data_id[:80]!r}", self.folder, 0), temporary_file(path.parent) as sink:
            limited = _LimitedSink(sink, self.limit, entry.data_id)
            write(limited)
            entry = replace(entry, size=limited.written)
            with self.alone():
                self._make_room(entry)
                self.index.put(entry, settled=False)
                if pinned_by is not None:
                    self.index.pin(entry.key, pinned_by, self._clock() + FIRST_PIN_S)
                put_in_place(sink, path)
                self.index.put(entry, settled=True)

    @contextmanager
    def opened(self, key: str, *, as_used: bool = True) -> Iterator[Bundle]:
        """An entry's bundle, for reading; it is not evicted meanwhile.

        Args:
            key: Which.
            as_used: Whether this counts as a use.

        Raises:
            KeyError: No such key.
            CacheEntryLost: Its file is gone, or damaged and now in quarantine; the index is put right.
        """
        path = self._path(key) if isinstance(key, str) else self._entries
        try:
            with self._open(key) as bundle:
                if as_used:
                    # A full disk, or a writer that takes long, must not keep anybody from reading.
                    with suppress(OSError, DatabaseError):
                        self.index.touch(key, self._clock())
                yield bundle
        except KeyError:
            self._count("misses")
            raise
        except DamagedFile as error:
            with self.alone():
                # Somebody may have stored it again while this was reading the old file.
                if self._read_entry(path, verify=True) is None:
                    self.index.remove([key])
            self._count("misses")
            raise CacheEntryLost(f"entry {key}: {error}; the damaged file is in {self._quarantine}") from error
        if as_used:
            self._count("hits")

    def _open(self, key: str) -> Bundle:
        entry = self.index.get(key, self._clock()) if isinstance(key, str) else None
        if entry is None:
            raise unknown(key)
        with suppress(FileNotFoundError):
            return Bundle.open(self._path(key))
        # It was evicted just now, or is not in place yet, or somebody deleted its file.
        with self.alone():
            if self.index.get(key, self._clock()) is None:
                raise unknown(key)
            with suppress(FileNotFoundError):
                return Bundle.open(self._path(key))
            self.index.remove([key])
        raise CacheEntryLost(f"the file of entry {key} ({entry.data_id}) is gone from {self._entries}")

    def depart(self, plan: Sequence[Departure]) -> list[Departure]:
        """Remove entries; gives those that went. A file that cannot be removed stays, with a warning. Call it `alone`."""
        # On a full disk the index cannot say so beforehand; then what a kill leaves half-done shows at the next opening.
        with suppress(OSError):
            self.index.going([item.entry.key for item in plan])
        gone = []
        for item in plan:
            try:
                self._path(item.entry.key).unlink(missing_ok=True)
                gone.append(item)
            except OSError as error:
                logger.warning("entry %s cannot be removed: %s", item.entry.key, error)
                self.index.put(item.entry, settled=True)
        self.index.remove([item.entry.key for item in gone])
        return gone

    def empty_quarantine(self) -> None:
        """Remove the damaged files that were set aside."""
        shutil.rmtree(self._quarantine, ignore_errors=True)

    def is_read(self, entry: Entry) -> bool:
        """Whether somebody reads it just now."""
        return is_being_read(self._path(entry.key))

    def size(self) -> tuple[int, int]:
        """Entries and their bytes; of those that are coming or going, what the disk says now."""
        entries, size = self.index.settled_size()
        moving = [self._size_of(entry.key) for entry in self.index.unsettled(self._clock())]
        return entries + sum(map(bool, moving)), size + sum(moving)

    def _make_room(self, new: Entry) -> None:
        others = [entry for entry in self.index.all(self._clock()) if entry.key != new.key]
        too_much = self.size()[1] + new.size - self.limit - self._size_of(new.key)
        for departure in candidates(others):
            if too_much <= 0:
                return
            if not self.is_read(departure.entry) and self.depart([departure]):
                too_much -= departure.entry.size
                self.counts["evictions"] += 1
                get_metrics_collector().increment("rayzyme_data_evictions_total")
        if too_much > 0:
            logger.warning(
                "%s is %d bytes over its limit of %d: everything else in it is being read, pinned or cannot be removed",
                self.folder, too_much, self.limit,
            )  # fmt: skip

    def _settle(self) -> None:
        """Remove what dead writers left, and make the index say what is on the disk."""
        for folder in self._entries.glob("??"):
            remove_leftovers(folder)
        now = self._clock()
        known = {entry.key for entry in self.index.all(now)}
        found = {path.name for path in self._files()}
        doubtful = (known ^ found) | {entry.key for entry in self.index.unsettled(now)}
        for key in sorted(doubtful):
            entry = self._read_entry(self._path(key))
            if entry is None:
                self.index.remove([key])
            else:
                self.index.put(entry, settled=True)

    def _read_entries(self) -> list[Entry]:
        """The entries as their own files tell: what a new index is made from."""
        return [entry for path in self._files() if (entry := self._read_entry(path)) is not None]

    def _read_entry(self, path: Path, *, verify: bool = False) -> Entry | None:
        """What a file says of itself; a damaged one goes into quarantine. `verify` reads every byte for that."""
        try:
            state = path.stat()
            with Bundle.open(path) as bundle:
                if verify:
                    bundle.verify()
                told = bundle.attributes
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            logger.warning("%s", error)
            self._set_aside(path)
            return None
        stored_at = datetime.fromisoformat(told["timestamp"]).timestamp()
        return Entry(
            path.name, told["kind"], from_json(told["data_id"]), from_json(told["metadata"]), state.st_size, stored_at,
            state.st_mtime, told["intermediate"],
        )  # fmt: skip

    def _set_aside(self, path: Path) -> None:
        self._quarantine.mkdir(exist_ok=True)
        try:
            path.replace(self._quarantine / f"{path.name}.{time.time_ns()}")
        except FileNotFoundError:
            return
        get_metrics_collector().increment("rayzyme_data_corrupt_total")
        kept = sorted(self._quarantine.iterdir(), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in kept[_QUARANTINED:]:
            old.unlink(missing_ok=True)

    def _size_of(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return 0

    def _files(self) -> Iterator[Path]:
        return self._entries.glob("??/" + 64 * "[0-9a-f]")

    def _path(self, key: str) -> Path:
        return self._entries / key[:2] / key

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        get_metrics_collector().increment(f"rayzyme_data_{what}_total")


class _LimitedSink:
    """Counts what is written, and stops what cannot fit before it has filled the disk."""

    def __init__(self, sink: IO[bytes], limit: int, data_id: str) -> None:
        self._sink = sink
        self._limit = limit
        self._data_id = data_id
        self.written = 0

    def write(self, content: Any) -> int:
        self.written += len(content)
        if self.written > self._limit:
            raise CacheTooSmall(
                f"{self._data_id[:80]!r} takes more than the store's whole limit of {self._limit:,} bytes; raise "
                "max_cache_size"
            )
        return self._sink.write(content)


def unknown(key: object) -> KeyError:
    """What a key that is not there raises."""
    return KeyError(f"no entry has the key {key!r}; see list_entries()")
