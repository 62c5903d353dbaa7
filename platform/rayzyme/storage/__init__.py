"""Keeping files: structures and trajectories, states of components, and what every room that writes to disk asks of it."""

from rayzyme.storage.checkpoints import CheckpointManager
from rayzyme.storage.data import DataHandler

__all__ = ["CheckpointManager", "DataHandler"]
