"""Bytes on disk up to a size, shared by processes: `diskcache`, with its pickles refused and its files written whole.

Whoever changes a key stamps it, in a small file that all processes map into memory. So a value held in memory is known to be
the newest one for the price of reading a number. What memory answers is noted here too, and written down now and then, so
that the disk does not forget what is asked for most.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import diskcache

from rayzyme.errors import DamagedFile, DatabaseError, InsufficientSpace
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.resources.stamps import SLOTS, Stamps, slot_of
from rayzyme.resources.turns import turns
from rayzyme.storage.disk import atomic_write, sole_owner

T = TypeVar("T")

_RAW, _BINARY = 1, 2  # diskcache's modes that are no pickles
_BUSY_SECONDS = 30
_NOTING_SECONDS = 60
_FILE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{28}\.val|\.tmp-[0-9a-f]{32})")
_FAILURES = (sqlite3.Error, diskcache.Timeout, OSError, InsufficientSpace)


class _Unreadable:
    """Stands for an entry that is there and cannot be read."""


UNREADABLE: Final = _Unreadable()

logger = logging.getLogger(__name__)


class DiskLevel:
    """Entries by the digest of their key, the longest unused removed first; threads and processes may share a folder.

    What the disk refuses is logged and counted in `failures`; a cache's owner goes on without it.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        """Open or make a folder, and remove what killed processes left in it.

        Args:
            folder: Files of others in it are left alone.
            capacity: Bytes.

        Raises:
            DatabaseError: The index cannot be opened: the disk is full or read-only, or somebody locks it for long.
        """
        self.folder, self.capacity = folder, capacity
        self.failures = self.evictions = 0
        self._threads: set[int] = set()
        self._uses: dict[str, float] = {}
        self._uses_written_at = time.time()
        self._noting = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "computing").mkdir(exist_ok=True)
        self._stamps = Stamps(folder / "stamps")
        with sole_owner(folder / "opening"):
            try:
                self._store = self._open()
                self.remove_leftovers()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    self._stamps.close()
                    raise DatabaseError(
                        f"the cache in {folder} cannot be opened: {error}; free its disk, or choose another cache_dir"
                    ) from error
                self._start_over(error)

    def stamp_of(self, digest: str) -> int | None:
        """Another whenever the entry may have changed, and sometimes when it did not; None while it is being changed."""
        return self._stamps.read(slot_of(digest))

    def note_use(self, digest: str) -> None:
        """Count an answer from memory as a use of the entry: before this object evicts, on closing, and once a minute."""
        now = time.time()
        with self._noting:
            self._uses[digest] = now
            is_due = not 0 <= now - self._uses_written_at < _NOTING_SECONDS
        if is_due:
            self._write_uses()

    def read(self, digest: str) -> bytes | _Unreadable | None:
        """An entry's bytes, `UNREADABLE`, or None where there is none."""
        return self._trying("read from", lambda: self._content(digest), None)

    def write(self, digest: str, content: bytes, expires_at: float | None) -> tuple[bool, int | None]:
        """Replace an entry; (whether it is kept, the stamp that goes with `content`). If not, nothing is under the digest."""
        with self._changing(slot_of(digest), 1) as stamp:
            is_kept = len(content) <= self.capacity and self._trying(
                "write to", lambda: self._write(digest, content, expires_at), False
            )
            if not is_kept:
                self._trying("delete from", lambda: self._store.delete(digest), False)
        return is_kept, stamp

    def delete(self, digest: str) -> bool:
        """Remove an entry; whether there was one."""
        with self._changing(slot_of(digest), 1):
            return self._trying("delete from", lambda: bool(self._store.delete(digest)), False)

    def discard(self, digest: str, seen: bytes | _Unreadable) -> bool:
        """Remove a bad entry, unless a good one took its place meanwhile; whether it was removed."""

        def compare_and_delete() -> bool:
            with self._store.transact():
                return self._content(digest) == seen and bool(self._store.delete(digest))

        return self._trying("delete from", compare_and_delete, False)

    def remove_expired(self, now: float) -> set[str]:
        """Remove what has expired by `now`, on the cache's clock; gives the digests."""

        def remove() -> set[str]:
            rows = self._query("SELECT key FROM Cache WHERE tag IS NOT NULL AND tag <= ? AND raw", now)
            return {digest for (digest,) in rows if self._store.delete(digest)}

        return self._trying("clean up", remove, set())

    def clear(self) -> None:
        """Remove all entries."""
        with self._changing(0, SLOTS):
            self._trying("clear", self._store.clear, 0)

    def usage(self) -> tuple[int, int]:
        """(entries, bytes on disk)."""
        return self._trying("measure", lambda: (len(self._store), self._store.volume()), (0, 0))

    @contextlib.contextmanager
    def sole_computer(self, key: str) -> Iterator[None]:
        """Hold a key against other threads and processes; the system lets go of it when its holder dies.

        Raises:
            RuntimeError: This thread holds it, or its holder waits for this thread, perhaps through others.
        """
        path = self.folder / "computing" / digest_of(key)
        with turns.awaiting(path, key):
            descriptor = self._trying("lock a key of", lambda: _locked(path, fcntl.LOCK_EX), None)
        try:
            with turns.holding(path):
                yield
        finally:
            if descriptor is not None:
                # Whoever waits for this very file finds it gone, and makes a new one.
                path.unlink(missing_ok=True)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def remove_leftovers(self) -> None:
        """Remove files without a row and locks without a holder; nothing while somebody writes, the next opening comes."""
        with contextlib.suppress(BlockingIOError), self._writing(fcntl.LOCK_EX | fcntl.LOCK_NB):
            known = {name for (name,) in self._query("SELECT filename FROM Cache WHERE filename IS NOT NULL")}
            for path in self.folder.glob("??/??/*"):
                name = path.relative_to(self.folder).as_posix()
                if name not in known and _FILE.fullmatch(name):
                    path.unlink(missing_ok=True)
        for path in (self.folder / "computing").iterdir():
            with contextlib.suppress(BlockingIOError):
                descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def close(self) -> None:
        """Close the connections of all threads; the level must not be used any more."""
        self._write_uses()
        self._store.close()
        del self._store
        self._stamps.close()
        if self._threads - {threading.get_ident()}:
            # Connections of other threads cannot be closed here, and sqlite3's refer to themselves.
            gc.collect()

    def _open(self) -> Any:
        return diskcache.Cache(
            str(self.folder), timeout=_BUSY_SECONDS, disk=PlainDisk, eviction_policy="least-recently-used",
            size_limit=self.capacity, cull_limit=0, statistics=0,
        )  # fmt: skip

    def _content(self, digest: str) -> bytes | _Unreadable | None:
        try:
            content: bytes | None = self._store.get(digest)
        except DamagedFile:
            return UNREADABLE
        # A row whose file is gone.
        return UNREADABLE if content is None and digest in self._store else content

    def _write(self, digest: str, content: bytes, expires_at: float | None) -> bool:
        with self._writing():
            self._store.set(digest, content, tag=expires_at)
        if self._store.volume() > self.capacity:
            self._write_uses()
        while self._store.volume() > self.capacity and self._evict_one_but(digest):
            self.evictions += 1
        return True

    def _write_uses(self) -> None:
        with self._noting:
            uses, self._uses, self._uses_written_at = self._uses, {}, time.time()
        if uses:
            self._trying("note what was used in", lambda: self._store_uses(uses), None)

    def _store_uses(self, uses: dict[str, float]) -> None:
        with contextlib.closing(self._connected()) as connection, connection:
            # A power cut may forget them.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executemany(
                "UPDATE Cache SET access_time = max(access_time, ?) WHERE key = ? AND raw",
                [(used_at, digest) for digest, used_at in uses.items()],
            )

    def _evict_one_but(self, digest: str) -> bool:
        oldest = self._query("SELECT key FROM Cache WHERE key <> ? AND raw ORDER BY access_time LIMIT 1", digest)
        for (key,) in oldest:
            self._store.delete(key)
        return bool(oldest)

    @contextlib.contextmanager
    def _writing(self, operation: int = fcntl.LOCK_SH) -> Iterator[None]:
        """Keep others from taking a file for a leftover that is about to get its row."""
        descriptor = os.open(self.folder / "writers.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _trying(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        self._threads.add(threading.get_ident())
        try:
            return action()
        except _FAILURES as error:
            self.failures += 1
            reason = str(error) or type(error).__name__
            logger.warning("could not %s the cache in %s, going on without it: %s", what, self.folder, reason)
            if _is_damage(error):
                with contextlib.suppress(*_FAILURES), sole_owner(self.folder / "opening"):
                    self._start_over(error)
            return otherwise

    @contextlib.contextmanager
    def _changing(self, first: int, count: int) -> Iterator[int | None]:
        """Change what some stamps stand for, one at a time over all threads and processes; gives their new number."""
        tell = "tell other processes of a change in"
        held = contextlib.ExitStack()
        stamp = self._trying(
            tell, lambda: held.enter_context(self._stamps.renewing(first, count)), self._stamps.read(first)
        )
        try:
            yield stamp
        finally:
            self._trying(tell, held.close, None)

    def _query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(self._connected()) as connection:
            return connection.execute(statement, parameters).fetchall()

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "cache.db", timeout=_BUSY_SECONDS)

    def _start_over(self, error: Exception) -> None:
        """Make a new index in place of a damaged one, unless another process did so."""
        try:
            self._store = self._open()
            if self._query("PRAGMA quick_check(1)") == [("ok",)]:
                return
        except sqlite3.DatabaseError as still:
            if not _is_damage(still):
                raise
        get_metrics_collector().increment("rayzyme_cache_corrupt_total")
        logger.warning("the index of the cache in %s is damaged, so the cache begins anew: %s", self.folder, error)
        for path in self.folder.glob("cache.db*"):
            path.unlink(missing_ok=True)
        self._stamps.renew_all()
        self._store = self._open()
        self.remove_leftovers()


