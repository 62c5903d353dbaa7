"""How good a checkpoint is: metrics over rankings of a whole screening set, their means and bootstrap intervals.

The metrics of a single ranking live in `rayzyme.screening.metrics` and are importable from here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayzyme.chemistry import reaction_key
from rayzyme.errors import InvalidInput, InvalidReaction
from rayzyme.screening.metrics import (
    Ranks,
    auroc,
    average_precision,
    bedroc,
    checked_ranks,
    enrichment_factor,
    hit_rate,
    ranks_of,
    tie_order,
    top_k_recall,
)

__all__ = [
    "Estimate",
    "EvaluationReport",
    "ExcludedReaction",
    "Ranking",
    "ReactionEvaluation",
    "auroc",
    "average_precision",
    "bedroc",
    "enrichment_factor",
    "evaluate",
    "hit_rate",
    "ranks_of",
    "tie_order",
    "top_k_recall",
]

BEDROC_ALPHAS = (20.0, 50.0, 85.0)
TOP_K = (1, 5, 10, 50, 100)
PERCENTS = (1.0, 5.0, 10.0)
HIT_RATE_N = (1, 5, 10, 50, 100)
RESAMPLES = 1000
SEED = 42
CONFIDENCE = 0.95

_CURVE_POINTS = 60

Exclusion = Literal["duplicate", "training", "no known enzymes", "no inactive proteins", "not encodable"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where one reaction's known enzymes stand in the ranking of a whole screening set.

    Attributes:
        reaction_id: The reaction's name in the report; unique.
        reaction: Reaction SMILES; duplicates and training reactions are recognised by `chemistry.reaction_key`.
        ranks: 1-based ranks of its actives that are in the set, int (a,), in any order.
        total: Proteins ranked: the size of the set.
        missing: Ids of actives that the set does not hold.
    """

    reaction_id: str
    reaction: str
    ranks: ArrayLike
    total: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over reactions with its bootstrap interval; no interval (None) for a single reaction."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ReactionEvaluation:
    """The metrics of one reaction.

    Attributes:
        num_actives: Its actives, those missing from the set included.
        missing: Ids of the actives that the set does not hold.
        best_rank: Rank of its best active; None where all are missing.
        metrics: Metric name -> value.
    """

    reaction_id: str
    reaction: str
    num_actives: int
    missing: tuple[str, ...]
    best_rank: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ExcludedReaction:
    """A reaction that was left out of the means."""

    reaction_id: str
    reason: Exclusion


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Everything that an evaluation found.

    Attributes:
        metrics: Metric name ("BEDROC_85", "TopK_10", "EF_1%", "AUROC", "AUPRC", "HitRate@10") -> mean and interval.
        reactions: One row per evaluated reaction, in the order given.
        excluded: Reactions left out, with the reason.
        num_total: Size of the screening set.
        recall_curve: (k, mean recall among the k best) at increasing k, roughly even on a logarithmic scale.
        resamples: Bootstrap resamples behind the intervals.
        seed: Seed of the bootstrap.
        confidence: Coverage of the intervals.
    """

    metrics: Mapping[str, Estimate]
    reactions: tuple[ReactionEvaluation, ...]
    excluded: tuple[ExcludedReaction, ...]
    num_total: int
    recall_curve: tuple[tuple[int, float], ...]
    resamples: int = RESAMPLES
    seed: int = SEED
    confidence: float = CONFIDENCE

    @property
    def num_actives(self) -> int:
        """Actives over all evaluated reactions, those missing from the set included."""
        return sum(row.num_actives for row in self.reactions)

    @property
    def num_missing_actives(self) -> int:
        """Actives over all evaluated reactions that the set does not hold."""
        return sum(len(row.missing) for row in self.reactions)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values: each metric's mean under its name, then counts, intervals and rows."""
        counts = Counter(row.reason for row in self.excluded)
        return {
            "schema": "rayzyme.evaluation/1",
            **{name: estimate.mean for name, estimate in self.metrics.items()},
            "num_reactions": len(self.reactions),
            "num_actives": self.num_actives,
            "num_missing_actives": self.num_missing_actives,
            "num_total": self.num_total,
            "intervals": {name: [estimate.low, estimate.high] for name, estimate in self.metrics.items()},
            "bootstrap": {"resamples": self.resamples, "seed": self.seed, "confidence": self.confidence},
            "num_excluded_duplicates": counts["duplicate"],
            "num_excluded_training": counts["training"],
            "excluded": [{"reaction_id": row.reaction_id, "reason": row.reason} for row in self.excluded],
            "recall_curve": {"k": [k for k, _ in self.recall_curve], "recall": [r for _, r in self.recall_curve]},
            "reactions": [
                {
                    "reaction_id": row.reaction_id,
                    "reaction": row.reaction,
                    "num_actives": row.num_actives,
                    "missing": list(row.missing),
                    "best_rank": row.best_rank,
                    **row.metrics,
                }
                for row in self.reactions
            ],
        }


