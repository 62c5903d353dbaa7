"""Numbers from text: the fingerprints of a reaction and the composition of a protein sequence.

Both are pure functions without parameters. A reaction is read through `rayzyme.chemistry.reaction_key`, so two
equations that name one transformation (either direction, any protonation, stereochemistry or atom map) have the same
features, bit by bit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rdkit.Chem import rdFingerprintGenerator

from rayzyme.chemistry.reactions import read_molecule
from rayzyme.proteins import AMINO_ACIDS

Tokens = NDArray[np.int64]

DIFFERENCES = ("pairs", "atoms", "molecules")
"""Fingerprints compared as differences between the two sides of a reaction."""

SUMS = ("atoms",)
"""Fingerprints compared as the sum of both sides."""

SEQUENCE_FEATURES = 2048

_COUNT_LEVELS = (1, 2, 3, 4, 6, 8, 12, 16)
_PAIR_DISTANCE = 4
_CACHED_MOLECULES = 32_768
_GENERATORS = {
    "pairs": rdFingerprintGenerator.GetAtomPairGenerator(maxDistance=_PAIR_DISTANCE),
    "atoms": rdFingerprintGenerator.GetMorganGenerator(radius=0),
}
_IDENTITY = rdFingerprintGenerator.GetMorganGenerator(radius=3)


@dataclass(frozen=True, slots=True)
class ReactionTokens:
    """A reaction as sets of tokens; a token is a substructure with a count that its molecules reach.

    Sets of such tokens have the min-max (Tanimoto) similarity of the underlying count vectors.

    Attributes:
        forward: Per fingerprint of `DIFFERENCES`, what each side has more than the other, sorted int64.
        backward: The same with the two sides exchanged.
        total: Per fingerprint of `SUMS`, what both sides have together, sorted int64.
    """

    forward: Mapping[str, Tokens]
    backward: Mapping[str, Tokens]
    total: Mapping[str, Tokens]


def reaction_tokens(key: str) -> ReactionTokens:
    """The fingerprints of a reaction: atom pairs (Carhart et al. 1985, doi 10.1021/ci00046a002), atoms, molecules.

    Args:
        key: What `rayzyme.chemistry.reaction_key` gives: `side>>side` of neutral molecules without stereochemistry.
    """
    left, right = key.split(">>")
    forward, backward, total = {}, {}, {}
    for name in sorted({*DIFFERENCES, *SUMS}):
        one, other = _side_counts(left, name), _side_counts(right, name)
        if name in DIFFERENCES:
            gained, lost = _levels(other - one), _levels(one - other)
            forward[name], backward[name] = _signed(gained, lost), _signed(lost, gained)
        if name in SUMS:
            total[name] = _levels(one + other)
    return ReactionTokens(forward, backward, total)


def sequence_features(sequence: str) -> NDArray[np.float32]:
    """What a sequence is made of: amino acids, their pairs, and hashed words of three to five residues.

    Words are counted in the full alphabet (three residues) and in one of seven physicochemical classes (four and five),
    each into its own block; every block holds square roots of counts and has unit L2 norm, so that long proteins do not
    outweigh short ones.

    Args:
        sequence: As `rayzyme.proteins.validate_sequence` returns it; letters other than the 20 end a word.

    Returns:
        float32 (SEQUENCE_FEATURES,).
    """
    residues = _RESIDUE_CODES[np.frombuffer(sequence.encode("ascii"), np.uint8)]
    classes = _CLASS_CODES[residues]
    blocks = [
        np.bincount(_words(residues, 1, 20), minlength=20),
        np.bincount(_words(residues, 2, 20), minlength=400),
        _hashed(_words(residues, 3, 20), 604),
        _hashed(_words(classes, 4, 8), 512),
        _hashed(_words(classes, 5, 8), 512),
    ]
    rooted = [np.sqrt(block.astype(np.float64)) for block in blocks]
    unit = [block / max(float(np.linalg.norm(block)), 1e-12) for block in rooted]
    return np.concatenate(unit).astype(np.float32)


def _side_counts(side: str, name: str) -> Counter[int]:
    counts: Counter[int] = Counter()
    for molecule in side.split(".") if side else ():
        counts.update(_molecule_counts(molecule)[name])
    return counts


@lru_cache(maxsize=_CACHED_MOLECULES)
def _molecule_counts(smiles: str) -> dict[str, dict[int, int]]:
    """Substructure -> count, per fingerprint. Cofactors recur: hence the cache."""
    molecule = read_molecule(smiles)
    counts: dict[str, dict[int, int]] = {
        name: dict(generator.GetSparseCountFingerprint(molecule).GetNonzeroElements())
        for name, generator in _GENERATORS.items()
    }
    environments = sorted(_IDENTITY.GetSparseCountFingerprint(molecule).GetNonzeroElements().items())
    # Environments rather than the SMILES name the molecule: canonical SMILES differ between releases of RDKit.
    digest = hashlib.sha256(repr([(int(code), int(count)) for code, count in environments]).encode()).digest()
    counts["molecules"] = {int.from_bytes(digest[:4], "big"): 1}
    return counts


def _levels(counts: Mapping[int, int]) -> Tokens:
    """One token for each level of `_COUNT_LEVELS` that a substructure's count reaches, with the sign bit 0."""
    reached = [
        (code * len(_COUNT_LEVELS) + level) * 2
        for code, count in counts.items()
        for level, least in enumerate(_COUNT_LEVELS)
        if count >= least
    ]
    return np.array(sorted(reached), np.int64)


def _signed(gained: Tokens, lost: Tokens) -> Tokens:
    return np.sort(np.concatenate([gained, lost + 1]))


def _code_table(groups: Iterable[str]) -> NDArray[np.int64]:
    table = np.full(256, -1, np.int64)
    for code, letters in enumerate(groups):
        for letter in letters:
            table[ord(letter)] = code
    return table


_RESIDUE_CODES = _code_table(AMINO_ACIDS)
_CLASS_OF_LETTER = _code_table(("AGPST", "ILMV", "FWY", "DE", "KR", "NQH", "C"))
# The last place is reached by code -1, a letter that is none of the 20.
_CLASS_CODES = np.array([*(_CLASS_OF_LETTER[ord(letter)] for letter in AMINO_ACIDS), -1], np.int64)


def _words(codes: NDArray[np.int64], length: int, base: int) -> NDArray[np.int64]:
    """Every word of `length` neighbouring codes as one number, words with a code of -1 left out."""
    count = len(codes) - length + 1
    if count < 1:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, length)
    valid = windows[(windows >= 0).all(axis=1)]
    powers = base ** np.arange(length, dtype=np.int64)
    words: NDArray[np.int64] = valid @ powers
    return words


def _hashed(words: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Counts of words in `buckets` places, chosen by a multiplicative hash (Knuth's 2^64 / golden ratio)."""
    spread = (words.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    places = (spread >> np.uint64(40)) % np.uint64(buckets)
    return np.bincount(places.astype(np.int64), minlength=buckets)
