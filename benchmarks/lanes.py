"""Online latency on a shard that is under full batch load, against the same shard at rest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import THREADS, Measurement, compared
from benchmarks.search import ROWS, K, unit_rows

REQUESTS = 300
BATCHES_IN_FLIGHT = 4


def run() -> list[Measurement]:
    """p99 of online requests, one at a time; the bar under load is twice the p99 at rest plus the longest batch step."""
    import ray

    from rayzyme.screening import CheckpointRef, ScreeningSet
    from rayzyme_actors.connection import connect
    from rayzyme_actors.embedding_shard import EmbeddingShard
    from rayzyme_actors.long_lived import LongLivedActor

    with tempfile.TemporaryDirectory() as folder:
        ids = [f"P{number:06d}" for number in range(ROWS)]
        made = ScreeningSet.from_arrays(ids, unit_rows(ROWS, 0), None, CheckpointRef("random", "ab" * 32))
        path = made.save(Path(folder) / "set.arrow")
        digest = made.digest
        del made
        connect()
        shard = LongLivedActor(
            "benchmark-shard",
            EmbeddingShard,
            (str(path), digest, 0, ROWS, "cpu", THREADS, 0.1),
            {"num_cpus": 0.1},
            "rayzyme",
        )
        shard.start()
        shard.wait_until_ready()
        queries, batch = unit_rows(64, 1), unit_rows(256, 2)
        _latencies(shard, queries, 20)
        idle = _latencies(shard, queries, REQUESTS)
        pending = [shard.submit("search", batch, K, None, "batch").reference for _ in range(BATCHES_IN_FLIGHT)]
        loaded: list[float] = []
        batches_done = 0
        begin = time.perf_counter()
        while len(loaded) < REQUESTS:
            loaded += _latencies(shard, queries, 10)
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
            batches_done += len(done)
            pending += [shard.submit("search", batch, K, None, "batch").reference for _ in done]
        elapsed = time.perf_counter() - begin
        step = shard.wait_until_ready()["longest_batch_step"]
        ray.shutdown()
    at_rest, under_load = float(np.percentile(idle, 99)), float(np.percentile(loaded, 99))
    return [
        compared(
            "online p99 under batch load, against its bar", under_load * 1e3, (2 * at_rest + step) * 1e3, "ms",
            idle_p50_ms=float(np.median(idle)) * 1e3, idle_p99_ms=at_rest * 1e3, loaded_p50_ms=float(np.median(loaded)) * 1e3,
            longest_batch_step_ms=step * 1e3, batch_queries_per_second=batches_done * 256 / elapsed,
        )
    ]  # fmt: skip


def _latencies(shard: Any, queries: np.ndarray, count: int) -> list[float]:
    seconds = []
    for number in range(count):
        query = queries[number % len(queries)][None]
        begin = time.perf_counter()
        shard.submit("search", query, K).result()
        seconds.append(time.perf_counter() - begin)
    return seconds
