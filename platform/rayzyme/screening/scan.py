"""A copy of a matrix in a narrow type, laid out for products with queries, and what bounds the error of these products."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import torch

from rayzyme.errors import InvalidInput
from rayzyme.packed_linear import PackedLinear

# Few enough that a tile's product with 64 queries takes some tens of milliseconds, the longest an online request waits.
TILE_ROWS = 65_536
_BLOCK_ROWS = 4_096
_TYPICAL_QUERIES = 64
_UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}

Rows = slice | torch.Tensor


class NarrowScan:
    """The copy, in tiles.

    Attributes:
        tile_rows: Rows of a tile.
        roundoff: Relative size of the rounding of a score itself, on top of what `prepare`'s error covers.
        longest: Length of the longest row.
        shortest: Length of the shortest row that is not zero.
        nbytes: Bytes of the copy and the bounds.
    """

    def __init__(self, rows: torch.Tensor, identifiers: pa.Array, dtype: torch.dtype) -> None:
        """Copy, and check that every number is finite.

        Args:
            rows: (n, d), where they are to be scanned.
            identifiers: Names of the rows, for errors.
            dtype: torch.bfloat16 or torch.float32.

        Raises:
            InvalidInput: A row holds NaN or infinity (named).
        """
        self.tile_rows = TILE_ROWS
        self.roundoff = _UNIT_ROUNDOFF[dtype]
        self._dtype = dtype
        if rows.is_cuda:
            # Otherwise partial sums may be rounded to bfloat16, which no bound here covers.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._dimension = rows.shape[1]
        self._residuals = torch.zeros(len(rows), device=rows.device)
        self._lengths = torch.zeros(len(rows), device=rows.device)
        self._tiles: list[PackedLinear | torch.Tensor] = []
        copied = 0
        for start in range(0, len(rows), self.tile_rows):
            tile = rows[start : start + self.tile_rows]
            _require_finite(tile, start, identifiers)
            if rows.dtype == torch.float32 == dtype:
                self._tiles.append(tile)
                self._measure(tile, tile, start)
                continue
            narrow = tile.to(dtype)
            self._measure(tile, narrow, start)
            self._tiles.append(PackedLinear(narrow, None, rows.device, _TYPICAL_QUERIES))
            copied += narrow.nbytes
        self.longest = float(self._lengths.max()) if len(rows) else 0.0
        rising = self._lengths[self._lengths > 0]
        self.shortest = float(rising.min()) if len(rising) else 0.0
        self.nbytes = copied + self._residuals.nbytes + self._lengths.nbytes

    @property
    def tile_count(self) -> int:
        """How many tiles there are."""
        return len(self._tiles)

    def prepare(self, queries: torch.Tensor) -> tuple[torch.Tensor, Callable[[Rows], torch.Tensor]]:
        """Narrow float32 queries (q, d); give them with a function from rows to the error (q,) of their scores."""
        narrow = queries.to(self._dtype)
        lengths = queries.norm(dim=1)
        cut_off = (queries - narrow.float()).norm(dim=1)
        # What summing up in float32, in any order, may lose at most.
        accumulation = (self._dimension + 8) * 2.0**-23

        def error_of(rows: Rows) -> torch.Tensor:
            longest = self._lengths[rows].max()
            error = lengths * self._residuals[rows].max() + (cut_off + accumulation * lengths) * longest
            # A hair more, for the rounding of these very bounds and of norms that vanish.
            widened: torch.Tensor = error * 1.001 + 1e-30
            return widened

        return narrow, error_of

    def tile_scores(self, narrow: torch.Tensor, number: int) -> torch.Tensor:
        """Scan scores (q, t) of a tile's rows."""
        tile = self._tiles[number]
        return tile(narrow) if isinstance(tile, PackedLinear) else narrow @ tile.T

    def gathered_scores(self, narrow: torch.Tensor, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Scan scores (q, t) of some rows, narrowed from the original ones."""
        return narrow @ rows.index_select(0, numbers).to(self._dtype).T

    def _measure(self, exact: torch.Tensor, narrow: torch.Tensor, start: int) -> None:
        for first in range(0, len(exact), _BLOCK_ROWS):
            some = slice(first, first + _BLOCK_ROWS)
            target = slice(start + first, start + min(first + _BLOCK_ROWS, len(exact)))
            widened = narrow[some].double()
            self._lengths[target] = widened.norm(dim=1)
            if narrow is not exact:
                self._residuals[target] = (exact[some].double() - widened).norm(dim=1)


def _require_finite(tile: torch.Tensor, start: int, identifiers: pa.Array) -> None:
    broken = torch.nonzero(~torch.isfinite(tile).all(dim=1)).flatten()
    if len(broken):
        row = start + int(broken[0])
        raise InvalidInput(
            f"the embedding of protein {identifiers[row].as_py()!r} (row {row + 1}) holds NaN or infinity; "
            f"leave that protein out or embed it again"
        )
