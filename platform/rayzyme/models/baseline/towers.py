"""The two towers: how a reaction and a protein become unit vectors of one space.

Both towers speak the same language, votes over enzyme classes, and both are projected by one table of class vectors.
A reaction votes through the landmarks it resembles; a protein votes through a small network over its sequence
features. The first coordinates keep the leading directions of all votes that landmarks can cast, so that the inner
product of two embeddings orders proteins as the full vote would; the next are a random code of each class, by which a known
reaction recognises its own classes among their neighbours; the last fills proteins up to unit length.

All arithmetic is float64 on one row at a time or row by row independent, so an embedding does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayzyme.models.baseline.features import ReactionTokens
from rayzyme.models.baseline.landmarks import Landmarks

Matrix = NDArray[np.float64]


IDENTITY_SHARPNESS = 2.0
"""Decay of a landmark's votes for its own classes with the loss of weighted similarity. Of about 25 in all, a loss of 2
leaves e^-4."""

LEAST_VOTE = 0.1
"""Share of a protein's largest vote below which a vote is dropped."""


@dataclass(frozen=True)
class Identities:
    """Votes of landmarks for their own classes alone, as parallel vectors of length k.

    Attributes:
        landmarks: Which landmark votes, int (k,).
        classes: For which class, int (k,).
        votes: How much when a query equals the landmark, float64 (k,).
    """

    landmarks: NDArray[np.int64]
    classes: NDArray[np.int64]
    votes: Matrix


@dataclass(frozen=True)
class ReactionTower:
    """Attention over landmark reactions.

    Attributes:
        landmarks: The n reactions of the training set.
        weights: Weight of each part of a similarity, float64 (parts,); their sum is the sharpness of attention.
        votes: Each landmark's votes spread over the hierarchy, in the leading directions, float64 (n, leading).
        identities: Their votes for their own classes.
        class_vectors: Each class's leading coordinates and code, float64 (classes, d - 1), no row longer than 1.
    """

    landmarks: Landmarks
    weights: Matrix
    votes: Matrix
    identities: Identities
    class_vectors: Matrix

    @cached_property
    def _identity_vectors(self) -> Matrix:
        codes = self.class_vectors[:, self.votes.shape[1] :]
        directions = codes / np.linalg.norm(codes, axis=1, keepdims=True)
        return np.asarray(self.identities.votes[:, None] * directions[self.identities.classes])

    def embed(self, reaction: ReactionTokens) -> Matrix:
        """float64 (d,), unit length.

        A landmark that the reaction equals or nearly equals also votes for its own classes, whatever other landmarks
        say: known reactions find their known enzymes.
        """
        parts = self.landmarks.similarities(reaction)
        similarity = np.max(np.einsum("p,dpn->dn", self.weights, parts), axis=0)
        attention = np.exp(similarity - similarity.max())
        attention /= attention.sum()
        sameness = np.exp(IDENTITY_SHARPNESS * (similarity - self.weights.sum()))
        spread = attention @ self.votes
        identity = sameness[self.identities.landmarks] @ self._identity_vectors
        projected = np.concatenate([spread / np.linalg.norm(spread), identity, [0.0]])
        return np.asarray(projected / np.linalg.norm(projected))


@dataclass(frozen=True)
class ProteinTower:
    """A network with one hidden layer that votes for enzyme classes.

    Attributes:
        hidden_weight: float64 (features, hidden).
        hidden_bias: float64 (hidden,).
        class_weight: float64 (hidden, classes).
        class_bias: float64 (classes,).
        class_vectors: As in `ReactionTower`, float64 (classes, d - 1).
    """

    hidden_weight: Matrix
    hidden_bias: Matrix
    class_weight: Matrix
    class_bias: Matrix
    class_vectors: Matrix

    def posterior(self, features: NDArray[np.float32]) -> Matrix:
        """Votes of proteins, float64 (n, classes), rows sum to 1.

        Votes below a tenth of a protein's largest are dropped. Thousands of tiny votes are noise that would reach the
        ranking: a large class votes weakly by design, and a stray thousandth of a vote for a small class outweighs it.

        Args:
            features: float32 (n, features).
        """
        hidden = np.maximum(features.astype(np.float64) @ self.hidden_weight + self.hidden_bias, 0)
        logits = hidden @ self.class_weight + self.class_bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds[odds < LEAST_VOTE] = 0
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def embed(self, features: NDArray[np.float32]) -> Matrix:
        """float64 (n, d), unit rows.

        The last coordinate, 0 in every reaction, fills a vector up to unit length: the inner product then stays the
        vote itself (Bachrach et al. 2014, doi 10.1145/2645710.2645741), and a protein that the network is unsure
        about scores low with every reaction.
        """
        projected = self.posterior(features) @ self.class_vectors
        rest = np.sqrt(np.maximum(1 - np.square(projected).sum(axis=1), 0))
        full = np.column_stack([projected, rest])
        return np.asarray(full / np.linalg.norm(full, axis=1, keepdims=True))
