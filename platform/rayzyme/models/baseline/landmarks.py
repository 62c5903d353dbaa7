"""Similarity of a reaction to each of the landmark reactions that the model was trained on.

Every fingerprint is an inverted index (token -> landmarks that have it), so one query costs a few thousand additions
and no dense matrix is held. Sums run in the order of the query's sorted tokens: the numbers do not depend on what else
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayzyme.models.baseline.features import DIFFERENCES, SUMS, ReactionTokens, Tokens

SIMILARITIES = (*(f"difference_{name}" for name in DIFFERENCES), *(f"sum_{name}" for name in SUMS))
"""Names of the parts of a similarity, in the order of their weights."""


@dataclass(frozen=True)
class TokenIndex:
    """Token sets of n landmarks, searchable by token.

    Attributes:
        vocabulary: All tokens, int64 (v,), ascending.
        offsets: Where each landmark's tokens begin, int64 (n + 1,).
        places: Concatenated places of the landmarks' tokens in the vocabulary, uint16 (offsets[-1],).
        weighted: Whether a token counts by its inverse document frequency (Jones 1972), else each counts 1.
    """

    vocabulary: Tokens
    offsets: NDArray[np.int64]
    places: NDArray[np.uint16]
    weighted: bool

    @classmethod
    def build(cls, sets: Sequence[Tokens], *, weighted: bool) -> TokenIndex:
        """Index the token sets of the landmarks."""
        vocabulary = np.unique(np.concatenate(sets))
        if len(vocabulary) > np.iinfo(np.uint16).max:
            raise ValueError(f"{len(vocabulary)} tokens do not fit the file format, which numbers them in 16 bits")
        offsets = np.cumsum([0, *(len(tokens) for tokens in sets)])
        places = np.searchsorted(vocabulary, np.concatenate(sets)).astype(np.uint16)
        return cls(vocabulary, offsets.astype(np.int64), places, weighted)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def _postings(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Landmarks grouped by token, and where each token's group begins."""
        owners = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        order = np.argsort(self.places, kind="stable")
        begins = np.searchsorted(self.places[order], np.arange(len(self.vocabulary) + 1))
        return owners[order], begins

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        if not self.weighted:
            return np.ones(len(self.vocabulary))
        frequency = np.bincount(self.places, minlength=len(self.vocabulary))
        return np.log((len(self) + 1) / (frequency + 1))

    @cached_property
    def _masses(self) -> NDArray[np.float64]:
        """Summed token weights of each landmark."""
        owners = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return np.asarray(np.bincount(owners, weights=self._weights[self.places], minlength=len(self)), np.float64)

    def similarities(self, tokens: Tokens) -> NDArray[np.float64]:
        """Tanimoto similarity of a token set to every landmark's, 1 where both sets are empty.

        Returns:
            float64 (n,), 0 to 1.
        """
        owners, begins = self._postings
        found = np.searchsorted(self.vocabulary, tokens)
        known = self.vocabulary[np.minimum(found, len(self.vocabulary) - 1)] == tokens
        places = found[known]
        shared = np.zeros(len(self))
        for place in places:
            shared[owners[begins[place] : begins[place + 1]]] += self._weights[place]
        # A token that no landmark has weighs as much as a token can.
        unknown = np.log(len(self) + 1) if self.weighted else 1.0
        mass = float(self._weights[places].sum()) + unknown * float(np.count_nonzero(~known))
        union = self._masses + mass - shared
        return np.where(union > 0, shared / np.where(union > 0, union, 1), 1.0)


@dataclass(frozen=True)
class Landmarks:
    """The token indices of all fingerprints over one list of landmark reactions.

    Attributes:
        differences: One index per fingerprint of `DIFFERENCES`, of the landmarks' forward tokens.
        sums: One per fingerprint of `SUMS`.
    """

    differences: Mapping[str, TokenIndex]
    sums: Mapping[str, TokenIndex]

    @classmethod
    def build(cls, reactions: Sequence[ReactionTokens]) -> Landmarks:
        """Index the landmarks."""
        return cls(
            {name: TokenIndex.build([one.forward[name] for one in reactions], weighted=False) for name in DIFFERENCES},
            {name: TokenIndex.build([one.total[name] for one in reactions], weighted=True) for name in SUMS},
        )

    def similarities(self, reaction: ReactionTokens) -> NDArray[np.float64]:
        """Similarity to every landmark, part by part and in both directions.

        Returns:
            float64 (2, len(SIMILARITIES), n): the query as it stands, and with its sides exchanged.
        """
        sums = [self.sums[name].similarities(reaction.total[name]) for name in SUMS]
        directions = [
            [self.differences[name].similarities(side[name]) for name in DIFFERENCES] + sums
            for side in (reaction.forward, reaction.backward)
        ]
        return np.array(directions)