def evaluate(
    rankings: Iterable[Ranking],
    *,
    training_reactions: Iterable[str] = (),
    not_encodable: Iterable[str] = (),
    alphas: Sequence[float] = BEDROC_ALPHAS,
    top_k: Sequence[int] = TOP_K,
    percents: Sequence[float] = PERCENTS,
    hit_rate_n: Sequence[int] = HIT_RATE_N,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    confidence: float = CONFIDENCE,
) -> EvaluationReport:
    """Evaluate full rankings, with means over reactions and percentile bootstrap intervals.

    An active that the set does not hold can never be found, and still counts: for every metric it is ranked after the
    whole set, as if it had been screened and come last, one place per missing active. A model cannot gain by a set
    that leaves its difficult enzymes out.

    Left out of the means, counted and named are: a reaction with the `reaction_key` of an earlier one, a reaction with
    the key of a training reaction, one without known enzymes, and one for which the set holds nothing but actives.

    Args:
        rankings: One per reaction, all over one screening set.
        training_reactions: Reaction SMILES that the checkpoint was trained on.
        not_encodable: Ids of reactions that the checkpoint could not encode; they are listed as left out.
        alphas: For BEDROC.
        top_k: For the recall among the k best.
        percents: For the enrichment factor.
        hit_rate_n: For the hit rate.
        resamples: Bootstrap resamples over reactions.
        seed: Seed of the bootstrap.
        confidence: Coverage of the intervals, between 0 and 1.

    Raises:
        InvalidInput: No reaction is left to evaluate, sets of different sizes, a repeated reaction id, ranks that are
            not valid (the reaction is named), or a parameter out of range.
        InvalidReaction: A reaction, or a training reaction, cannot be read.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise InvalidInput(f"confidence {confidence} must lie between 0 and 1, and resamples {resamples} at least at 1")
    given = list(rankings)
    total = _one_total(given)
    measures = _measures(alphas, top_k, percents, hit_rate_n)
    kept, excluded = _without_excluded(given, training_reactions)
    excluded += tuple(ExcludedReaction(reaction_id, "not encodable") for reaction_id in not_encodable)
    if not kept:
        raise InvalidInput(f"no reaction is left to evaluate: {_reasons(excluded)}")
    rows = tuple(_evaluate_one(ranking, measures) for ranking in kept)
    values = np.array([[row.metrics[name] for name in measures] for row in rows])
    return EvaluationReport(
        metrics=dict(zip(measures, _estimates(values, resamples, seed, confidence), strict=True)),
        reactions=rows,
        excluded=excluded,
        num_total=total,
        recall_curve=_recall_curve(kept, total),
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )


Measure = Callable[[Ranks, int], float]


def _measures(
    alphas: Sequence[float], top_k: Sequence[int], percents: Sequence[float], hit_rate_n: Sequence[int]
) -> dict[str, Measure]:
    """Report key -> metric, in the report's order."""
    measures: dict[str, Measure] = {}
    for alpha in alphas:
        measures[f"BEDROC_{alpha:g}"] = partial(bedroc, alpha=alpha)
    for k in top_k:
        measures[f"TopK_{k}"] = partial(top_k_recall, k=k)
    for percent in percents:
        measures[f"EF_{percent:g}%"] = partial(enrichment_factor, percent=percent)
    measures["AUROC"] = auroc
    measures["AUPRC"] = average_precision
    for n in hit_rate_n:
        measures[f"HitRate@{n}"] = partial(hit_rate, n=n)
    return measures


