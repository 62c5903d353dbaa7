"""Screening sets and exact search: which proteins stand nearest to a reaction."""

from rayzyme.screening.index import ExactIndex
from rayzyme.screening.screening_set import CheckpointRef, ScreeningSet

__all__ = ["CheckpointRef", "ExactIndex", "ScreeningSet"]
