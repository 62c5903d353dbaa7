"""CLIPZyme's protein encoder: equivariant message passing over residues (EGNN, Satorras et al. 2021, arXiv 2102.09844).

The first layer of the edge network is linear in [h_i, h_j, emb(d)] and by far the largest product of the model, so it
is never formed per edge: h is projected once per residue, the projections are gathered per edge, and the distance part
comes from a short polynomial (see `distance_expansion`). The wide hidden layer of the edges exists only for a few
hundred edges at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F

from rayzyme.models.clipzyme.architecture import Architecture
from rayzyme.models.clipzyme.distance_expansion import DistanceExpansion
from rayzyme.models.clipzyme.protein_graph import JoinedGraphs, ProteinGraph, join_graphs
from rayzyme.packed_linear import PackedLinear

# Hidden edge activations held at a time. On a CPU (16 MB) few enough for its caches and so many that threads seldom wait
# for each other, which on a busy machine costs more than the caches give; on a GPU (1 GB) what keeps it busy.
_EDGE_ACTIVATIONS_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 28}

# Residues that share one pass over the weights; more gain nothing and cost memory.
_RESIDUES_AT_A_TIME = {"cpu": 1024, "cuda": 8192}

_SHORTEST_DISTANCE = 1e-8
_NORM_EPSILON = 1e-5


class ProteinTower:
    """Protein graphs in, unit vectors out.

    Args:
        architecture: The variant of the network.
        tensors: The checkpoint's parameters, float32 on the CPU.
        device: Where to compute.
    """

    def __init__(self, architecture: Architecture, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._architecture = architecture
        self._device = device
        self._layers = [
            _Layer(architecture, _below(f"protein_encoder.mpnn_layers.{index}.", tensors), device)
            for index in range(architecture.protein_layers)
        ]
        self._final_norm = tensors["ln_final.weight"].to(device), tensors["ln_final.bias"].to(device)

    def embed(self, graphs: Sequence[ProteinGraph]) -> torch.Tensor:
        """Embed graphs whose features have the checkpoint's width: float32 (n, dimension), unit rows, on the CPU."""
        with torch.inference_mode():
            batches = _batches(graphs, _RESIDUES_AT_A_TIME[self._device.type])
            embeddings = [self._embed_batch(join_graphs(batch, self._device)).cpu() for batch in batches]
            return torch.cat(embeddings) if embeddings else torch.empty(0, self._architecture.dimension)

    def _embed_batch(self, graphs: JoinedGraphs) -> torch.Tensor:
        features, positions = graphs.features, graphs.positions
        for layer in self._layers:
            is_last = layer is self._layers[-1]
            features, positions = layer.update(features, positions, graphs, moves_residues=not is_last)
        pooled = torch.stack([part.sum(dim=0) for part in torch.split(features, graphs.sizes)])
        if self._architecture.pooling == "mean":
            pooled = pooled / torch.tensor(graphs.sizes, device=self._device)[:, None]
        weight, bias = self._final_norm
        return F.normalize(F.layer_norm(pooled, weight.shape, weight, bias, _NORM_EPSILON), dim=1, eps=0.0)


