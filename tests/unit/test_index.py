"""Exact search: the k best rows of float64 brute force, ties by protein id, whatever the data look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput
from rayzyme.screening import ExactIndex, candidates, index, scan

Matrix = NDArray[np.float32]


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small matrices take the scan with several tiles, which otherwise only large ones do."""
    monkeypatch.setattr(index, "_SMALL", 0)
    monkeypatch.setattr(scan, "TILE_ROWS", 64)
    monkeypatch.setattr(index, "_SCORES_AT_A_TIME", 256)
    monkeypatch.setattr(index, "_EXACT_BLOCK_ROWS", 50)


def brute_force(
    rows: Matrix, ids: list[str], queries: Matrix, k: int, among: Any = None
) -> tuple[Matrix, NDArray[np.int64]]:
    """The definition: float64 products rounded to float32, best first, ties by id."""
    numbers = np.arange(len(rows)) if among is None else np.asarray(among)
    with np.errstate(over="ignore"):
        scores = (queries.astype(np.float64) @ rows[numbers].astype(np.float64).T).astype(np.float32)
    ranked = [sorted(range(len(numbers)), key=lambda i, s=line: (-s[i], ids[numbers[i]]))[:k] for line in scores]
    return np.array([line[best] for line, best in zip(scores, ranked, strict=True)]), np.array(
        [numbers[best] for best in ranked]
    )


def unit_rows(n: int, d: int, seed: int) -> Matrix:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shuffled_ids(n: int, seed: int) -> list[str]:
    return [f"P{number}" for number in np.random.default_rng(seed).permutation(n)]


