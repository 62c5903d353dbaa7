"""Checkpoints in CLIPZyme's published format with seeded random weights, and inputs to go with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayzyme.models.clipzyme import ProteinGraph
from rayzyme.models.clipzyme.architecture import Architecture

PUBLISHED_OPTIONS: dict[str, Any] = {
    "model_name": "enzyme_reaction_clip",
    "protein_encoder": "egnn_sparse_network",
    "use_protein_graphs": True,
    "protein_dim": 1280,
    "feat_proj_dim": 1280,
    "message_dim": 24,
    "egcl_layers": 6,
    "neighbour_aggr": "mean",
    "pool_type": "sum",
    "norm_feats": True,
    "norm_coors": True,
    "update_feats": True,
    "update_coors": True,
    "use_sinusoidal": True,
    "soft_edge": 0,
    "edge_attr_dim": 0,
    "coor_weights_clamp_value": None,
    "chemprop_node_dim": 9,
    "chemprop_edge_dim": 3,
    "chemprop_hidden_dim": 1280,
    "chemprop_num_layers": 5,
    "aggregate_over_edges": False,
}


def clipzyme_options(**changes: Any) -> argparse.Namespace:
    """The published options, some of them changed."""
    return argparse.Namespace(**{**PUBLISHED_OPTIONS, **changes})


def random_state_dict(options: argparse.Namespace, seed: int = 0) -> dict[str, torch.Tensor]:
    """Parameters of the shapes that supported options ask for, of the magnitude that training starts from."""
    generator = torch.Generator().manual_seed(seed)
    shapes = Architecture.from_options(options, "a random checkpoint").parameter_shapes()
    unused = {"final_linear.weight": (4, 4), "attention_fc.weight": (1, 4)}
    return {
        f"model.{name}": _random_parameter(name, shape if shape is not None else unused[name], generator)
        for name, shape in shapes.items()
    }


def write_checkpoint(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint with random weights; keyword arguments change the published options."""
    options = clipzyme_options(**changes)
    content = {"hyper_parameters": {"args": options}, "state_dict": random_state_dict(options, seed), "epoch": 29}
    torch.save(content, path)
    return path


def random_protein_graph(residues: int, width: int, seed: int = 0) -> ProteinGraph:
    """A chain that folds back on itself like a protein: steps of 3.8 ångström inside a sphere of protein density."""
    random = np.random.default_rng(seed)
    radius = 2.2 * residues ** (1 / 3) + 4
    positions = np.zeros((residues, 3))
    for residue in range(1, residues):
        step = random.normal(size=3) - 0.8 * positions[residue - 1] / radius
        positions[residue] = positions[residue - 1] + 3.8 * step / np.linalg.norm(step)
    return ProteinGraph(positions, random.normal(size=(residues, width)))


def _random_parameter(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name == "logit_scale":
        return torch.tensor(2.66)
    if name.endswith("scale"):
        return torch.full(shape, 0.01)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if "norm" in name or name.startswith("ln_"):
        return 1 + 0.1 * noise
    return noise * (2 / sum(shape)) ** 0.5
