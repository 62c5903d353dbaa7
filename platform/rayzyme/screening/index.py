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
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput

ScanType = Literal["auto", "bfloat16", "float32"]
SearchSteps = Generator[None, None, tuple[NDArray[np.float32], NDArray[np.int64]]]

_TILE_ROWS = 8_192
_TILE_SCORES = 1 << 21
_EXACT_BLOCK_ROWS = 4_096
_GROUP = 256
_SMALL = 1 << 22
_POOL_LIMIT = 1 << 22
# Within these norms neither float32 products overflow nor do the error terms drown in subnormal numbers.
_SMALLEST_NORM, _LARGEST_NORM = 1e-15, 1e15
_UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


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
        self.scan_type = "bfloat16" if rows.dtype == torch.bfloat16 else chosen
        self._prepare_scan(identifiers)

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, their scan copy and the bounds."""
        tensors = {
            tensor.data_ptr(): tensor.nbytes
            for tensor in (self._rows, self._scan, self._residual_norms, self._scan_norms)
        }
        return sum(tensors.values()) + self._order.nbytes

    def search(
        self, queries: NDArray[Any] | torch.Tensor, k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best rows of each query.

        Args:
            queries: (q, d), finite; a single (d,) vector counts as (1, d).
            k: How many hits, at least 1; more than there are rows gives all of them.
            rows: Distinct row numbers to search among; None searches all.

        Returns:
            Scores float32 (q, min(k, n)), falling, and row numbers int64 of the same shape.

        Raises:
            InvalidInput: `k` below 1, queries of another dimension or not finite.
        """
        steps = self.search_in_steps(queries, k, rows)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                found: tuple[NDArray[np.float32], NDArray[np.int64]] = done.value
                return found

    def search_in_steps(
        self, queries: NDArray[Any] | torch.Tensor, k: int, rows: NDArray[np.int64] | None = None
    ) -> SearchSteps:
        """`search` in short steps: it yields after each tile, so that more urgent work may go in between.

        At most `_GROUP` queries are scanned together, which bounds a step by about 2^21 row products.
        """
        wanted = self._check_queries(queries)
        if k < 1:
            raise InvalidInput(f"top k must be at least 1, not {k}")
        allowed = (
            None
            if rows is None
            else torch.as_tensor(np.ascontiguousarray(rows, dtype=np.int64), device=self._rows.device)
        )
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
        wanted = self._check_queries(queries).double()
        result = torch.empty((len(wanted), len(self)), dtype=torch.float32, device=wanted.device)
        for start in range(0, len(self), _EXACT_BLOCK_ROWS):
            block = self._rows[start : start + _EXACT_BLOCK_ROWS].double()
            result[:, start : start + len(block)] = wanted @ block.T
        return result.cpu().numpy()

    def _check_queries(self, queries: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        tensor = as_rows(queries[None, :] if queries.ndim == 1 else queries).to(self._rows.device, torch.float32)
        if tensor.shape[1] != self.dimension:
            raise InvalidInput(f"queries have dimension {tensor.shape[1]}, the index has {self.dimension}")
        broken = torch.nonzero(~torch.isfinite(tensor).all(dim=1)).flatten()
        if len(broken):
            raise InvalidInput(f"query {int(broken[0]) + 1} holds NaN or infinity")
        return tensor

    def _prepare_scan(self, identifiers: pa.Array) -> None:
        n, device = self._rows.shape[0], self._rows.device
        scan_dtype = torch.bfloat16 if self.scan_type == "bfloat16" else torch.float32
        self._scan = (
            self._rows
            if self._rows.dtype == scan_dtype
            else torch.empty(self._rows.shape, dtype=scan_dtype, device=device)
        )
        self._residual_norms = torch.zeros(n, dtype=torch.float32, device=device)
        self._scan_norms = torch.zeros(n, dtype=torch.float32, device=device)
        for start in range(0, n, _EXACT_BLOCK_ROWS):
            block = slice(start, min(start + _EXACT_BLOCK_ROWS, n))
            exact = self._rows[block]
            broken = torch.nonzero(~torch.isfinite(exact).all(dim=1)).flatten()
            if len(broken):
                row = start + int(broken[0])
                raise InvalidInput(
                    f"the embedding of protein {identifiers[row].as_py()!r} (row {row + 1}) holds NaN or infinity; "
                    f"leave that protein out or embed it again"
                )
            if self._scan is not self._rows:
                self._scan[block] = exact.to(scan_dtype)
                self._residual_norms[block] = (exact.float() - self._scan[block].float()).norm(dim=1)
            self._scan_norms[block] = self._scan[block].float().norm(dim=1)
        self._norm_range = (float(self._scan_norms.min()), float(self._scan_norms.max())) if n else (0.0, 0.0)

    def _scan_pays(self, queries: torch.Tensor, k: int, available: int) -> bool:
        """Whether bounding saves work, and holds: not for small sets, for most of a set, or for extreme norms."""
        if available * self.dimension < _SMALL // max(1, len(queries)) or 4 * k > available:
            return False
        lengths = queries.norm(dim=1)
        largest = max(self._norm_range[1], float(lengths.max()))
        return bool(float(lengths.min()) > _SMALLEST_NORM and largest < _LARGEST_NORM)

    def _scan_candidates(
        self, queries: torch.Tensor, k: int, allowed: torch.Tensor | None
    ) -> Generator[None, None, tuple[torch.Tensor, torch.Tensor]]:
        """Rows that may be among the k best, as (row numbers, query numbers), sorted by query."""
        available = len(self) if allowed is None else len(allowed)
        narrow = queries.to(self._scan.dtype)
        lengths = queries.norm(dim=1)
        residuals = (queries - narrow.float()).norm(dim=1)
        accumulation = (self.dimension + 8) * 2.0**-23
        pool = _CandidatePool(len(queries), k, _UNIT_ROUNDOFF[self._scan.dtype], queries.device)
        tile_rows = max(_TILE_ROWS, min(_TILE_SCORES // len(queries), 8 * _TILE_ROWS), 2 * k)
        for start in range(0, available, tile_rows):
            stop = min(start + tile_rows, available)
            numbers = slice(start, stop) if allowed is None else allowed[start:stop]
            tile = self._scan[numbers]
            longest = self._scan_norms[numbers].max()
            error = lengths * self._residual_norms[numbers].max() + (residuals + accumulation * lengths) * longest
            # A hair more, for the rounding of these very bounds and of norms that vanish.
            error = error * 1.001 + 1e-30
            approximate = narrow @ tile.T
            pool.add(approximate, error, start)
            yield
        found, owners = pool.finish()
        return (found if allowed is None else allowed[found]), owners

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


class _CandidatePool:
    """Rows that may still be among each query's k best, kept by their score bounds while tiles come in.

    A tile is looked at through the maxima of its blocks: k of them, being scores of k distinct rows, bound the k-th best
    score from below, and a block whose maximum does not reach that bound holds no candidate.
    """

    def __init__(self, queries: int, k: int, roundoff: float, device: torch.device) -> None:
        self._k = k
        self._queries = queries
        self._roundoff = roundoff
        self._best = torch.full((queries, k), -torch.inf, device=device)
        self._candidates: list[tuple[torch.Tensor, ...]] = []
        self._held = 0
        self._seen = 0
        self._seen_at_refresh = 0

    def add(self, approximate: torch.Tensor, error: torch.Tensor, offset: int) -> None:
        """Take the rows of a tile that may belong.

        Args:
            approximate: (q, t) scan scores of rows `offset` to `offset + t`, each within `error` (q,) of the exact score
                before the scan's own rounding.
        """
        blocks = self._in_blocks(approximate)
        peaks = blocks.amax(dim=1)
        self._seen += approximate.shape[1]
        if 2 * self._seen >= 3 * self._seen_at_refresh or self._held > _POOL_LIMIT:
            self._raise_threshold(peaks.float(), error)
        gap = self._best[:, -1] - error
        # The smallest scan score whose upper bound reaches the threshold, rounded towards minus infinity.
        cut = _round_down(gap - 1.02 * self._roundoff * gap.abs(), approximate.dtype)
        owners, columns = torch.nonzero(peaks >= cut[:, None], as_tuple=True)
        members = blocks[owners, :, columns]
        hits, lanes = torch.nonzero(members >= cut[owners, None], as_tuple=True)
        owners = owners[hits]
        values = members[hits, lanes].float()
        numbers = lanes * blocks.shape[2] + columns[hits] + offset
        slack = error[owners] + 1.01 * self._roundoff * values.abs()
        self._candidates.append((owners, numbers, values - slack, values + slack))
        self._held += len(owners)
        if self._held > _POOL_LIMIT:
            self._prune()

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The surviving row numbers and their queries, sorted by query."""
        self._prune()
        owners, numbers, lower, upper = self._candidates[0]
        order = torch.argsort(owners, stable=True)
        owners, numbers, upper = owners[order], numbers[order], upper[order]
        counts = torch.bincount(owners, minlength=self._queries)
        places = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        by_query = torch.full((self._queries, int(counts.max())), -torch.inf, device=owners.device)
        by_query[owners, places] = lower[order]
        kept = upper >= torch.topk(by_query, self._k, dim=1).values[owners, -1]
        return numbers[kept], owners[kept]

    def _in_blocks(self, approximate: torch.Tensor) -> torch.Tensor:
        """(q, rows of a block, blocks) view; blocks small enough that there are several times k of them."""
        height = 16
        while height > 1 and approximate.shape[1] < 4 * self._k * height:
            height //= 2
        missing = -approximate.shape[1] % height
        if missing:
            approximate = torch.nn.functional.pad(approximate, (0, missing), value=-torch.inf)
        return approximate.view(len(approximate), height, -1)

    def _raise_threshold(self, peaks: torch.Tensor, error: torch.Tensor) -> None:
        lower = peaks - error[:, None] - 1.01 * self._roundoff * peaks.abs()
        self._best = torch.topk(torch.cat([self._best, lower], dim=1), self._k, dim=1).values
        self._seen_at_refresh = self._seen

    def _prune(self) -> None:
        owners, numbers, lower, upper = (torch.cat(parts) for parts in zip(*self._candidates, strict=True))
        kept = upper >= self._best[owners, -1]
        self._candidates = [(owners[kept], numbers[kept], lower[kept], upper[kept])]
        self._held = int(kept.sum())


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


def _round_down(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in a narrower type, never above the original."""
    narrow = values.to(dtype)
    return torch.where(narrow.float() > values, torch.nextafter(narrow, torch.full_like(narrow, -torch.inf)), narrow)


def _tensor(array: pa.Array) -> torch.Tensor:
    return torch.from_numpy(array.to_numpy(zero_copy_only=False).astype(np.int64))