def _one_total(rankings: Sequence[Ranking]) -> int:
    if not rankings:
        raise InvalidInput("there is no ranking to evaluate")
    totals = {ranking.total for ranking in rankings}
    if len(totals) > 1:
        raise InvalidInput(f"the rankings are over sets of different sizes ({min(totals)} to {max(totals)} proteins)")
    if repeated := [name for name, count in Counter(r.reaction_id for r in rankings).items() if count > 1]:
        raise InvalidInput(f"the reaction id '{repeated[0]}' is given twice; ids must be unique")
    return totals.pop()


def _without_excluded(
    rankings: Sequence[Ranking], training_reactions: Iterable[str]
) -> tuple[list[Ranking], tuple[ExcludedReaction, ...]]:
    training = {_key(text, f"training reaction {position}") for position, text in enumerate(training_reactions, 1)}
    seen: set[str] = set()
    kept: list[Ranking] = []
    excluded: list[ExcludedReaction] = []
    for ranking in rankings:
        key = _key(ranking.reaction, f"reaction '{ranking.reaction_id}'")
        reason = _exclusion(ranking, key, training, seen)
        if reason is None:
            seen.add(key)
            kept.append(ranking)
        else:
            excluded.append(ExcludedReaction(ranking.reaction_id, reason))
    return kept, tuple(excluded)


def _exclusion(ranking: Ranking, key: str, training: set[str], seen: set[str]) -> Exclusion | None:
    found = np.size(ranking.ranks)
    if key in training:
        return "training"
    if key in seen:
        return "duplicate"
    if found + len(ranking.missing) == 0:
        return "no known enzymes"
    if found == ranking.total:
        return "no inactive proteins"
    return None


def _key(text: str, called: str) -> str:
    try:
        return reaction_key(text)
    except InvalidReaction as fault:
        raise InvalidReaction(f"{called}: {fault}") from fault


def _reasons(excluded: Iterable[ExcludedReaction]) -> str:
    counts = Counter(row.reason for row in excluded)
    return ", ".join(f"{count} left out ({reason})" for reason, count in counts.items())


def _with_missing_last(ranking: Ranking) -> tuple[Ranks, int]:
    """The ranks and total once the missing actives are appended after the whole set."""
    total = ranking.total + len(ranking.missing)
    found = np.asarray(ranking.ranks).reshape(-1)
    if len(found) and np.max(found) > ranking.total:
        raise InvalidInput(f"rank {np.max(found)} is beyond the {ranking.total} proteins ranked")
    appended = np.arange(ranking.total + 1, total + 1)
    return np.concatenate([found, appended]) if len(found) else appended, total


def _evaluate_one(ranking: Ranking, measures: Mapping[str, Measure]) -> ReactionEvaluation:
    try:
        ranks, total = _with_missing_last(ranking)
        checked = checked_ranks(ranks, total)
        metrics = {name: measure(checked, total) for name, measure in measures.items()}
    except InvalidInput as fault:
        raise InvalidInput(f"reaction '{ranking.reaction_id}': {fault}") from fault
    best = int(checked[0])
    return ReactionEvaluation(
        reaction_id=ranking.reaction_id,
        reaction=ranking.reaction,
        num_actives=len(checked),
        missing=tuple(ranking.missing),
        best_rank=best if best <= ranking.total else None,
        metrics=metrics,
    )


def _estimates(values: NDArray[np.float64], resamples: int, seed: int, confidence: float) -> list[Estimate]:
    """Mean and percentile interval of each column of `values`, float (reactions, metrics)."""
    reactions = len(values)
    means = values.mean(axis=0)
    if reactions == 1:
        return [Estimate(float(mean), None, None) for mean in means]
    # How often each reaction is drawn in a resample is multinomial: one matrix product gives all resampled means.
    draws = np.random.default_rng(seed).multinomial(reactions, np.full(reactions, 1 / reactions), size=resamples)
    resampled = draws @ values / reactions
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return [Estimate(float(m), float(lo), float(hi)) for m, lo, hi in zip(means, low, high, strict=True)]


def _recall_curve(rankings: Sequence[Ranking], total: int) -> tuple[tuple[int, float], ...]:
    cutoffs = np.unique(np.geomspace(1, total, _CURVE_POINTS).round().astype(np.int64))
    recall = np.zeros(len(cutoffs))
    for ranking in rankings:
        ranks, _ = _with_missing_last(ranking)
        recall += np.searchsorted(np.sort(ranks), cutoffs, side="right") / len(ranks)
    return tuple((int(k), float(r)) for k, r in zip(cutoffs, recall / len(rankings), strict=True))
