"""The index of a data store: which entries there are, how large, when used, by whom needed. One SQLite file.

It can be lost without harm: the store makes it again from the entries. Rows of entries that are coming or going say so,
so that whoever opens it after a kill looks at the disk for exactly those.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rayzyme.errors import DatabaseError
from rayzyme.storage.disk import full_database_as_os_error, sole_owner
from rayzyme.storage.values import from_json, to_json

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 30
_TABLES = """
CREATE TABLE IF NOT EXISTS entry (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, data_id TEXT NOT NULL, metadata TEXT NOT NULL, size INTEGER NOT NULL,
    stored_at REAL NOT NULL, last_used REAL NOT NULL, intermediate INTEGER NOT NULL, settled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pin (
    key TEXT NOT NULL, owner TEXT NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (key, owner)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of an entry.

    Attributes:
        key: SHA-256 over kind, id and metadata, hexadecimal.
        kind: "structure" or "trajectory".
        data_id: The user's id.
        metadata: The user's metadata.
        size: Bytes of its file.
        stored_at: Seconds since the epoch.
        last_used: Seconds since the epoch.
        intermediate: Whether it may go as soon as nobody needs it.
        pinned: Whether somebody needs it.
    """

    key: str
    kind: str
    data_id: str
    metadata: dict[str, Any]
    size: int
    stored_at: float
    last_used: float
    intermediate: bool
    pinned: bool = False


class DataIndex:
    """The index in a file; safe to share between threads and processes, and after a fork."""

    def __init__(self, path: Path, rebuild: Callable[[], Sequence[Entry]]) -> None:
        """Open it, or make it.

        Args:
            path: Of the SQLite file; its folder exists.
            rebuild: Gives the entries on disk, for an index that is new or damaged.
        """
        self._path = path
        self._rebuild = rebuild
        self._is_closed = False
        self.forget_connection()
        _all_indexes.add(self)

    def forget_connection(self) -> None:
        """Begin without one: in a process just forked, where the parent's connection and locks are not ours to use."""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None

    def hold(self) -> None:
        """Keep every thread out, until `let_go`."""
        self._lock.acquire()

    def let_go(self) -> None:
        """Let threads in again."""
        self._lock.release()

    def close(self) -> None:
        """Close the file; whatever is asked afterwards is refused."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def get(self, key: str, now: float) -> Entry | None:
        """The entry of a key."""
        rows = self._entries("WHERE entry.key = ?", (now, key))
        return rows[0] if rows else None

    def all(self, now: float) -> list[Entry]:
        """All entries, the longest unused first."""
        return self._entries("ORDER BY last_used, entry.key", (now,))

    def unsettled(self, now: float) -> list[Entry]:
        """Entries that were coming or going when their writer last told."""
        return self._entries("WHERE NOT settled", (now,))

    def settled_size(self) -> tuple[int, int]:
        """Entries that are neither coming nor going: how many, and their bytes."""
        count, size = self._read("SELECT count(*), coalesce(sum(size), 0) FROM entry WHERE settled")[0]
        return count, size

    def put(self, entry: Entry, *, settled: bool) -> None:
        """Note an entry; not yet settled while its file is being put in place."""
        # JSON's escapes also hold what SQLite's text cannot, such as half of a surrogate pair.
        told = (
            entry.key,
            entry.kind,
            to_json(entry.data_id, "data_id"),
            to_json(entry.metadata, "metadata"),
            entry.size,
        )
        row = (*told, entry.stored_at, entry.last_used, entry.intermediate, settled)
        self._write([("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)])

    def going(self, keys: Sequence[str]) -> None:
        """Note that the files of entries are about to be removed."""
        self._write([("UPDATE entry SET settled = 0 WHERE key = ?", (key,)) for key in keys])

    def remove(self, keys: Sequence[str]) -> None:
        """Forget entries."""
        tables = ("entry", "pin")
        self._write([(f"DELETE FROM {table} WHERE key = ?", (key,)) for key in keys for table in tables])

    def touch(self, key: str, now: float) -> None:
        """Note that an entry was used."""
        self._write([("UPDATE entry SET last_used = ? WHERE key = ?", (now, key))])

    def pin(self, key: str, owner: str, expires_at: float) -> None:
        """Note that `owner` needs an entry until then; again to renew it."""
        self._write([("INSERT OR REPLACE INTO pin VALUES (?, ?, ?)", (key, owner, expires_at))])

    def unpin(self, key: str, owner: str) -> bool:
        """Note that `owner` needs it no more; whether it had been noted."""
        return bool(self._write([("DELETE FROM pin WHERE key = ? AND owner = ?", (key, owner))]))

    def _entries(self, clause: str, values: tuple[Any, ...]) -> list[Entry]:
        pinned = "EXISTS (SELECT 1 FROM pin WHERE pin.key = entry.key AND expires_at > ?)"
        columns = "key, kind, data_id, metadata, size, stored_at, last_used, intermediate"
        return [
            Entry(
                key, kind, from_json(data_id), from_json(metadata), size, stored, used, bool(intermediate), bool(held)
            )
            for key, kind, data_id, metadata, size, stored, used, intermediate, held in self._read(
                f"SELECT {columns}, {pinned} FROM entry {clause}", values
            )
        ]

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._mending(lambda connection: connection.execute(statement, values).fetchall())

    def _write(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> int:
        """All or none; gives how many rows that changed."""

        def run(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            try:
                changed = sum(connection.execute(statement, values).rowcount for statement, values in statements)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return changed

        return self._mending(run)

    def _mending(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do something with the connection; a damaged index is made again, once, from the entries.

        Raises:
            OSError: ENOSPC, the disk is full.
            DatabaseError: The index is locked for too long, or cannot be opened.
            ValueError: It was closed.
        """
        with self._lock, full_database_as_os_error():
            if self._is_closed:
                raise ValueError("this data handler is closed; open another one on its folder")
            try:
                return self._trying(work)
            except sqlite3.OperationalError as error:
                if "full" in str(error):
                    raise
                raise DatabaseError(f"the index {self._path} cannot be used now: {error}; try again") from error

    def _trying(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            return work(self._connected())
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            logger.warning("the index %s is damaged and made again from the entries: %s", self._path, error)
        self._set_aside()
        return work(self._connected())

    def _connected(self) -> sqlite3.Connection:
        """The connection; a new one where the file was deleted or replaced."""
        if self._connection is None or self._inode != self._inode_on_disk():
            self._disconnect()
            self._connection = self._connect()
            self._inode = self._inode_on_disk()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 100"):
                connection.execute(f"PRAGMA {pragma}")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("it does not pass SQLite's own check")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'pin'").fetchone():
                self._fill(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _fill(self, connection: sqlite3.Connection) -> None:
        """Make the tables, with what the entries themselves tell."""
        rows = [
            (entry, to_json(entry.data_id, "data_id"), to_json(entry.metadata, "metadata")) for entry in self._rebuild()
        ]
        connection.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.split(";")[:-1]:
            connection.execute(statement)
        connection.executemany(
            "INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            [
                (
                    entry.key,
                    entry.kind,
                    data_id,
                    metadata,
                    entry.size,
                    entry.stored_at,
                    entry.last_used,
                    entry.intermediate,
                )
                for entry, data_id, metadata in rows
            ],
        )
        connection.execute("COMMIT")

    def _set_aside(self) -> None:
        """Move the damaged file away; somebody may want to see what happened to it."""
        damaged = self._inode or self._inode_on_disk()
        self._disconnect()
        with sole_owner(self._path):
            # Another process may have made a new one meanwhile.
            if damaged is not None and self._inode_on_disk() == damaged:
                for ending in ("", "-wal", "-shm"):
                    path = self._path.with_name(self._path.name + ending)
                    if path.exists():
                        path.replace(path.with_name(path.name + ".damaged"))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._inode = None

    def _inode_on_disk(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # Its subclasses tell of other things, a lock or a full disk; a file that was emptied has no tables.
    return type(error) is sqlite3.DatabaseError or "no such table" in str(error)


_all_indexes: weakref.WeakSet[DataIndex] = weakref.WeakSet()


def _before_fork() -> None:
    # SQLite's own locks, which a child would inherit for ever, are free while no thread is inside of it.
    _held[:] = list(_all_indexes)
    for index in _held:
        index.hold()


def _in_parent() -> None:
    for index in _held:
        index.let_go()
    _held.clear()


def _in_child() -> None:
    for index in _held:
        index.forget_connection()
    _held.clear()


_held: list[DataIndex] = []
os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
