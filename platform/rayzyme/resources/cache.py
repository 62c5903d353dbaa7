"""A cache of two levels: memory above disk. What is asked for again costs nothing, also after a restart.

Values are what `rayzyme.storage` can store: plain values, NumPy arrays, tensors. Nothing is pickled. Every entry on disk
carries digests, its key and when it expires; one that is torn, altered or misplaced is a miss.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rayzyme import checks
from rayzyme.errors import MissingExtra, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.resources.memory_level import Held, MemoryLevel, handed_out, kept, sealed, size_of

_MB = 2**20
_MISSING: Final = object()

logger = logging.getLogger(__name__)


class TwoLevelCache:
    """Values by text keys; threads may share one, and processes a folder.

    What one process sets, deletes or clears, the others see at their next `get`. Both levels forget the longest unused first.
    A value larger than the memory level is on disk only; one larger than the disk level is not kept at all, which `set` says.
    What is read from memory counts as used on disk too: at once for what this object evicts, within a minute for others.

    Arrays come back as views of memory that all who ask share and that NumPy makes writeable for nobody; containers and
    tensors are everybody's own. So nobody can change what others get.
    """

    def __init__(
        self,
        memory_size_mb: float = 512,
        disk_size_mb: float = 10240,
        cache_dir: str | Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open, or make, a cache.

        Args:
            memory_size_mb: Size of the memory level in MB (2^20 bytes).
            disk_size_mb: Size of the disk level in MB.
            cache_dir: Folder of the disk level; None is `$RAYZYME_HOME/cache`.
            clock: Gives seconds, the same for all processes and after a restart.

        Raises:
            ValidationError: Names the argument that cannot be used.
            DatabaseError: The disk level's index cannot be opened.
        """
        memory_bytes = int(checks.positive_number("memory_size_mb", memory_size_mb) * _MB)
        disk_bytes = int(checks.positive_number("disk_size_mb", disk_size_mb) * _MB)
        if cache_dir is None:
            from rayzyme.settings import get_settings

            cache_dir = get_settings().cache
        folder = checks.folder_path("cache_dir", cache_dir)
        if not callable(clock):
            raise ValidationError(f"clock must be a function, not {clock!r}")
        from rayzyme.resources.disk_level import DiskLevel

        self._clock = clock
        self._memory = MemoryLevel(memory_bytes)
        self._disk = DiskLevel(folder, disk_bytes)
        self._counts = dict.fromkeys(("memory_hits", "disk_hits", "misses", "corrupt"), 0)
        self._counting = threading.Lock()
        self._is_closed = False

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`; a stored None, 0 or "" is a value like others.

        Raises:
            ValidationError: The key is no text.
            ValueError: The cache is closed.
        """
        value = self._find(self._checked(key))
        if value is _MISSING:
            self._count("misses")
            get_metrics_collector().increment("rayzyme_cache_misses_total")
            return default
        return value

    def set(self, key: str, value: Any, ttl: float | None = None) -> bool:
        """Store a value, in place of what was there.

        Args:
            key: Any text.
            value: Anything of the types in `rayzyme.storage.values`; it is copied, except arrays over `bytes`.
            ttl: Seconds after which it is gone; None never.

        Returns:
            Whether it is on disk now. False where it is larger than the disk level, which is logged, or the disk failed; in
            the first case it is not in memory either.

        Raises:
            TypeError: It holds something that cannot be stored; names its place. What was there stays.
            ValidationError: The key is no text, or `ttl` not above 0.
            ValueError: The cache is closed.
        """
        return self._store(self._checked(key), value, ttl)[1]

    def get_or_compute(self, key: str, compute: Callable[[], Any], ttl: float | None = None) -> Any:
        """The value of a key; where there is none it is computed and stored, once over all threads and processes.

        Others wait meanwhile. If the one that computes raises or dies, the next in line computes. Threads of one process that
        need each other's keys are told so; processes that do wait for each other until one is ended, so let all ask in one
        order.

        Args:
            key: As in `set`.
            compute: Gives the value; it may ask the cache for other keys.
            ttl: As in `set`.

        Raises:
            RuntimeError: `compute` asks for the same key, or for one that another thread computes which waits for this one.
        """
        value = self.get(key, _MISSING)
        if value is not _MISSING:
            return value
        with self._disk.sole_computer(key):
            value = self._find(key)
            if value is _MISSING:
                value = self._store(key, compute(), ttl)[0]
            return value

    def delete(self, key: str) -> bool:
        """Forget a key; whether there was a value."""
        digest = _digest(self._checked(key))
        was_in_memory = self._memory.remove(key)
        return self._disk.delete(digest) or was_in_memory

    def clear(self) -> None:
        """Forget everything, in all processes."""
        self._require_open()
        self._disk.clear()
        self._memory.clear()

    def cleanup_expired(self) -> int:
        """Remove what has expired from both levels; gives how many entries that were."""
        self._require_open()
        now = self._clock()
        return len(self._disk.remove_expired(now) | self._memory.remove_expired(now))

    def get_stats(self) -> dict[str, dict[str, float]]:
        """`l1_memory` and `l2_disk`: entries, size_mb, max_size_mb, and what happened since this object was made."""
        self._require_open()
        with self._counting:
            counts = dict(self._counts)
        entries, size = self._disk.usage()
        return {
            "l1_memory": {
                "entries": len(self._memory), "size_mb": self._memory.size / _MB,
                "max_size_mb": self._memory.capacity / _MB, "hits": counts["memory_hits"],
                "misses": counts["disk_hits"] + counts["misses"], "evictions": self._memory.evictions,
            },
            "l2_disk": {
                "entries": entries, "size_mb": size / _MB, "max_size_mb": self._disk.capacity / _MB,
                "hits": counts["disk_hits"], "misses": counts["misses"], "corrupt": counts["corrupt"],
                "evictions": self._disk.evictions, "failures": self._disk.failures,
            },
        }  # fmt: skip

    def close(self) -> None:
        """Let go of memory and files; what is on disk stays. Closing again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._memory.clear()
            self._disk.close()

    def __enter__(self) -> TwoLevelCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, key: str) -> Any:
        """The value, counted as a hit of its level, or `_MISSING`."""
        held = self._memory.get(key)
        if held is not None:
            if held.stamp == self._disk.stamp_of(held.digest) and not self._is_over(held.expires_at):
                self._count("memory_hits")
                get_metrics_collector().increment("rayzyme_cache_hits_total", tags={"level": "memory"})
                self._disk.note_use(held.digest)
                return handed_out(held.value)
            self._memory.remove(key, held)
        held = self._load(key)
        if held is None or self._is_over(held.expires_at):
            return _MISSING
        self._remember(key, held)
        self._count("disk_hits")
        get_metrics_collector().increment("rayzyme_cache_hits_total", tags={"level": "disk"})
        return handed_out(held.value)

    def _load(self, key: str) -> Held | None:
        from rayzyme.resources.disk_level import UNREADABLE

        digest = _digest(key)
        # Before reading: a change in between must not go unnoticed.
        stamp = self._disk.stamp_of(digest)
        content = self._disk.read(digest)
        if content is None:
            return None
        try:
            if isinstance(content, bytes):
                value, expires_at = _opened(key, content)
                return Held(value, size_of(value), expires_at, stamp, digest)
            reason: object = "it cannot be read"
        except MissingExtra as error:
            logger.warning("an entry of the cache in %s cannot be used here: %s", self._disk.folder, error)
            return None
        except Exception as error:
            # Altered bytes may break any step of reading them.
            reason = error
        if self._disk.discard(digest, content if isinstance(content, bytes) else UNREADABLE):
            self._count("corrupt")
            get_metrics_collector().increment("rayzyme_cache_corrupt_total")
            logger.warning("removed a damaged entry from the cache in %s: %s", self._disk.folder, reason)
        return None

    def _store(self, key: str, value: Any, ttl: float | None) -> tuple[Any, bool]:
        """What `get` would give, and whether it is on disk."""
        expires_at = None if ttl is None else self._clock() + checks.positive_number("ttl", ttl)
        content = _sealed_bytes(key, value, expires_at)
        value = kept(value)
        digest = _digest(key)
        self._memory.remove(key)
        on_disk, stamp = self._disk.write(digest, content, expires_at)
        if len(content) > self._disk.capacity:
            logger.warning(
                "an entry of %.1f MB is larger than the whole cache in %s (%.1f MB) and was not kept; raise disk_size_mb",
                len(content) / _MB, self._disk.folder, self._disk.capacity / _MB,
            )  # fmt: skip
        else:
            self._remember(key, Held(value, size_of(value), expires_at, stamp, digest))
        return handed_out(value), on_disk

    def _remember(self, key: str, held: Held) -> None:
        # Without a stamp nobody could say later whether it is still the newest.
        if held.stamp is not None:
            self._memory.put(key, held)

    def _is_over(self, expires_at: float | None) -> bool:
        return expires_at is not None and expires_at <= self._clock()

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    def _checked(self, key: str) -> str:
        self._require_open()
        if type(key) is not str:
            raise ValidationError(f"key must be a text, not {key!r}")
        return key

    def _require_open(self) -> None:
        if self._is_closed:
            raise ValueError("the cache is closed; open another TwoLevelCache on its folder")


def _digest(key: str) -> str:
    from rayzyme.resources.disk_level import digest_of

    return digest_of(key)


def _sealed_bytes(key: str, value: Any, expires_at: float | None) -> bytes:
    from rayzyme.storage.bundle import write_bundle
    from rayzyme.storage.values import pack

    sink = io.BytesIO()
    write_bundle(sink, pack(value, "value"), attributes={"key": key, "expires_at": expires_at})
    return sink.getvalue()


def _opened(key: str, content: bytes) -> tuple[Any, float | None]:
    from rayzyme.storage.bundle import Bundle

    with Bundle.of_bytes(content) as bundle:
        if bundle.attributes["key"] != key:
            raise ValueError("it was stored under another key")
        return sealed(bundle.value()), bundle.attributes["expires_at"]
