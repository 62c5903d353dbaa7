"""The embedding shard: a slice of a screening set, resident on one device, that answers exact top-k queries for ever.

Its constructor only notes what to load; loading is the first work of its thread, so an error in it reaches every caller as
itself, and after a crash Ray runs the constructor again and the shard rebuilds itself from the file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayzyme.errors import InsufficientSpace, InvalidInput
from rayzyme.models.devices import resolve_device
from rayzyme.monitoring import get_metrics_collector, log_context
from rayzyme.resources import available_memory
from rayzyme.screening import ExactIndex, ScreeningSet
from rayzyme.screening.answer import QUERY_COLUMN, SCORE_COLUMN
from rayzyme.screening.filters import matching_rows
from rayzyme.settings import Settings, get_settings
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.gpu_memory import lease_gpu_memory
from rayzyme_actors.lanes import Lane, LaneExecutor, Steps
from rayzyme_actors.metrics import noting_wait

logger = logging.getLogger(__name__)

_ONLINE_TOGETHER = 64
_RANKED_TOGETHER = 16
_MANY_HITS = 1000
_FILTERS_KEPT = 32
# How long to wait for more requests, in times of the scan before.
_PATIENCE = 0.5
_WAITED = b"rayzyme:waited_s"


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    queries: NDArray[np.float32]
    k: int
    filters: str
    answer: asyncio.Future[pa.Table]
    asked_at: float

    @property
    def likeness(self) -> tuple[str, bool]:
        """What requests that are searched for together have in common; nobody's few hits are to wait for another's thousands."""
        return self.filters, self.k > _MANY_HITS


class EmbeddingShard:
    """Rows `start` to `stop` of a screening set on one device."""

    def __init__(
        self,
        path: str,
        digest: str,
        start: int,
        stop: int,
        device: str,
        threads: int,
        reserve_ratio: float,
        settings: Settings | None = None,
        gpu_memory_mb: int = 0,
    ) -> None:
        """Begin to load.

        Args:
            path: File of the screening set, readable on this node.
            digest: The set's digest; another set under the same path is refused.
            start: First row.
            stop: One past the last row.
            device: "auto", "cpu" or "cuda".
            threads: CPU threads to compute with.
            reserve_ratio: Share of the available memory to leave alone, 0 to 1.
            settings: Of the program that starts the shard; None takes those of this process.
            gpu_memory_mb: MB (2^20 bytes) to lease on the GPU that Ray gives; 0 on a CPU.
        """
        set_up_actor(settings)
        self._gpu_memory_mb = gpu_memory_mb
        self._path, self._digest, self._start, self._stop = path, digest, start, stop
        self._threads, self._reserve_ratio = threads, reserve_ratio
        self._rows_admitted = lru_cache(maxsize=_FILTERS_KEPT)(self._find_rows)
        self._pending: deque[_Request] = deque()
        self._arrival = threading.Condition()
        self._together, self._scan_s, self._answered_at = 0, 0.0, float("-inf")
        self._most_together = self._dropped = 0
        self._executor = LaneExecutor("shard", lambda: torch.set_num_threads(threads))
        self._loaded = self._executor.submit(lambda: self._load(device), "online")

    async def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        filters: Mapping[str, Any] | None = None,
        lane: Lane = "online",
        log_fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> pa.Table:
        """The k best proteins of this slice.

        Args:
            queries: float32 (q, d), unit rows.
            k: Hits per query; fewer come where the slice, or what the filter admits of it, is smaller.
            filters: As in `rayzyme.screening.filters`.
            lane: "online" requests go first and are searched together; "batch" goes in steps.
            log_fields: Whose request it is, for the lines that are logged here.

        Returns:
            Columns QUERY_COLUMN (int32), SCORE_COLUMN (float32), `protein_id` and metadata; best first for each query. Its
            schema tells how long the request waited, see `waited_s`.
        """
        await self._ready()
        with log_context(**log_fields), get_metrics_collector().timed("rayzyme_search_seconds", tags={"lane": lane}):
            logger.debug("%d queries for %d hits, %s", len(queries), k, lane)
            asked_at = time.perf_counter()
            # As text, for to Python 1, 1.0 and true are the same.
            wanted = "" if not filters else json.dumps(filters, sort_keys=True, default=_as_json)
            if lane == "batch":
                steps = partial(self._search_alone, queries, k, wanted, asked_at)
                return await asyncio.wrap_future(self._submit(steps, "batch"))
            request = _Request(queries, k, wanted, asyncio.get_running_loop().create_future(), asked_at)
            with self._arrival:
                self._pending.append(request)
                self._arrival.notify()
            # Not awaited: it also searches for others, and must go on when this caller hangs up.
            self._submit(self._search_pending, "online")
            return await request.answer

    async def count_better(
        self, queries: NDArray[np.float32], scores: list[NDArray[np.float32]], protein_ids: list[list[str]]
    ) -> list[NDArray[np.int64]]:
        """How many rows of this slice rank before given proteins: what full-ranking evaluation sums over shards.

        Args:
            queries: float32 (q, d).
            scores: For each query the scores (a,) of its proteins.
            protein_ids: For each query the ids of the same proteins.

        Returns:
            For each query int64 (a,): rows of higher score, or of equal score and smaller id.
        """
        await self._ready()
        future = self._submit(lambda: self._count_better(queries, scores, protein_ids), "batch")
        return await asyncio.wrap_future(future)

    async def scores_of(self, queries: NDArray[np.float32], protein_ids: list[list[str]]) -> list[dict[str, float]]:
        """For each query the exact scores of those of its proteins that this slice holds, by id."""
        await self._ready()
        future = self._submit(lambda: self._scores_of(queries, protein_ids), "batch")
        return await asyncio.wrap_future(future)

    async def describe(self) -> dict[str, Any]:
        """What this shard is and holds; sizes in bytes, times in seconds."""
        await self._ready()
        return {
            "pid": os.getpid(), "path": self._path,
            "start": self._start, "stop": self._stop, "device": self._device, "threads": self._threads,
            "scan_type": self._index.scan_type, "bytes": self._index.nbytes,
            "longest_batch_step": self._executor.longest_batch_step, "waiting": self._executor.waiting(),
            "most_together": self._most_together, "dropped": self._dropped,
        }  # fmt: skip

    def _submit(self, start: Callable[[], Steps], lane: Lane) -> Future[Any]:
        return self._executor.submit(noting_wait(start, "embedding_shard", lane), lane)

    async def _ready(self) -> None:
        # Shielded: a caller who hangs up must not cancel the loading for all.
        await asyncio.shield(asyncio.wrap_future(self._loaded))

    def _load(self, device: str) -> Steps:
        yield from ()
        if self._gpu_memory_mb:
            self._lease = lease_gpu_memory("shard", self._gpu_memory_mb, get_settings())
        self._device = resolve_device(device)
        opened = ScreeningSet.open(self._path)
        if opened.digest != self._digest:
            raise InvalidInput(
                f"{self._path} is not the screening set that this shard was started for any more (digest {opened.digest[:12]} "
                f"instead of {self._digest[:12]}); run the command again"
            )
        rows = opened.tensor(self._start, self._stop)
        self._require_memory(rows)
        self._proteins = opened.proteins.slice(self._start, self._stop - self._start)
        self._ids: list[str] = self._proteins["protein_id"].to_pylist()
        self._index = ExactIndex(rows, self._ids, device=self._device)
        logger.info("rows %d to %d of %s are on %s", self._start, self._stop, self._path, self._device)

    def _require_memory(self, rows: torch.Tensor) -> None:
        needed = rows.nbytes + rows.numel() * 2
        if self._device.startswith("cuda"):
            free, place = torch.cuda.mem_get_info()[0], f"the GPU of {self._device}"
        else:
            free, place = available_memory(), "this node"
        usable = int(free * (1 - self._reserve_ratio))
        if needed > usable:
            raise InsufficientSpace(
                f"rows {self._start} to {self._stop} of {Path(self._path).name} need {needed / 1e6:.0f} MB; {place} has "
                f"{usable / 1e6:.0f} MB to give ({free / 1e6:.0f} MB free, {self._reserve_ratio:.0%} kept in reserve): use more "
                f"nodes, store the set as bfloat16, or lower resources.memory.reserve_ratio"
            )

    def _search_alone(self, queries: NDArray[np.float32], k: int, filters: str, asked_at: float) -> Steps:
        waited = time.perf_counter() - asked_at
        hits = yield from self._search(queries, k, filters)
        return _with_waiting(hits, waited)

    def _search(self, queries: NDArray[np.float32], k: int, filters: str) -> Steps:
        admitted = self._rows_admitted(filters) if filters else None
        scores, rows = yield from self._index.search_in_steps(queries, k, admitted)
        return self._hits(scores, rows)

    def _search_pending(self) -> Steps:
        """Search for all online requests that wait, those alike in one scan: eight queries cost little more than one."""
        self._gather()
        metrics = get_metrics_collector()
        waiting: list[_Request] = []
        while self._pending:
            request = self._pending.popleft()
            # Whoever has hung up is not searched for.
            if request.answer.done():
                self._dropped += 1
                metrics.increment("rayzyme_online_dropped_total")
            else:
                waiting.append(request)
        while waiting:
            likeness = waiting[0].likeness
            alike = [request for request in waiting if request.likeness == likeness][:_ONLINE_TOGETHER]
            waiting = [request for request in waiting if request not in alike]
            metrics.record("rayzyme_online_batch_size", len(alike))
            self._together, begin = len(alike), time.perf_counter()
            self._most_together = max(self._most_together, self._together)
            try:
                queries = np.concatenate([request.queries for request in alike])
                hits = yield from self._search(queries, max(request.k for request in alike), likeness[0])
                firsts = np.cumsum([0, *(len(request.queries) for request in alike)])
                outcomes: list[Any] = [
                    _with_waiting(_part(hits, first, len(request.queries), request.k), begin - request.asked_at)
                    for first, request in zip(firsts, alike, strict=False)
                ]
            except Exception as error:
                outcomes = [error] * len(alike)
            self._answered_at = time.perf_counter()
            self._scan_s = self._answered_at - begin
            for request, outcome in zip(alike, outcomes, strict=True):
                _settle(request.answer, outcome)

    def _gather(self) -> None:
        """Those who were answered together ask again together: a scan for all of them is worth waiting for a part of a scan.

        Nobody waits who asks alone, or after a pause.
        """
        left = self._answered_at + _PATIENCE * self._scan_s - time.perf_counter()
        with self._arrival:
            self._arrival.wait_for(lambda: len(self._pending) >= self._together, max(0.0, left))

    def _find_rows(self, filters: str) -> NDArray[np.int64]:
        return matching_rows(self._proteins, json.loads(filters))

    def _hits(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> pa.Table:
        queries, k = rows.shape
        taken = self._proteins.take(pa.array(rows.reshape(-1)))
        numbers = pa.array(np.repeat(np.arange(queries, dtype=np.int32), k))
        return taken.add_column(0, SCORE_COLUMN, pa.array(scores.reshape(-1))).add_column(0, QUERY_COLUMN, numbers)

    def _count_better(
        self, queries: NDArray[np.float32], scores: list[NDArray[np.float32]], protein_ids: list[list[str]]
    ) -> Steps:
        ids = np.array(self._ids, dtype=object)
        counts = []
        for first in range(0, len(queries), _RANKED_TOGETHER):
            group = slice(first, first + _RANKED_TOGETHER)
            lines = yield from self._index.scores_in_steps(queries[group])
            for line, own_scores, own_ids in zip(lines, scores[group], protein_ids[group], strict=True):
                better = [
                    np.count_nonzero(line > score) + np.count_nonzero(ids[line == score] < protein_id)
                    for score, protein_id in zip(own_scores, own_ids, strict=True)
                ]
                counts.append(np.array(better, dtype=np.int64))
        return counts

    def _scores_of(self, queries: NDArray[np.float32], protein_ids: list[list[str]]) -> Steps:
        row_of = {protein_id: row for row, protein_id in enumerate(self._ids)}
        found = []
        for first in range(0, len(queries), _RANKED_TOGETHER):
            group = slice(first, first + _RANKED_TOGETHER)
            lines = yield from self._index.scores_in_steps(queries[group])
            found += [
                {protein_id: float(line[row_of[protein_id]]) for protein_id in wanted if protein_id in row_of}
                for line, wanted in zip(lines, protein_ids[group], strict=True)
            ]
        return found


def waited_s(hits: pa.Table) -> float:
    """Seconds that the request for an answer of `EmbeddingShard.search` waited until it was searched for."""
    return float((hits.schema.metadata or {}).get(_WAITED, 0.0))


def _with_waiting(hits: pa.Table, waited: float) -> pa.Table:
    return hits.replace_schema_metadata({**(hits.schema.metadata or {}), _WAITED: f"{waited:.6f}"})


def _as_json(value: Any) -> Any:
    """Sets, arrays and numpy numbers of a Python caller's filter."""
    return sorted(value) if isinstance(value, (set, frozenset)) else value.tolist()


def _settle(answer: asyncio.Future[pa.Table], outcome: pa.Table | Exception) -> None:
    """Hand an outcome to the event loop's thread; a caller who has gone does not matter."""

    def deliver() -> None:
        if answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    answer.get_loop().call_soon_threadsafe(deliver)


def _part(hits: pa.Table, first: int, count: int, k: int) -> pa.Table:
    """The hits of `count` queries from `first` on, at most k each, numbered from 0."""
    numbers = hits[QUERY_COLUMN].to_numpy()
    own = np.flatnonzero((numbers >= first) & (numbers < first + count))
    width = len(own) // max(1, count)
    kept = own.reshape(count, width)[:, :k].reshape(-1)
    part = hits.take(pa.array(kept))
    return part.set_column(0, QUERY_COLUMN, pa.array(part[QUERY_COLUMN].to_numpy() - np.int32(first)))
