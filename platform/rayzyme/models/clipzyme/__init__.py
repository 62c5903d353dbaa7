"""CLIPZyme (Mikhael, Chinn and Barzilay 2024, arXiv 2402.06748): its published checkpoints, read and computed here."""

from rayzyme.models.clipzyme.checkpoint import read_checkpoint
from rayzyme.models.clipzyme.encoder import ClipzymeEncoder
from rayzyme.models.clipzyme.protein_graph import ProteinGraph

__all__ = ["ClipzymeEncoder", "ProteinGraph", "read_checkpoint"]