class _Layer:
    """One round of messages from neighbours to residues."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._architecture = architecture
        width = architecture.dimension
        to_hidden = tensors["edge_mlp.0.weight"]
        hidden = len(to_hidden)
        # Receiver and sender projection in one product; its bias is the receiver's share.
        self._project = PackedLinear(
            torch.cat([to_hidden[:, :width], to_hidden[:, width : 2 * width]]),
            torch.cat([tensors["edge_mlp.0.bias"], torch.zeros(hidden)]),
            device,
        )
        self._distance = DistanceExpansion(to_hidden[:, 2 * width :], device)
        self._to_message = PackedLinear(tensors["edge_mlp.3.weight"], tensors["edge_mlp.3.bias"], device)
        self._edges_at_a_time = max(16, _EDGE_ACTIVATIONS_AT_A_TIME[device.type] // hidden)
        if architecture.normalise_features:
            self._norm_weight = tensors["node_norm.weight"].to(device)
            self._norm_bias = tensors["node_norm.bias"].to(device)
        if architecture.update_features:
            self._node_hidden = PackedLinear(tensors["node_mlp.0.weight"], tensors["node_mlp.0.bias"], device)
            self._node_out = PackedLinear(tensors["node_mlp.3.weight"], tensors["node_mlp.3.bias"], device)
        if architecture.update_coordinates:
            self._weight_hidden = PackedLinear(tensors["coors_mlp.0.weight"], tensors["coors_mlp.0.bias"], device)
            self._weight_out = PackedLinear(tensors["coors_mlp.3.weight"], tensors["coors_mlp.3.bias"], device)
        if architecture.normalise_coordinates:
            self._coordinate_scale = tensors["coors_norm.scale"].to(device)

    def update(
        self, features: torch.Tensor, positions: torch.Tensor, graphs: JoinedGraphs, *, moves_residues: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, width) and positions (N, 3) after the layer, both from its input.

        The last layer need not move residues: nothing looks at their positions any more.
        """
        towards_neighbour = positions[graphs.neighbour] - positions[graphs.residue]
        distances = torch.linalg.vector_norm(towards_neighbour, dim=1)
        messages = self._messages(features, distances, graphs)
        if self._architecture.update_coordinates and moves_residues:
            positions = positions + self._displacement(messages, towards_neighbour, distances, graphs)
        if self._architecture.update_features:
            features = features + self._feature_change(features, messages, graphs)
        return features, positions

    def _messages(self, features: torch.Tensor, distances: torch.Tensor, graphs: JoinedGraphs) -> torch.Tensor:
        """(E, message width)."""
        # Rows 2i and 2i + 1: what residue i contributes as the receiver and as the sender of a message.
        projections = self._project(features).view(2 * len(features), -1)
        ends = torch.stack([2 * graphs.residue, 2 * graphs.neighbour + 1], dim=1)
        basis, coefficients = self._distance.expand(distances)
        messages = features.new_empty(len(distances), self._architecture.message_dimension)
        for start in range(0, len(distances), self._edges_at_a_time):
            part = slice(start, start + self._edges_at_a_time)
            hidden = F.embedding_bag(ends[part], projections, mode="sum")
            F.silu(hidden.addmm_(basis[part], coefficients), inplace=True)
            messages[part] = F.silu(self._to_message(hidden), inplace=True)
        return messages

    def _displacement(
        self, messages: torch.Tensor, towards_neighbour: torch.Tensor, distances: torch.Tensor, graphs: JoinedGraphs
    ) -> torch.Tensor:
        """(N, 3)."""
        weights = self._weight_out(F.silu(self._weight_hidden(messages)))
        if self._architecture.normalise_coordinates:
            weights = weights * (self._coordinate_scale / distances.clamp(min=_SHORTEST_DISTANCE)[:, None])
        return self._aggregate(weights * towards_neighbour, graphs)

    def _feature_change(self, features: torch.Tensor, messages: torch.Tensor, graphs: JoinedGraphs) -> torch.Tensor:
        """(N, width)."""
        if self._architecture.normalise_features:
            parts = torch.split(features, graphs.sizes)
            features = torch.cat([F.layer_norm(part, part.shape, eps=_NORM_EPSILON) for part in parts])
            features.mul_(self._norm_weight).add_(self._norm_bias)
        hidden = self._node_hidden(torch.cat([features, self._aggregate(messages, graphs)], dim=1))
        return self._node_out(F.silu(hidden, inplace=True))

    def _aggregate(self, per_edge: torch.Tensor, graphs: JoinedGraphs) -> torch.Tensor:
        per_residue = per_edge.new_zeros(len(graphs.in_degree), per_edge.shape[1])
        per_residue.index_add_(0, graphs.residue, per_edge)
        if self._architecture.neighbour_aggregation == "mean":
            per_residue /= graphs.in_degree
        return per_residue


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _batches(graphs: Sequence[ProteinGraph], residues: int) -> Iterator[list[ProteinGraph]]:
    """Consecutive graphs of so many residues together, a longer one by itself."""
    batch: list[ProteinGraph] = []
    for graph in graphs:
        if batch and sum(map(len, batch)) + len(graph) > residues:
            yield batch
            batch = []
        batch.append(graph)
    if batch:
        yield batch
