"""Protein graphs, single and joined: residues with positions and features, edges from neighbours to residues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from rayzyme.errors import InvalidProtein
from rayzyme.structures import nearest_neighbour_edges


@dataclass(frozen=True, eq=False)
class ProteinGraph:
    """One protein as CLIPZyme sees it; the arrays are checked and brought to their types on construction.

    Attributes:
        positions: float32 (n, 3), one point per residue in ångström; where the origin lies does not matter.
        features: float32 (n, d), one row per residue, d as the checkpoint has it.
        edges: int64 (2, e): neighbours in row 0, the residues they inform in row 1, in any order. None at construction
            means each residue's 10 nearest neighbours (all others, in a protein of fewer than 11 residues).

    Raises:
        InvalidProtein: No residues, shapes that do not agree, values that are not finite, or edges out of range.
    """

    positions: NDArray[np.float32]
    features: NDArray[np.float32]
    edges: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        positions = _floats("positions", self.positions)
        features = _floats("features", self.features)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise InvalidProtein(f"positions have shape {positions.shape}; (n, 3) is needed")
        if features.ndim != 2 or features.shape[1] == 0:
            raise InvalidProtein(f"features have shape {features.shape}; (n, width) is needed")
        if len(positions) != len(features):
            raise InvalidProtein(f"{len(positions)} positions and {len(features)} rows of features; one per residue")
        if len(positions) == 0:
            raise InvalidProtein("a protein graph without residues")
        for name, values in (("positions", positions), ("features", features)):
            if not np.isfinite(values).all():
                residue = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise InvalidProtein(f"{name} hold NaN or infinite values, first at residue {residue + 1}")
        edges = nearest_neighbour_edges(positions) if self.edges is None else _edges(self.edges, len(positions))
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "edges", edges)

    def __len__(self) -> int:
        """Number of residues."""
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class JoinedGraphs:
    """Several protein graphs as one with as many components.

    Attributes:
        sizes: Residues of each protein.
        positions: float32 (N, 3), each protein about its own mean.
        features: float32 (N, d).
        neighbour: int64 (E,) source of each edge.
        residue: int64 (E,) target of each edge, ascending.
        in_degree: float32 (N, 1), edges that enter each residue, at least 1: what a mean divides by.
    """

    sizes: list[int]
    positions: torch.Tensor
    features: torch.Tensor
    neighbour: torch.Tensor
    residue: torch.Tensor
    in_degree: torch.Tensor


def join_graphs(graphs: Sequence[ProteinGraph], device: torch.device) -> JoinedGraphs:
    """Put graphs side by side on a device, the second one's residues numbered on from the first one's."""
    sizes = [len(graph) for graph in graphs]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    edges = np.concatenate(
        [cast(NDArray[np.int64], graph.edges) + start for graph, start in zip(graphs, starts, strict=True)], axis=1
    )
    edges = edges[:, np.argsort(edges[1], kind="stable")]
    in_degree = np.bincount(edges[1], minlength=sum(sizes)).clip(min=1).astype(np.float32)
    # Distances are differences: about the mean, float32 loses the fewest digits of them.
    centred = np.concatenate([graph.positions - graph.positions.mean(axis=0) for graph in graphs])

    def on_device(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return JoinedGraphs(
        sizes=sizes,
        positions=on_device(centred),
        features=on_device(np.concatenate([graph.features for graph in graphs])),
        neighbour=on_device(edges[0]),
        residue=on_device(edges[1]),
        in_degree=on_device(in_degree[:, None]),
    )


def _floats(name: str, values: Any) -> NDArray[np.float32]:
    try:
        plain = values.detach().cpu() if isinstance(values, torch.Tensor) else values
        return np.ascontiguousarray(plain, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidProtein(f"{name} are not an array of numbers: {error}") from error


def _edges(values: Any, residues: int) -> NDArray[np.int64]:
    edges = np.asarray(values)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InvalidProtein(f"edges have shape {edges.shape}; (2, e) is needed: rows neighbour, residue")
    if edges.size and not np.issubdtype(edges.dtype, np.integer):
        raise InvalidProtein(f"edges have type {edges.dtype}; whole numbers are needed")
    if edges.size and (edges.min() < 0 or edges.max() >= residues):
        raise InvalidProtein(f"edges name residues {edges.min()} to {edges.max()}; the protein has 0 to {residues - 1}")
    return edges.astype(np.int64)
