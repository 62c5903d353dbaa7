"""Dividing reactions so that nothing is asked that was trained on: by `rayzyme.chemistry.reaction_key`, hashed."""

from __future__ import annotations

import hashlib

FOLDS = 5


def fold_of(key: str, folds: int = FOLDS) -> int:
    """The fold, 0 to `folds - 1`, that a reaction key belongs to: a hash of the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % folds
