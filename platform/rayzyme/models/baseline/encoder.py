"""The bundled encoder: reactions by their fingerprints, proteins by their sequence, 256 numbers each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rayzyme.chemistry import parse_reaction, reaction_key
from rayzyme.models.baseline.features import reaction_tokens, sequence_features
from rayzyme.models.baseline.weights_file import Towers, read_weights
from rayzyme.models.encoder import Embeddings
from rayzyme.proteins import Protein, validate_sequence

DATA = Path(__file__).parent / "data"
BUNDLED_WEIGHTS = DATA / "weights.safetensors"
REFERENCE_SET = DATA / "reference_set.arrow"

# Enough rows to keep matrix products busy, few enough to hold the votes of a batch in a few megabytes.
_PROTEINS_AT_ONCE = 128


class BaselineEncoder:
    """Small two-tower model with real signal; for discovery work use CLIPZyme's weights.

    Reactions with one `rayzyme.chemistry.reaction_key` have one embedding: direction, protonation, stereochemistry, atom
    maps, agents and repeated molecules change nothing.

    Attributes:
        name: "baseline".
        digest: SHA-256 of the weights file, hexadecimal.
        dimension: Length of an embedding.
        needs_atom_mapping: False.
    """

    def __init__(self, towers: Towers, digest: str) -> None:
        """Wrap loaded towers; use `load` instead."""
        self.name = "baseline"
        self.digest = digest
        self.dimension = towers.dimension
        self.needs_atom_mapping = False
        self._towers = towers

    @classmethod
    def load(cls, path: str | Path | None = None) -> BaselineEncoder:
        """Open a weights file, by default the bundled one. Takes well under a second; no GPU is used.

        Raises:
            NotFound: There is no such file.
            CheckpointError: It is damaged or of another kind; the message says what was found.
        """
        file = BUNDLED_WEIGHTS if path is None else Path(path)
        towers = read_weights(file)
        return cls(towers, hashlib.sha256(file.read_bytes()).hexdigest())

    def encode_reactions(self, reactions: Sequence[str]) -> Embeddings:
        """Embed reaction SMILES.

        Args:
            reactions: `reactants>>products` or `reactants>agents>products`, mapped or not.

        Returns:
            float32 (n, dimension), unit rows, in the order given; the same numbers whatever else is in the batch.

        Raises:
            InvalidReaction: Names the first reaction that cannot be read, by its 1-based position and SMILES.
        """
        keys = [
            reaction_key(parse_reaction(text, called=f"reaction {position}").equation)
            for position, text in enumerate(reactions, start=1)
        ]
        embedded = {key: self._towers.reaction.embed(reaction_tokens(key)) for key in dict.fromkeys(keys)}
        rows = [embedded[key] for key in keys]
        return np.array(rows, np.float32).reshape(len(rows), self.dimension)

    def encode_proteins(self, proteins: Sequence[Protein]) -> Embeddings:
        """Embed proteins by their sequence alone.

        Returns:
            float32 (n, dimension), unit rows, in the order given; the same numbers whatever else is in the batch.

        Raises:
            InvalidProtein: Names the first protein whose sequence is empty or has letters that are no amino acids.
        """
        batches = [self._towers.protein.embed(features) for features in _feature_batches(proteins)]
        rows = np.concatenate(batches) if batches else np.empty((0, self.dimension))
        return rows.astype(np.float32)


def _feature_batches(proteins: Sequence[Protein]) -> Iterator[np.ndarray]:
    for start in range(0, len(proteins), _PROTEINS_AT_ONCE):
        batch = proteins[start : start + _PROTEINS_AT_ONCE]
        yield np.stack([sequence_features(validate_sequence(one.sequence, one.protein_id)) for one in batch])