def adversarial(kind: str, n: int, d: int, seed: int) -> Matrix:
    """Matrices that break careless bounds."""
    rng = np.random.default_rng(seed)
    rows = unit_rows(n, d, seed)
    match kind:
        case "duplicates":
            rows = rows[rng.integers(0, max(1, n // 10), n)]
        case "near ties":
            rows = (rows[:1] + rng.standard_normal((n, d)) * 1e-6).astype(np.float32)
        case "zero rows":
            rows[rng.random(n) < 0.5] = 0
        case "huge norms":
            rows *= (10.0 ** rng.uniform(-12, 12, (n, 1))).astype(np.float32)
        case "overflowing":
            rows *= np.float32(1e30)
        case "subnormal":
            rows *= np.float32(1e-40)
        case "tiny near ties":
            rows = ((rows[:1] + rng.standard_normal((n, d)) * 1e-6) * 1e-25).astype(np.float32)
        case "rising":
            rows = rows[np.argsort(rows[:, 0])]
        case "integers":
            rows = rng.integers(-3, 4, (n, d)).astype(np.float32)
        case "one outlier":
            rows[n // 2] *= 1e6
    return rows


KINDS = [
    "random", "duplicates", "near ties", "zero rows", "huge norms",
    "overflowing", "subnormal", "tiny near ties", "rising", "integers", "one outlier",
]  # fmt: skip


TOO_EXTREME_TO_SCAN = {"overflowing", "subnormal", "tiny near ties"}


@pytest.mark.usefixtures("scanning")
@pytest.mark.parametrize("scan_type", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_brute_force(kind: str, scan_type: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(max_examples=25, deadline=None)
    @given(
        n=st.integers(1, 700),
        d=st.integers(1, 40),
        q=st.integers(1, 9),
        k=st.sampled_from([1, 2, 7, 50, 1000]),
        seed=st.integers(0, 10_000),
    )
    def check(n: int, d: int, q: int, k: int, seed: int) -> None:
        rows, ids = adversarial(kind, n, d, seed), shuffled_ids(n, seed)
        searched = ExactIndex(rows, ids, scan_type=scan_type)
        # Ordinary queries, the kind's own, and a row itself: the second group may be too extreme to scan.
        for queries in (unit_rows(q, d, seed + 2), adversarial(kind, q, d, seed + 1), rows[:1]):
            expected_scores, expected_rows = brute_force(rows, ids, queries, k)
            scores, found = searched.search(queries, k)
            np.testing.assert_array_equal(scores, expected_scores)
            np.testing.assert_array_equal(found, expected_rows)

    scans: list[int] = []
    original = ExactIndex._scan_candidates
    monkeypatch.setattr(ExactIndex, "_scan_candidates", lambda *given: scans.append(1) or original(*given))
    check()
    assert bool(scans) == (kind not in TOO_EXTREME_TO_SCAN)


@pytest.mark.usefixtures("scanning")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 5, 40]), share=st.floats(0.01, 1))
def test_a_row_filter_searches_only_those_rows(seed: int, k: int, share: float) -> None:
    rows, ids = unit_rows(500, 24, seed), shuffled_ids(500, seed)
    among = np.flatnonzero(np.random.default_rng(seed).random(500) < share)
    queries = unit_rows(3, 24, seed + 1)
    scores, found = ExactIndex(rows, ids, scan_type="bfloat16").search(queries, k, among)
    if len(among):
        expected_scores, expected_rows = brute_force(rows, ids, queries, k, among)
        np.testing.assert_array_equal(scores, expected_scores)
        np.testing.assert_array_equal(found, expected_rows)
    else:
        assert found.shape == (3, 0)


def test_a_large_scan_with_real_tile_sizes_equals_brute_force() -> None:
    rows, ids, queries = unit_rows(60_000, 96, 3), shuffled_ids(60_000, 3), unit_rows(70, 96, 4)
    expected_scores, expected_rows = brute_force(rows, ids, queries, 100)
    for scan_type in ("bfloat16", "float32"):
        scores, found = ExactIndex(rows, ids, scan_type=scan_type).search(queries, 100)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected_rows)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.usefixtures("scanning")
def test_the_candidate_pool_stays_bounded_when_every_later_row_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_POOL_LIMIT", 200)
    direction = unit_rows(1, 16, 0)
    rows = np.linspace(0.1, 1, 5_000, dtype=np.float32)[:, None] * direction
    ids = shuffled_ids(5_000, 0)
    _, found = ExactIndex(rows, ids, scan_type="bfloat16").search(direction, 10)
    np.testing.assert_array_equal(found, brute_force(rows, ids, direction, 10)[1])


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("scanning")
def test_narrow_rows_are_searched_as_the_numbers_they_hold(stored: torch.dtype) -> None:
    rows = torch.from_numpy(unit_rows(900, 32, 5)).to(stored)
    ids, queries = shuffled_ids(900, 5), unit_rows(4, 32, 6)
    scores, found = ExactIndex(rows, ids).search(queries, 20)
    expected_scores, expected_rows = brute_force(rows.float().numpy(), ids, queries, 20)
    np.testing.assert_array_equal(found, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_the_answer_does_not_depend_on_how_many_queries_come_together() -> None:
    rows, ids, queries = unit_rows(20_000, 64, 7), shuffled_ids(20_000, 7), unit_rows(33, 64, 8)
    searched = ExactIndex(rows, ids)
    together_scores, together = searched.search(queries, 30)
    for number, query in enumerate(queries):
        scores, found = searched.search(query, 30)
        np.testing.assert_array_equal(found[0], together[number])
        np.testing.assert_array_equal(scores[0], together_scores[number])


def test_lists_and_masks_are_understood() -> None:
    rows, ids = unit_rows(50, 8, 1), shuffled_ids(50, 1)
    searched = ExactIndex(rows.tolist(), ids)
    mask = np.arange(50) % 2 == 0
    np.testing.assert_array_equal(
        searched.search(rows[:2].tolist(), 5, mask)[1], searched.search(rows[:2], 5, np.flatnonzero(mask))[1]
    )


def test_all_scores_are_those_of_brute_force() -> None:
    rows, queries = unit_rows(300, 20, 1), unit_rows(3, 20, 2)
    expected = (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    np.testing.assert_array_equal(ExactIndex(rows, shuffled_ids(300, 0)).scores(queries), expected)


def test_memory_stays_within_one_and_six_tenths_of_the_float32_size() -> None:
    rows = unit_rows(2_000, 256, 0)
    assert ExactIndex(rows, shuffled_ids(2_000, 0), scan_type="bfloat16").nbytes <= 1.6 * rows.nbytes


def test_a_row_that_is_not_finite_is_refused_by_name() -> None:
    rows = unit_rows(5, 4, 0)
    rows[3, 1] = np.nan
    with pytest.raises(
        InvalidInput, match=r"protein 'D' \(row 4\) holds NaN or infinity; leave that protein out or embed it again"
    ):
        ExactIndex(rows, list("ABCDE"))


def test_misuse_is_refused_with_the_figures() -> None:
    searched = ExactIndex(unit_rows(5, 4, 0), list("ABCDE"))
    with pytest.raises(InvalidInput, match="top k must be at least 1, not 0"):
        searched.search(unit_rows(1, 4, 0), 0)
    with pytest.raises(InvalidInput, match="queries have dimension 3, the index has 4"):
        searched.search(unit_rows(1, 3, 0), 1)
    with pytest.raises(InvalidInput, match="query 1 holds NaN or infinity"):
        searched.search(np.full((1, 4), np.inf, np.float32), 1)
    with pytest.raises(InvalidInput, match="4 protein ids for 5 embeddings"):
        ExactIndex(unit_rows(5, 4, 0), list("ABCD"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_answer_is_the_same() -> None:
    rows, ids, queries = unit_rows(60_000, 96, 3), shuffled_ids(60_000, 3), unit_rows(70, 96, 4)
    expected_scores, expected_rows = brute_force(rows, ids, queries, 100)
    scores, found = ExactIndex(rows, ids, device="cuda").search(queries, 100)
    np.testing.assert_array_equal(found, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
