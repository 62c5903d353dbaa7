"""What every model offers: reactions and proteins in one embedding space, where the inner product is the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rayzyme.proteins import Protein

Embeddings = NDArray[np.float32]
"""float32 array of shape (n, dimension), each row of unit L2 norm."""


@runtime_checkable
class Encoder(Protocol):
    """A loaded checkpoint.

    Attributes:
        name: The name it was loaded by ("baseline", "clipzyme_v1", a file's stem).
        digest: SHA-256 of the checkpoint's bytes, hexadecimal. Part of every screening set and cache key.
        dimension: Length of an embedding.
        needs_atom_mapping: True where reactions must be atom-mapped before they can be encoded.
    """

    name: str
    digest: str
    dimension: int
    needs_atom_mapping: bool

    def encode_reactions(self, reactions: Sequence[str]) -> Embeddings:
        """Embed reaction SMILES (`reactants>>products`).

        Returns:
            float32 (n, dimension), unit rows, in the order given; the same numbers whatever else is in the batch.

        Raises:
            InvalidReaction: Names the first reaction that cannot be read, by its 1-based position and SMILES.
        """
        ...

    def encode_proteins(self, proteins: Sequence[Protein]) -> Embeddings:
        """Embed proteins.

        Returns:
            float32 (n, dimension), unit rows, in the order given.

        Raises:
            InvalidProtein: Names the first protein that cannot be encoded and why.
        """
        ...