class PlainDisk(diskcache.Disk):  # type: ignore[misc]  # it has no types
    """Stores bytes under text, whole files or nothing, and never makes or reads a pickle."""

    def put(self, key: Any) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError(f"a digest must be text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        if not raw:
            raise DamagedFile("a cache's key is a pickle, which is never read")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        if type(value) is not bytes:
            raise TypeError(f"an entry must be bytes, not {type(value).__name__}")
        if len(value) < self.min_file_size:
            return 0, _RAW, None, sqlite3.Binary(value)
        name, path = self.filename(key, value)
        for attempts_left in reversed(range(10)):
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                atomic_write(Path(path), value)
                break
            except FileNotFoundError:
                # Another process found the folder empty, and removed it.
                if not attempts_left:
                    raise
        return len(value), _BINARY, name, None

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        if mode == _RAW and isinstance(value, (bytes, memoryview)):
            return bytes(value)
        if mode == _BINARY and filename is not None:
            content: bytes = super().fetch(mode, filename, value, False)
            return content
        raise DamagedFile("a cache's entry is no plain bytes; pickles are never read")


def _locked(path: Path, operation: int) -> int:
    """Descriptor of a lock file that surely is the one at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_damage(error: BaseException) -> bool:
    # Its subclasses tell of other things: a locked database, a full disk.
    return type(error) is sqlite3.DatabaseError


def digest_of(key: str) -> str:
    """The name of a key on disk: SHA-256 of its UTF-8, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
