"""The two-level cache against `diskcache` alone, which pickles values: what a hit costs, by level and size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import diskcache
import numpy as np
from benchmarks.measuring import Measurement, best_of_rounds, compared

from rayzyme.resources import TwoLevelCache

ROUNDS = 7
ROWS = {"a unit vector of 5 kB": 1, "features of 400 residues, 2 MB": 400}
FEATURES = 1280
HITS = {"memory": 2_000, "disk": 50}
SETS = 10


def run() -> list[Measurement]:
    """Seconds of one hit and of one write; the peer has no memory level, checks no digest and does not sync its files."""
    measurements = []
    for name, rows in ROWS.items():
        value = np.random.default_rng(0).standard_normal((rows, FEATURES)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            measurements += _compare(name, value, Path(folder))
    return measurements


def _compare(name: str, value: np.ndarray, folder: Path) -> list[Measurement]:
    # In the second one no value fits into memory.
    with (
        TwoLevelCache(cache_dir=folder / "both") as both,
        TwoLevelCache(cache_dir=folder / "disk", memory_size_mb=0.001) as disk_only,
        diskcache.Cache(str(folder / "peer"), eviction_policy="least-recently-used") as peer,
    ):
        for store in (both, disk_only, peer):
            store.set("key", value)
        found = {
            level: _compared_hits(name, level, ours, peer) for level, ours in (("memory", both), ("disk", disk_only))
        }
        written = best_of_rounds(
            {
                "ours": _repeated(SETS, lambda: both.set("key", value)),
                "peer": _repeated(SETS, lambda: peer.set("key", value)),
            },
            ROUNDS,
        )
        return [*found.values(), compared(f"write, {name}", written["ours"] / SETS, written["peer"] / SETS, "s")]


def _compared_hits(name: str, level: str, ours: TwoLevelCache, peer: diskcache.Cache) -> Measurement:
    hits = HITS[level]
    best = best_of_rounds(
        {"ours": _repeated(hits, lambda: ours.get("key")), "peer": _repeated(HITS["disk"], lambda: peer.get("key"))},
        ROUNDS,
    )
    return compared(f"{level} hit, {name}", best["ours"] / hits, best["peer"] / HITS["disk"], "s")


def _repeated(times: int, action: Callable[[], object]) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            action()

    return repeat
