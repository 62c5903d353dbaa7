"""Exact top-k search by inner product over the rows of a matrix.

The promise: the k best rows that brute force gives, whatever the number of queries, rows, threads or shards. A score is
the float64 inner product rounded to float32; rows of equal score are ordered by protein id.

How it stays exact and is still fast: the matrix is scanned in a narrow type (bfloat16 where the processor multiplies it
natively) tile by tile, so the full score matrix never exists. For a row x = b + r with b its narrow form, and a query
q = a + s likewise, <q, x> - <a, b> = <q, r> + <s, b>, which Cauchy-Schwarz bounds by |q||r| + |s||b| plus the rounding of
the product itself. Every row whose upper bound reaches the k-th best lower bound is kept and scored again in float64.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput
from rayzyme.screening.candidates import CandidatePool
from rayzyme.screening.scan import NarrowScan

Result = TypeVar("Result")
ScanType = Literal["auto", "bfloat16", "float32"]
SearchSteps = Generator[None, None, tuple[NDArray[np.float32], NDArray[np.int64]]]

_EXACT_BLOCK_ROWS = 4_096
_GROUP = 64
_SMALL = 1 << 22
_SCORES_AT_A_TIME = 1 << 20
# Collecting single rows costs about this many times as much as scanning them in place.
_GATHERING_COST = 8
# Within these norms neither float32 products overflow nor do the error terms drown in subnormal numbers.
_SMALLEST_NORM, _LARGEST_NORM = 1e-15, 1e15


class ExactIndex:
    """Exact nearest rows by inner product, resident on one device.

    Attributes:
        dimension: Length of a row.
        scan_type: The type that the matrix is scanned in, "bfloat16" or "float32".
        nbytes: Bytes held: the rows as given plus the narrow copy.
    """

    def __init__(
        self,
        embeddings: NDArray[Any] | torch.Tensor,
        protein_ids: Sequence[str] | pa.Array,
        *,
        device: str = "cpu",
        scan_type: ScanType = "auto",
    ) -> None:
        """Prepare the rows.

        Args:
            embeddings: (n, d) float32, float16 or bfloat16, finite; any length of rows, zero included. A float32 array
                is used where it lies, not copied, and must not be written to afterwards.
            protein_ids: n ids; they order rows of equal score.
            device: torch device that holds the rows.
            scan_type: "auto" measures once per process which type this processor multiplies faster.

        Raises:
            InvalidInput: Shapes differ, or a row holds NaN or infinity (named).
        """
        rows = as_rows(embeddings)
        identifiers = (
            protein_ids if isinstance(protein_ids, pa.Array) else pa.array([str(i) for i in protein_ids], pa.string())
        )
        if len(identifiers) != rows.shape[0]:
            raise InvalidInput(f"{len(identifiers)} protein ids for {rows.shape[0]} embeddings: give one id per row")
        self.dimension = int(rows.shape[1])
        self._rows = rows.to(device)
        self._order = torch.empty(len(identifiers), dtype=torch.int64, device=device)
        self._order[_tensor(pc.sort_indices(identifiers)).to(device)] = torch.arange(len(identifiers), device=device)
        chosen = fastest_scan_type(device) if scan_type == "auto" else scan_type
        self.scan_type: ScanType = chosen
        self._scan = NarrowScan(
            self._rows, identifiers, torch.bfloat16 if self.scan_type == "bfloat16" else torch.float32
        )

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, their scan copy and the bounds."""
        return self._rows.nbytes + self._scan.nbytes + self._order.nbytes

    def search(
        self, queries: NDArray[Any] | torch.Tensor, k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best rows of each query.

        Args:
            queries: (q, d), finite; a single (d,) vector counts as (1, d).
            k: How many hits, at least 1; more than there are rows gives all of them.
            rows: Distinct row numbers to search among, or a mask of all rows; None searches all.

        Returns:
            Scores float32 (q, min(k, n)), falling, and row numbers int64 of the same shape.

        Raises:
            InvalidInput: `k` below 1, queries of another dimension or not finite.
        """
        return _drained(self.search_in_steps(queries, k, rows))

    def search_in_steps(
        self, queries: NDArray[Any] | torch.Tensor, k: int, rows: NDArray[np.int64] | None = None
    ) -> SearchSteps:
        """`search` in short steps: it yields after each tile, so that more urgent work may go in between.

        At most `_GROUP` queries are scanned together, which bounds how long a step takes.
        """
        wanted = self._check_queries(queries)
        if k < 1:
            raise InvalidInput(f"top k must be at least 1, not {k}")
        allowed = None if rows is None else self._row_numbers(rows)
        available = len(self) if allowed is None else len(allowed)
        k = min(k, available)
        scores, found = np.empty((len(wanted), k), np.float32), np.empty((len(wanted), k), np.int64)
        for first in range(0, len(wanted) if k else 0, _GROUP):
            group = slice(first, first + _GROUP)
            if self._scan_pays(wanted[group], k, available):
                numbers, owners = yield from self._scan_candidates(wanted[group], k, allowed)
                scores[group], found[group] = yield from self._rank_candidates(wanted[group], k, numbers, owners)
            else:
                scores[group], found[group] = yield from self._rank_all(wanted[group], k, allowed)
        return scores, found

    def scores(self, queries: NDArray[Any] | torch.Tensor) -> NDArray[np.float32]:
        """The score of every row, float32 (q, n): what a full ranking (evaluation) needs."""
        return _drained(self.scores_in_steps(queries))

    def scores_in_steps(self, queries: NDArray[Any] | torch.Tensor) -> Generator[None, None, NDArray[np.float32]]:
        """`scores` in short steps: it yields after each block of rows."""
        wanted = self._check_queries(queries).double()
        result = torch.empty((len(wanted), len(self)), dtype=torch.float32, device=wanted.device)
        for start in range(0, len(self), _EXACT_BLOCK_ROWS):
            block = self._rows[start : start + _EXACT_BLOCK_ROWS].double()
            result[:, start : start + len(block)] = wanted @ block.T
            yield
        return result.cpu().numpy()

    def _row_numbers(self, rows: NDArray[Any]) -> torch.Tensor:
        """Row numbers from numbers or from a mask of all rows."""
        given = np.asarray(rows)
        numbers = np.flatnonzero(given) if given.dtype == bool and len(given) == len(self) else given
        return torch.as_tensor(np.ascontiguousarray(numbers, dtype=np.int64), device=self._rows.device)

    def _check_queries(self, queries: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        queries = queries if isinstance(queries, torch.Tensor) else np.asarray(queries)
        tensor = as_rows(queries[None, :] if queries.ndim == 1 else queries).to(self._rows.device, torch.float32)
        if tensor.shape[1] != self.dimension:
            raise InvalidInput(f"queries have dimension {tensor.shape[1]}, the index has {self.dimension}")
        broken = torch.nonzero(~torch.isfinite(tensor).all(dim=1)).flatten()
        if len(broken):
            raise InvalidInput(f"query {int(broken[0]) + 1} holds NaN or infinity")
        return tensor

    def _scan_pays(self, queries: torch.Tensor, k: int, available: int) -> bool:
        """Whether bounding saves work, and holds: not for small sets, for most of a set, or for extreme norms."""
        if available * self.dimension < _SMALL // max(1, len(queries)) or 4 * k > available:
            return False
        lengths = queries.norm(dim=1)
        smallest = min(self._scan.shortest, float(lengths.min()))
        largest = max(self._scan.longest, float(lengths.max()))
        return smallest > _SMALLEST_NORM and largest < _LARGEST_NORM

    def _scan_candidates(
        self, queries: torch.Tensor, k: int, allowed: torch.Tensor | None
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor]]:
        """Rows that may be among the k best, as (row numbers, query numbers), sorted by query."""
        narrow, error_of = self._scan.prepare(queries)
        pool = CandidatePool(len(queries), k, self._scan.roundoff, queries.device)
        if allowed is not None and len(allowed) * _GATHERING_COST < len(self):
            for start in range(0, len(allowed), self._scan.tile_rows):
                numbers = allowed[start : start + self._scan.tile_rows]
                pool.add(self._scan.gathered_scores(narrow, self._rows, numbers), error_of(numbers), start)
                yield
            places, owners = pool.finish()
            return allowed[places], owners
        admitted = None
        if allowed is not None:
            admitted = torch.zeros(len(self), dtype=torch.bool, device=queries.device)
            admitted[allowed] = True
        # Few queries make small tiles of scores: several are looked through at once.
        together = max(1, _SCORES_AT_A_TIME // (len(queries) * self._scan.tile_rows))
        tiles: list[torch.Tensor] = []
        start = 0
        for number in range(self._scan.tile_count):
            tiles.append(self._scan.tile_scores(narrow, number))
            yield
            if len(tiles) == together or number == self._scan.tile_count - 1:
                approximate = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
                rows = slice(start, start + approximate.shape[1])
                if admitted is not None:
                    approximate.masked_fill_(~admitted[rows], -torch.inf)
                pool.add(approximate, error_of(rows), start)
                start = rows.stop
                tiles.clear()
            yield
        return pool.finish()

    def _rank_candidates(
        self, queries: torch.Tensor, k: int, numbers: torch.Tensor, owners: torch.Tensor
    ) -> SearchSteps:
        scores = torch.empty((len(queries), k), dtype=torch.float32, device=queries.device)
        rows = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        counts = torch.bincount(owners, minlength=len(queries)).tolist()
        exact_queries = queries.double()
        for number, candidates in enumerate(torch.split(numbers, counts)):
            exact = (self._rows.index_select(0, candidates).double() @ exact_queries[number]).float()
            scores[number], rows[number] = self._best(exact, candidates, k)
            if number % 32 == 31:
                yield
        return scores.cpu().numpy(), rows.cpu().numpy()

    def _rank_all(self, queries: torch.Tensor, k: int, allowed: torch.Tensor | None) -> SearchSteps:
        """Plain brute force, a few queries at a time so that at most `_SMALL` scores are held."""
        available = len(self) if allowed is None else len(allowed)
        numbers = torch.arange(available, device=queries.device) if allowed is None else allowed
        group = max(1, _SMALL // available)
        scores, rows = [], []
        for first in range(0, len(queries), group):
            exact_queries = queries[first : first + group].double()
            exact = torch.empty((len(exact_queries), available), dtype=torch.float32, device=queries.device)
            for start in range(0, available, _EXACT_BLOCK_ROWS):
                block = self._rows.index_select(0, numbers[start : start + _EXACT_BLOCK_ROWS]).double()
                exact[:, start : start + len(block)] = exact_queries @ block.T
                yield
            for one in exact:
                best_scores, best_rows = self._best(one, numbers, k)
                scores.append(best_scores)
                rows.append(best_rows)
        return torch.stack(scores).cpu().numpy(), torch.stack(rows).cpu().numpy()

    def _best(self, scores: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best of some rows, by falling score, then by protein id."""
        if len(scores) > 4 * k:
            # Sorting costs more than finding where the k-th score lies; equal scores at the border all stay in.
            kept = scores >= torch.topk(scores, k).values[-1]
            scores, rows = scores[kept], rows[kept]
        by_id = torch.argsort(self._order[rows])
        ranked = by_id[torch.sort(scores[by_id], descending=True, stable=True).indices[:k]]
        return scores[ranked], rows[ranked]


def _drained(steps: Generator[None, None, Result]) -> Result:
    """The result of work that is done in steps, all steps taken."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result


def as_rows(embeddings: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    """A (n, d) tensor over the same memory where the type allows; float64 and integers become float32.

    Raises:
        InvalidInput: Not two-dimensional, or of dimension 0.
    """
    if isinstance(embeddings, torch.Tensor):
        tensor = embeddings.detach()
    else:
        with warnings.catch_warnings():
            # Memory-mapped rows are read-only; torch knows no such tensors and warns. Nothing here writes to them.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.from_numpy(np.ascontiguousarray(embeddings))
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise InvalidInput(f"embeddings must have shape (rows, dimension), not {tuple(tensor.shape)}")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.contiguous()


@lru_cache(maxsize=8)
def fastest_scan_type(device: str = "cpu") -> ScanType:
    """Which type this device multiplies faster, measured once: bfloat16 needs matrix or dot-product instructions for it."""
    if not device.startswith("cpu"):
        return "bfloat16"
    durations: dict[ScanType, float] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        rows, queries = torch.ones(4_096, 512, dtype=dtype), torch.ones(64, 512, dtype=dtype)
        laps = []
        for _ in range(4):
            begin = time.perf_counter()
            queries @ rows.T
            laps.append(time.perf_counter() - begin)
        durations[name] = min(laps)  # type: ignore[index]
    return min(durations, key=durations.__getitem__)


def _tensor(array: pa.Array) -> torch.Tensor:
    return torch.from_numpy(array.to_numpy(zero_copy_only=False).astype(np.int64))
