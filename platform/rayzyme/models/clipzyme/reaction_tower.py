"""CLIPZyme's reaction encoder: message passing over directed bonds (DMPNN, Yang et al. 2019, arXiv 1904.01561), twice.

First over both sides of a reaction, which gives every bond a vector; the two sides' vectors are added on the union of
their bonds, and a second network over the reactants' atoms with these vectors as bond features gives the reaction.
Many reactions are computed at once as one graph of unconnected parts. Bonds are lists throughout, never a matrix of
atoms by atoms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rayzyme.models.clipzyme.architecture import ATOM_FEATURES, Architecture
from rayzyme.models.clipzyme.directed_bonds import DirectedBonds
from rayzyme.models.clipzyme.reaction_graph import ReactionGraph
from rayzyme.packed_linear import PackedLinear

# Directed bonds of both sides that share one pass over the weights.
_BONDS_AT_A_TIME = {"cpu": 2048, "cuda": 65536}


class ReactionTower:
    """Reaction graphs in, unit vectors out.

    Args:
        architecture: The variant of the network.
        tensors: The checkpoint's parameters, float32 on the CPU.
        device: Where to compute.
    """

    def __init__(self, architecture: Architecture, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._architecture = architecture
        self._device = device
        self._sides = _MessagePassing("wln", tensors, architecture.reaction_layers, device)
        self._change = _MessagePassing("wln_diff", tensors, architecture.reaction_layers, device)

    def embed(self, graphs: Sequence[ReactionGraph]) -> torch.Tensor:
        """float32 (n, dimension) on the CPU, unit rows; a row of NaN where all of a reaction's features vanish."""
        with torch.inference_mode():
            batches = _batches(graphs, _BONDS_AT_A_TIME[self._device.type])
            embeddings = [self._embed_batch(batch).cpu() for batch in batches]
            return torch.cat(embeddings) if embeddings else torch.empty(0, self._architecture.dimension)

    def _embed_batch(self, graphs: Sequence[ReactionGraph]) -> torch.Tensor:
        atom_counts = [len(graph.reactants.atoms) for graph in graphs]
        first_atoms = np.cumsum([0, *atom_counts[:-1]])
        atoms = self._on_device(np.concatenate([graph.reactants.atoms for graph in graphs]))
        bonds, features = self._add_sides(graphs, first_atoms, len(atoms))
        states = self._change.bond_states(atoms, bonds, features)
        if self._architecture.aggregate_over_edges:
            total = _sum_slices(states, np.searchsorted(bonds.source, first_atoms))
        else:
            total = _sum_slices(self._change.atom_states(atoms, bonds, states), first_atoms)
        embeddings: torch.Tensor = total / torch.linalg.vector_norm(total, dim=1, keepdim=True)
        return embeddings

    def _add_sides(
        self, graphs: Sequence[ReactionGraph], first_atoms: NDArray[np.int64], atom_count: int
    ) -> tuple[DirectedBonds, torch.Tensor]:
        """The union of both sides' bonds, between reactant atoms, with the sum of their states (bonds, dimension)."""
        sides = [graph.reactants for graph in graphs] + [graph.products for graph in graphs]
        atoms = np.concatenate([side.atoms for side in sides])
        firsts = np.cumsum([0, *(len(side.atoms) for side in sides[:-1])])
        bonds = DirectedBonds(
            np.concatenate([side.source + first for side, first in zip(sides, firsts, strict=True)]),
            np.concatenate([side.target + first for side, first in zip(sides, firsts, strict=True)]),
            len(atoms),
        )
        features = np.concatenate([side.bonds for side in sides])
        states = self._sides.bond_states(self._on_device(atoms), bonds, self._on_device(features))

        origins = [graph.origin + first for graph, first in zip(graphs, first_atoms, strict=True)]
        reactant_atom = np.concatenate([np.arange(atom_count), *origins])
        keys = reactant_atom[bonds.source] * atom_count + reactant_atom[bonds.target]
        union, position = np.unique(keys, return_inverse=True)
        summed = states.new_zeros(len(union), states.shape[1]).index_add_(0, self._on_device(position), states)
        # States are sums of ReLUs: they add up to exactly 0 only where every single one is 0.
        kept = (summed.sum(dim=1) != 0).cpu().numpy()
        if not kept.all():
            union, summed = union[kept], summed[self._on_device(kept)]
        return DirectedBonds(union // atom_count, union % atom_count, atom_count), summed

    def _on_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class _MessagePassing:
    """One DMPNN with its weights; `W1` and `W3` are split by what they are applied to."""

    def __init__(self, name: str, tensors: Mapping[str, torch.Tensor], layers: int, device: torch.device) -> None:
        from_inputs, from_atoms = tensors[f"{name}.W1.weight"], tensors[f"{name}.W3.weight"]
        self._layers = layers
        self._device = device
        self._source_to_bond = from_inputs[:, :ATOM_FEATURES].t().to(device)
        self._bond_to_bond = PackedLinear(from_inputs[:, ATOM_FEATURES:], None, device)
        self._message_to_bond = PackedLinear(tensors[f"{name}.W2.weight"], None, device)
        self._atom_to_atom = from_atoms[:, :ATOM_FEATURES].t().to(device)
        self._bonds_to_atom = PackedLinear(from_atoms[:, ATOM_FEATURES:], tensors[f"{name}.W3.bias"], device)

    def bond_states(self, atoms: torch.Tensor, bonds: DirectedBonds, features: torch.Tensor) -> torch.Tensor:
        """States of directed bonds after the last step.

        Args:
            atoms: float32 (n, 9).
            bonds: e of them.
            features: float32 (e, bond features).

        Returns:
            float32 (e, dimension), none below 0.
        """
        source = torch.from_numpy(bonds.source).to(self._device)
        first = F.relu(self._bond_to_bond(features) + (atoms @ self._source_to_bond)[source])
        states = first
        feeding, offsets = (torch.from_numpy(array).to(self._device) for array in bonds.feeding())
        for _ in range(self._layers - 1):
            messages = _sum_bags(states, feeding, offsets)
            states = self._message_to_bond(messages).add_(first).relu_()
        return states

    def atom_states(self, atoms: torch.Tensor, bonds: DirectedBonds, states: torch.Tensor) -> torch.Tensor:
        """float32 (n, dimension) from the states of the bonds that enter each atom."""
        entering, offsets = (torch.from_numpy(array).to(self._device) for array in bonds.entering())
        return self._bonds_to_atom(_sum_bags(states, entering, offsets)).addmm_(atoms, self._atom_to_atom).relu_()


def _sum_bags(rows: torch.Tensor, members: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Sums of rows: bag i holds `members[offsets[i]:offsets[i + 1]]`, and an empty bag sums to 0."""
    if len(rows) == 0:
        return rows.new_zeros(len(offsets), rows.shape[1])
    return F.embedding_bag(members, rows, offsets, mode="sum")


def _sum_slices(rows: torch.Tensor, starts: NDArray[np.int64]) -> torch.Tensor:
    """Sums of consecutive rows, each slice up to the start of the next."""
    return _sum_bags(rows, torch.arange(len(rows), device=rows.device), torch.from_numpy(starts).to(rows.device))


def _batches(graphs: Sequence[ReactionGraph], bonds: int) -> Iterator[list[ReactionGraph]]:
    """Consecutive reactions of so many directed bonds together, a larger one by itself."""
    batch: list[ReactionGraph] = []
    filled = 0
    for graph in graphs:
        size = len(graph.reactants.source) + len(graph.products.source)
        if batch and filled + size > bonds:
            yield batch
            batch, filled = [], 0
        batch.append(graph)
        filled += size
    if batch:
        yield batch
