"""The index of a data store: which entries there are, how large, when used, by whom needed. One SQLite file.

It can be lost without harm: the store makes it again from the entries. Rows of entries that are coming or going say so,
so that whoever opens it after a kill looks at the disk for exactly those.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._identity = None

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
        with self._transaction() as run:
            count, size = run("SELECT count(*), coalesce(sum(size), 0) FROM entry WHERE settled").fetchone()
        return count, size

    def put(self, entry: Entry, *, settled: bool) -> None:
        """Note an entry; not yet settled while its file is being put in place."""
        with self._transaction() as run:
            _insert(run, entry, settled)

    def going(self, keys: Sequence[str]) -> None:
        """Note that the files of entries are about to be removed."""
        with self._transaction() as run:
            for key in keys:
                run("UPDATE entry SET settled = 0 WHERE key = ?", (key,))

    def remove(self, keys: Sequence[str]) -> None:
        """Forget entries."""
        with self._transaction() as run:
            for key in keys:
                run("DELETE FROM entry WHERE key = ?", (key,))
                run("DELETE FROM pin WHERE key = ?", (key,))

    def touch(self, key: str, now: float) -> None:
        """Note that an entry was used."""
        with self._transaction() as run:
            run("UPDATE entry SET last_used = ? WHERE key = ?", (now, key))

    def pin(self, key: str, owner: str, expires_at: float) -> None:
        """Note that `owner` needs an entry until then; again to renew it."""
        with self._transaction() as run:
            run("INSERT OR REPLACE INTO pin VALUES (?, ?, ?)", (key, owner, expires_at))

    def unpin(self, key: str, owner: str) -> bool:
        """Note that `owner` needs it no more; whether it had been noted."""
        with self._transaction() as run:
            return bool(run("DELETE FROM pin WHERE key = ? AND owner = ?", (key, owner)).rowcount)

    def _entries(self, clause: str, values: tuple[Any, ...]) -> list[Entry]:
        pinned = "EXISTS (SELECT 1 FROM pin WHERE pin.key = entry.key AND expires_at > ?)"
        columns = "key, kind, data_id, metadata, size, stored_at, last_used, intermediate"
        with self._transaction() as run:
            rows = run(f"SELECT {columns}, {pinned} FROM entry {clause}", values).fetchall()
        return [
            Entry(
                key, kind, json.loads(data_id), json.loads(metadata), size, stored, used, bool(intermediate), bool(held)
            )
            for key, kind, data_id, metadata, size, stored, used, intermediate, held in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        with self._lock:
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection.execute
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        """The connection; a new one where the file was deleted or replaced, or this process was forked."""
        if self._connection is not None and self._identity == self._found():
            return self._connection
        if self._connection is not None and self._identity is not None and self._identity[0] == os.getpid():
            self._connection.close()
        try:
            self._connection = self._connect()
        except sqlite3.DatabaseError:
            # Set aside rather than deleted: somebody may want to see what happened to it.
            for path in (self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))):
                if path.exists():
                    path.replace(path.with_name(path.name + ".damaged"))
            self._connection = self._connect()
        self._identity = self._found()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "wal_autocheckpoint = 100"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN IMMEDIATE")
            is_new = not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone()
            for statement in _TABLES.split(";")[:-1]:
                connection.execute(statement)
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the index is damaged")
            if is_new:
                for entry in self._rebuild():
                    _insert(connection.execute, entry, settled=True)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _found(self) -> tuple[int, int] | None:
        """Which file this is, to which process."""
        try:
            return os.getpid(), self._path.stat().st_ino
        except FileNotFoundError:
            return None


def _insert(run: Callable[..., sqlite3.Cursor], entry: Entry, settled: bool) -> None:
    # JSON's escapes also hold what SQLite's text cannot, such as half of a surrogate pair.
    told = (entry.key, entry.kind, json.dumps(entry.data_id), json.dumps(entry.metadata), entry.size)
    run(
        "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*told, entry.stored_at, entry.last_used, entry.intermediate, settled),
    )
