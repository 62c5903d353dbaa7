"""Exact search against FAISS `IndexFlatIP`, USearch exact and a torch float32 product with `topk`; memory of a shard."""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.measuring import THREADS, Measurement, best_of_rounds, compared

from rayzyme.screening import ExactIndex

ROWS, DIMENSION, K = 261_907, 1_280, 100
QUERIES = (1, 8, 64, 256)


def unit_rows(n: int, seed: int) -> np.ndarray:
    """Random unit float32 rows (n, DIMENSION)."""
    rows = np.random.default_rng(seed).standard_normal((n, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def run() -> list[Measurement]:
    """Compare with the fastest peer at each number of queries; ids must be identical."""
    import faiss
    from usearch.index import MetricKind
    from usearch.index import search as usearch_search

    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    rows = unit_rows(ROWS, 0)
    tensor = torch.from_numpy(rows)
    ours = ExactIndex(rows, [f"P{number:06d}" for number in range(ROWS)])
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(rows)
    results = []
    for count in QUERIES:
        queries = unit_rows(count, count)

        def torch_float32(queries: np.ndarray = queries) -> object:
            return torch.topk(torch.from_numpy(queries) @ tensor.T, K)

        def usearch_exact(queries: np.ndarray = queries) -> object:
            return usearch_search(rows, queries, K, MetricKind.IP, exact=True, threads=THREADS)

        contenders = {
            "ours": lambda queries=queries: ours.search(queries, K),
            "faiss": lambda queries=queries: flat.search(queries, K),
            "torch": torch_float32,
            "usearch": usearch_exact,
        }
        if count > 64:
            # USearch computes each pair on its own: minutes, and never the fastest here.
            del contenders["usearch"]
        times = best_of_rounds(contenders, rounds=7 if count <= 8 else 3)
        peers = {name: seconds for name, seconds in times.items() if name != "ours"}
        fastest = min(peers, key=peers.__getitem__)
        found, expected = ours.search(queries, K)[1], flat.search(queries, K)[1]
        results.append(
            compared(
                f"exact search, {count} queries, against {fastest}", times["ours"] * 1e3, peers[fastest] * 1e3, "ms",
                peers_ms={name: round(seconds * 1e3, 1) for name, seconds in peers.items()},
                same_ids_as_faiss=float((found == expected).mean()),
                swapped_are_ties_to_float32=_only_near_ties(rows, queries, found, expected),
                scan_type=ours.scan_type,
            )
        )  # fmt: skip
    results.append(
        compared(
            "memory of a shard, against float32 rows alone",
            ours.nbytes / 1e6,
            rows.nbytes / 1e6,
            "MB",
            bar="ours <= 1.6 x",
        )
    )
    return results


def _only_near_ties(rows: np.ndarray, queries: np.ndarray, found: np.ndarray, expected: np.ndarray) -> bool:
    """Where ids differ, the float64 scores must differ by less than float32 products can tell."""
    for number, column in zip(*np.nonzero(found != expected), strict=True):
        query = queries[number].astype(np.float64)
        ours, theirs = rows[found[number, column]] @ query, rows[expected[number, column]] @ query
        if abs(ours - theirs) > 1e-6:
            return False
    return True
