"""Measuring the model honestly: reactions and proteins that training did not see.

Reactions are divided by `rayzyme.chemistry.reaction_key`, so no equation is tested whose reverse, salt or stereoisomer
was trained on. Each is asked against the whole reference set; its actives are all enzymes that carry its EC number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayzyme.models.baseline.enzyme_classes import split_ec_number
from rayzyme.models.baseline.landmarks import Landmarks
from rayzyme.models.baseline.training import TrainingData
from rayzyme.models.baseline.weights_file import Towers
from rayzyme.screening.evaluation import bedroc, hit_rate, ranks_of, tie_order, top_k_recall

_RESAMPLES = 2000
_MEASURES: dict[str, Callable[[NDArray[np.int64], int], float]] = {
    "bedroc_85": lambda ranks, total: bedroc(ranks, total, 85.0),
    "bedroc_20": lambda ranks, total: bedroc(ranks, total, 20.0),
    "hit_at_1": lambda ranks, total: hit_rate(ranks, total, 1),
    "hit_at_10": lambda ranks, total: hit_rate(ranks, total, 10),
    "hit_at_100": lambda ranks, total: hit_rate(ranks, total, 100),
    "recall_at_100": lambda ranks, total: top_k_recall(ranks, total, 100),
}

Scores = Callable[[str], NDArray[np.float32]]
"""Reaction key -> score of every enzyme, float32 (enzymes,)."""


@dataclass(frozen=True)
class Measured:
    """Metrics of single test examples.

    Attributes:
        examples: (key, EC number) of each.
        values: float64 (examples, measures), columns in the order of `measures`.
        measures: Names of the columns.
    """

    examples: tuple[tuple[str, str], ...]
    values: NDArray[np.float64]
    measures: tuple[str, ...] = tuple(_MEASURES)

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """All examples of several folds together."""
        return cls(
            tuple(one for part in parts for one in part.examples), np.concatenate([part.values for part in parts])
        )

    def mean(self, measure: str = "bedroc_85") -> float:
        """Mean over the examples."""
        return float(self.values[:, self.measures.index(measure)].mean())

    def summary(self, seed: int) -> dict[str, object]:
        """Means, and a 95 % percentile bootstrap interval that resamples keys, for examples of one key go together."""
        keys = sorted({key for key, _ in self.examples})
        place = {key: row for row, key in enumerate(keys)}
        owner = np.array([place[key] for key, _ in self.examples])
        sums = np.stack([np.bincount(owner, weights=column, minlength=len(keys)) for column in self.values.T], axis=1)
        counts = np.bincount(owner, minlength=len(keys))
        generator = np.random.default_rng(seed)
        draws = generator.integers(0, len(keys), (_RESAMPLES, len(keys)))
        means = np.stack([sums[draw].sum(axis=0) / counts[draw].sum() for draw in draws])
        low, high = np.percentile(means, (2.5, 97.5), axis=0)
        return {
            "examples": len(self.examples),
            "keys": len(keys),
            **{
                name: {
                    "mean": round(self.mean(name), 4),
                    "low": round(float(low[i]), 4),
                    "high": round(float(high[i]), 4),
                }
                for i, name in enumerate(self.measures)
            },
        }


def measure(data: TrainingData, examples: Sequence[tuple[str, str]], scores: Scores) -> Measured:
    """Rank all enzymes for each example.

    Args:
        data: The enzymes.
        examples: (key, EC number); those whose EC number no enzyme has are left out.
        scores: The ranking to be measured.
    """
    carriers = _carriers(data)
    kept = tuple(example for example in examples if example[1] in carriers)
    order = tie_order(data.accessions)
    rows = []
    for key, number in kept:
        ranks = ranks_of(scores(key), order, carriers[number])
        rows.append([metric(ranks, len(data.accessions)) for metric in _MEASURES.values()])
    return Measured(kept, np.array(rows, np.float64).reshape(-1, len(_MEASURES)))


def tower_scores(data: TrainingData, towers: Towers, embeddings: NDArray[np.float16]) -> Scores:
    """Scores as the product gives them: float32 inner products with the reference set's float16 rows."""
    rows = embeddings.astype(np.float32)

    def score(key: str) -> NDArray[np.float32]:
        return np.asarray(rows @ towers.reaction.embed(data.tokens[key]).astype(np.float32))

    return score


def nearest_neighbour_scores(data: TrainingData, examples: Sequence[tuple[str, str]]) -> Scores:
    """The yardstick: an enzyme is as good as the nearest training reaction whose EC number agrees with one of its own.

    Nearness is the unweighted mean of the model's own fingerprint similarities in the better direction; the agreement,
    the share of leading EC levels in common, multiplies it.
    """
    keys = sorted({key for key, _ in examples})
    landmarks = Landmarks.build([data.tokens[key] for key in keys])
    place = {key: row for row, key in enumerate(keys)}
    owner = np.array([place[key] for key, _ in examples])
    shared = np.array([_levels_shared(number, data.classes) for _, number in examples], np.float32) / 4
    enzymes = [np.flatnonzero(row) for row in data.class_targets]

    def score(key: str) -> NDArray[np.float32]:
        nearness = landmarks.similarities(data.tokens[key]).mean(axis=1).max(axis=0)[owner]
        by_class = (nearness[:, None].astype(np.float32) * shared).max(axis=0)
        return np.array([by_class[own].max() for own in enzymes], np.float32)

    return score


def held_out_proteins(
    data: TrainingData, tower_votes: NDArray[np.float64], rows: NDArray[np.int64]
) -> dict[str, float]:
    """How often the likeliest class of unseen proteins agrees with one of theirs, level by level.

    Args:
        data: The enzymes.
        tower_votes: `ProteinTower.posterior` of the held-out proteins, float64 (rows, classes).
        rows: Their rows in the table.
    """
    guesses = [data.classes[column] for column in tower_votes.argmax(axis=1)]
    frequent = data.classes[int(data.members.argmax())]
    figures: dict[str, float] = {"proteins": len(rows)}
    for level in range(1, 5):
        truths = [{_prefix(number, level) for number in data.enzyme_classes[row]} for row in rows]
        right = [_prefix(guess, level) in truth for guess, truth in zip(guesses, truths, strict=True)]
        always = [_prefix(frequent, level) in truth for truth in truths]
        figures[f"level_{level}_accuracy"] = round(float(np.mean(right)), 4)
        figures[f"level_{level}_accuracy_of_the_largest_class"] = round(float(np.mean(always)), 4)
    return figures


def _carriers(data: TrainingData) -> Mapping[str, NDArray[np.int64]]:
    return {number: np.flatnonzero(data.class_targets[:, column]) for column, number in enumerate(data.classes)}


def _prefix(number: str, level: int) -> str:
    return ".".join(number.split(".")[:level])


def _levels_shared(number: str, others: Sequence[str]) -> list[int]:
    """Leading EC levels that a number has in common with each of others."""
    parts = split_ec_number(number)
    shared = []
    for other in others:
        agreeing = [one == two for one, two in zip(parts, split_ec_number(other), strict=True)]
        shared.append(agreeing.index(False) if False in agreeing else 4)
    return shared
