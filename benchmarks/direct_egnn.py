"""CLIPZyme's protein encoder in its direct form, as the peer that ours is measured against.

It does what the equations say, with one [h_i, h_j, emb(d)] row per edge. It shares no code with
`rayzyme.models.clipzyme`, so it also serves as an independent check of the numbers.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from rayzyme.models.clipzyme import ProteinGraph


class DirectProteinEncoder:
    """One protein at a time, float32 unless told otherwise.

    Args:
        options: The checkpoint's options.
        state_dict: The checkpoint's parameters, by their stored names.
        dtype: float64 makes it a reference for accuracy.
    """

    def __init__(
        self, options: Namespace, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self._options = options
        self._parameters = {name.removeprefix("model."): value.to(dtype) for name, value in state_dict.items()}
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, graphs: Sequence[ProteinGraph]) -> torch.Tensor:
        """(n, dimension), unit rows."""
        return torch.stack([self._encode(graph) for graph in graphs])

    def _encode(self, graph: ProteinGraph) -> torch.Tensor:
        features = torch.from_numpy(graph.features).to(self._dtype)
        positions = torch.from_numpy(graph.positions).to(self._dtype)
        neighbour, residue = torch.from_numpy(graph.edges)
        for layer in range(self._options.egcl_layers):
            features, positions = self._layer(layer, features, positions, neighbour, residue)
        pooled = features.mean(dim=0) if self._options.pool_type == "mean" else features.sum(dim=0)
        pooled = F.layer_norm(
            pooled, pooled.shape, self._parameters["ln_final.weight"], self._parameters["ln_final.bias"]
        )
        return pooled / pooled.norm()

    def _layer(
        self,
        layer: int,
        features: torch.Tensor,
        positions: torch.Tensor,
        neighbour: torch.Tensor,
        residue: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        difference = positions[neighbour] - positions[residue]
        distance = difference.norm(dim=1, keepdim=True)
        edge_input = torch.cat([features[residue], features[neighbour], self._embed_distance(distance)], dim=1)
        message = F.silu(self._linear(layer, "edge_mlp.3", F.silu(self._linear(layer, "edge_mlp.0", edge_input))))
        moved, changed = positions, features
        if self._options.update_coors:
            weight = self._linear(layer, "coors_mlp.3", F.silu(self._linear(layer, "coors_mlp.0", message)))
            if self._options.norm_coors:
                difference = self._parameter(layer, "coors_norm.scale") * difference / distance.clamp(min=1e-8)
            moved = positions + self._aggregate(weight * difference, residue, len(features))
        if self._options.update_feats:
            normed = self._normalise(layer, features) if self._options.norm_feats else features
            node_input = torch.cat([normed, self._aggregate(message, residue, len(features))], dim=1)
            changed = features + self._linear(
                layer, "node_mlp.3", F.silu(self._linear(layer, "node_mlp.0", node_input))
            )
        return changed, moved

    def _embed_distance(self, distance: torch.Tensor) -> torch.Tensor:
        half = self._options.protein_dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=self._dtype) * -(math.log(10_000) / (half - 1)))
        return torch.cat([(distance * frequencies).sin(), (distance * frequencies).cos()], dim=1)

    def _normalise(self, layer: int, features: torch.Tensor) -> torch.Tensor:
        centred = features - features.mean()
        scaled = centred / (centred.square().mean() + 1e-5).sqrt()
        return scaled * self._parameter(layer, "node_norm.weight") + self._parameter(layer, "node_norm.bias")

    def _aggregate(self, values: torch.Tensor, residue: torch.Tensor, residues: int) -> torch.Tensor:
        total = values.new_zeros(residues, values.shape[1]).index_add_(0, residue, values)
        if self._options.neighbour_aggr == "mean":
            total = total / residue.bincount(minlength=residues).clamp(min=1)[:, None]
        return total

    def _linear(self, layer: int, name: str, values: torch.Tensor) -> torch.Tensor:
        return F.linear(values, self._parameter(layer, f"{name}.weight"), self._parameter(layer, f"{name}.bias"))

    def _parameter(self, layer: int, name: str) -> torch.Tensor:
        return self._parameters[f"protein_encoder.mpnn_layers.{layer}.{name}"]
