"""Early-recognition metrics of one ranking, and the ranks that they start from.

Ranks are 1-based, 1 the best. Each metric looks at the ranks of a query's actives (the enzymes known to catalyse the
reaction) among `total` ranked proteins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from rayzyme.errors import InvalidInput

Ranks = NDArray[np.int64]

_FEW_ACTIVES = 8


def bedroc(ranks: ArrayLike, total: int, alpha: float) -> float:
    """Boltzmann-enhanced discrimination of ROC (Truchon & Bayly 2007, doi 10.1021/ci600426e).

    The sum over actives of exp(-alpha rank / total), scaled between what the worst and the best ranking of as many
    actives give. At alpha 85 the first 2 % of the ranking make up about 80 % of the score.

    Args:
        ranks: 1-based ranks of the actives, int (a,), distinct, in any order.
        total: Proteins ranked.
        alpha: Weight of early ranks, above 0.

    Returns:
        0 with all actives last, 1 with all first.

    Raises:
        InvalidInput: Ranks outside 1..total, repeated or not whole numbers; no actives, or nothing else; alpha not a
            positive number.
    """
    ordered = checked_ranks(ranks, total)
    if not (math.isfinite(alpha) and alpha > 0):
        raise InvalidInput(f"alpha of BEDROC must be a positive number, not {alpha}")
    best = np.arange(1, len(ordered) + 1)
    worst = best + (total - len(ordered))
    step = alpha / total
    # Every difference exp(-x) - exp(-y) is written exp(-x) (1 - exp(y - x)), and the common factor exp(-step) is left
    # out: neither a large alpha (underflow) nor a small one (cancellation) costs digits.
    reached = np.exp(-step * (ordered - 1)) * -np.expm1(-step * (worst - ordered))
    possible = np.exp(-step * (best - 1)) * -np.expm1(-step * (worst - best))
    return float(reached.sum() / possible.sum())


def enrichment_factor(ranks: ArrayLike, total: int, percent: float) -> float:
    """How many times more actives the first `percent` % hold than a random choice would.

    Hits in the top max(1, floor(total * percent / 100)), divided by actives * percent / 100.

    Raises:
        InvalidInput: As `bedroc`; percent not in (0, 100].
    """
    ordered = checked_ranks(ranks, total)
    if not 0 < percent <= 100:
        raise InvalidInput(f"the percentage of an enrichment factor lies above 0 and at most at 100, not at {percent}")
    # 0.29 % of 10,000 are 29, although 10000 * 0.29 / 100 rounds to 28.999...
    selected = max(1, math.floor(total * Fraction(str(percent)) / 100))
    return _hits(ordered, selected) / (len(ordered) * percent / 100)


def top_k_recall(ranks: ArrayLike, total: int, k: int) -> float:
    """The fraction of the actives that stand among the k best.

    Raises:
        InvalidInput: As `bedroc`; k below 1.
    """
    ordered = checked_ranks(ranks, total)
    return _hits(ordered, _checked_k(k)) / len(ordered)


def hit_rate(ranks: ArrayLike, total: int, n: int) -> float:
    """1 if at least one active stands among the n best, else 0; its mean over reactions is the hit rate.

    Raises:
        InvalidInput: As `bedroc`; n below 1.
    """
    return float(checked_ranks(ranks, total)[0] <= _checked_k(n))


def auroc(ranks: ArrayLike, total: int) -> float:
    """Area under the ROC curve: the probability that an active stands before an inactive protein.

    Raises:
        InvalidInput: As `bedroc`.
    """
    ordered = checked_ranks(ranks, total)
    actives = len(ordered)
    inactives_before = int(ordered.sum()) - actives * (actives + 1) // 2
    return 1.0 - inactives_before / (actives * (total - actives))


def average_precision(ranks: ArrayLike, total: int) -> float:
    """Area under the precision-recall curve: the mean, over actives, of the precision at the active's rank.

    Raises:
        InvalidInput: As `bedroc`.
    """
    ordered = checked_ranks(ranks, total)
    return float(np.mean(np.arange(1, len(ordered) + 1) / ordered))


def tie_order(protein_ids: Sequence[str] | pa.Array) -> NDArray[np.int64]:
    """Each protein's place among the ids in ascending order: what decides between equal scores, int64 (n,)."""
    identifiers = protein_ids if isinstance(protein_ids, pa.Array) else pa.array(protein_ids, pa.string())
    order = np.empty(len(identifiers), np.int64)
    order[pc.sort_indices(identifiers).to_numpy()] = np.arange(len(identifiers))
    return order


def ranks_of(scores: NDArray[np.float32], order: NDArray[np.int64], active_rows: ArrayLike) -> Ranks:
    """Ranks of a few rows in the full ranking, highest score first, equal scores by protein id ascending.

    Args:
        scores: Scores of all proteins, float (n,), no NaN.
        order: `tie_order` of the proteins' ids, int64 (n,); made once per set.
        active_rows: Distinct row numbers of the actives, int (a,).

    Returns:
        1-based ranks, int64 (a,), in the order of `active_rows`. No full sort is made for a few actives.

    Raises:
        InvalidInput: Shapes differ, a score is NaN, or a row number is repeated or outside the set.
    """
    rows = np.asarray(active_rows)
    if scores.ndim != 1 or scores.shape != order.shape:
        raise InvalidInput(f"scores {scores.shape} and tie order {order.shape} must be two vectors of one length")
    if np.isnan(scores).any():
        raise InvalidInput(f"the score of row {int(np.flatnonzero(np.isnan(scores))[0])} is not a number")
    if rows.size == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(scores):
        raise InvalidInput(f"rows of actives must be whole numbers from 0 to {len(scores) - 1}")
    if len(np.unique(rows)) != len(rows):
        raise InvalidInput("a row of an active is given twice")
    if len(rows) <= _FEW_ACTIVES:
        better = [np.count_nonzero(scores > scores[row]) for row in rows]
        equal = [np.count_nonzero(order[scores == scores[row]] < order[row]) for row in rows]
        return np.asarray(better, np.int64) + np.asarray(equal, np.int64) + 1
    places = np.empty(len(scores), np.int64)
    places[np.lexsort((order, -scores))] = np.arange(1, len(scores) + 1)
    ranks: Ranks = places[rows]
    return ranks


def checked_ranks(ranks: ArrayLike, total: int) -> Ranks:
    """Ranks as a sorted int64 vector."""
    given = np.asarray(ranks)
    if given.size == 0:
        raise InvalidInput("there are no actives: give at least one rank")
    if given.dtype.kind == "f" and bool((given == np.floor(given)).all()):
        given = given.astype(np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InvalidInput("ranks must be a list of whole numbers, 1 for the best protein")
    ordered = np.sort(given.astype(np.int64))
    if ordered[0] < 1 or ordered[-1] > total:
        wrong = ordered[0] if ordered[0] < 1 else ordered[-1]
        raise InvalidInput(f"rank {wrong} is outside 1 to {total}; ranks count from 1")
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        raise InvalidInput(f"rank {repeated[0]} is given twice; two proteins cannot share a rank")
    if len(ordered) == total:
        raise InvalidInput(f"all {total} proteins are actives: there is nothing to tell them from")
    return ordered


def _checked_k(k: int) -> int:
    if k < 1:
        raise InvalidInput(f"the number of best proteins looked at must be at least 1, not {k}")
    return k


def _hits(ordered: Ranks, selected: int) -> int:
    return int(np.searchsorted(ordered, selected, side="right"))
