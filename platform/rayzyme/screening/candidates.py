"""The rows that may still be among each query's k best, while a scan goes on.

The scan knows each score only within an error. What is kept here is everything whose upper bound reaches the k-th best lower
bound seen so far, so nothing of the true top k is ever lost.
"""

from __future__ import annotations

import torch

# Candidates held before those that have fallen behind are dropped.
_POOL_LIMIT = 1 << 22


class CandidatePool:
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


def _round_down(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in a narrower type, never above the original."""
    narrow = values.to(dtype)
    return torch.where(narrow.float() > values, torch.nextafter(narrow, torch.full_like(narrow, -torch.inf)), narrow)
