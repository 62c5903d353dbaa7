"""What a CLIPZyme checkpoint's options say about the network, and which parameters the network then has.

Options that change the numbers in a way that is not written down are refused by name rather than guessed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rayzyme.errors import CheckpointError

Aggregation = Literal["mean", "sum"]

_AGGREGATIONS: Mapping[str, Aggregation] = {"mean": "mean", "sum": "sum", "add": "sum"}
_POOLINGS: Mapping[str, Aggregation] = {"mean": "mean", "sum": "sum"}

ATOM_FEATURES = 9
BOND_FEATURES = 3

# The only value that is supported, for options that would change the network; an absent option has this value.
_FIXED: Mapping[str, Any] = {
    "model_name": "enzyme_reaction_clip",
    "protein_encoder": "egnn_sparse_network",
    "use_protein_graphs": True,
    "use_sinusoidal": True,
    "soft_edge": False,
    "edge_attr_dim": 0,
    "coor_weights_clamp_value": None,
    "chemprop_node_dim": ATOM_FEATURES,
    "chemprop_edge_dim": BOND_FEATURES,
    "use_protein_msa": False,
    "use_one_hot_mol_features": False,
    "do_matching_task": False,
    "use_as_protein_encoder": False,
    "use_as_reaction_encoder": False,
    "train_esm_with_graph": False,
}

_UNUSED_PARAMETERS = frozenset({"final_linear.weight", "attention_fc.weight"})
"""Stored by every checkpoint, used by neither embedding; their widths are not checked."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The variant of the network that a checkpoint holds.

    Attributes:
        dimension: Width of residue features and of both embeddings.
        message_dimension: Width of the messages between residues.
        protein_layers: Number of equivariant layers.
        neighbour_aggregation: How a residue joins the messages of its neighbours.
        pooling: How residues become a protein.
        normalise_features: Whether residue features pass a per-protein layer norm before each update.
        normalise_coordinates: Whether coordinate updates go along scaled unit vectors instead of plain differences.
        update_features: Whether layers change residue features.
        update_coordinates: Whether layers change coordinates.
        reaction_layers: Number of message passing steps over bonds, the first included.
        aggregate_over_edges: Whether a reaction is the sum of its changed bonds' features instead of its atoms'.
    """

    dimension: int
    message_dimension: int
    protein_layers: int
    neighbour_aggregation: Aggregation
    pooling: Aggregation
    normalise_features: bool
    normalise_coordinates: bool
    update_features: bool
    update_coordinates: bool
    reaction_layers: int
    aggregate_over_edges: bool

    @classmethod
    def from_options(cls, options: argparse.Namespace, source: str) -> Architecture:
        """Read the options stored in a checkpoint.

        Args:
            options: The checkpoint's `hyper_parameters["args"]`.
            source: Names the checkpoint in errors.

        Raises:
            CheckpointError: An option is missing, impossible, or asks for a variant that is not supported.
        """
        given = _Options(vars(options), source)
        given.require_supported()
        dimension = given.integer("protein_dim", at_least=4)
        if dimension % 2:
            raise given.unsupported("protein_dim", "even numbers (half sines, half cosines of a distance)")
        if given.integer("chemprop_hidden_dim", at_least=1) != dimension:
            raise given.unsupported("chemprop_hidden_dim", f"protein_dim, {dimension}, or the two cannot be compared")
        architecture = cls(
            dimension=dimension,
            message_dimension=given.integer("message_dim", at_least=1),
            protein_layers=given.integer("egcl_layers", at_least=1),
            neighbour_aggregation=given.one_of("neighbour_aggr", _AGGREGATIONS),
            pooling=given.one_of("pool_type", _POOLINGS),
            normalise_features=given.boolean("norm_feats"),
            normalise_coordinates=given.boolean("norm_coors"),
            update_features=given.boolean("update_feats"),
            update_coordinates=given.boolean("update_coors"),
            reaction_layers=given.integer("chemprop_num_layers", at_least=1),
            aggregate_over_edges=given.boolean("aggregate_over_edges", absent=False),
        )
        if not (architecture.update_features or architecture.update_coordinates):
            raise given.unsupported("update_feats", "True where update_coors is False: layers that change nothing")
        return architecture

    def parameter_shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Every parameter the checkpoint must hold, with its shape; None where the shape does not matter."""
        width = self.dimension
        shapes: dict[str, tuple[int, ...] | None] = {
            "logit_scale": (),
            "ln_final.weight": (width,),
            "ln_final.bias": (width,),
            **dict.fromkeys(_UNUSED_PARAMETERS),
            **_message_passing_shapes("wln", BOND_FEATURES, width),
            **_message_passing_shapes("wln_diff", width, width),
        }
        for layer in range(self.protein_layers):
            for name, shape in self._layer_shapes().items():
                shapes[f"protein_encoder.mpnn_layers.{layer}.{name}"] = shape
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        width, message = self.dimension, self.message_dimension
        shapes = _two_linear("edge_mlp", 3 * width, 2 * 3 * width, message)
        if self.normalise_features:
            shapes |= {"node_norm.weight": (width,), "node_norm.bias": (width,)}
        if self.update_features:
            shapes |= _two_linear("node_mlp", width + message, 2 * width, width)
        if self.update_coordinates:
            shapes |= _two_linear("coors_mlp", message, 4 * message, 1)
        if self.normalise_coordinates:
            shapes |= {"coors_norm.scale": (1,)}
        return shapes


def _two_linear(name: str, inputs: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.0.weight": (hidden, inputs),
        f"{name}.0.bias": (hidden,),
        f"{name}.3.weight": (outputs, hidden),
        f"{name}.3.bias": (outputs,),
    }


def _message_passing_shapes(name: str, bond_features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.W1.weight": (hidden, ATOM_FEATURES + bond_features),
        f"{name}.W2.weight": (hidden, hidden),
        f"{name}.W3.weight": (hidden, ATOM_FEATURES + hidden),
        f"{name}.W3.bias": (hidden,),
    }


class _Options:
    """Typed access to a namespace; every complaint names the checkpoint, the option and what would do."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def require_supported(self) -> None:
        for option, supported in _FIXED.items():
            value = self._values.get(option, supported)
            if value != supported and not (not supported and not value):
                raise self.unsupported(option, repr(supported))

    def unsupported(self, option: str, supported: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self._source} asks for {option}={self._values.get(option)!r}; supported: {supported}"
        )

    def integer(self, option: str, at_least: int) -> int:
        value = self._required(option)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self.unsupported(option, f"whole numbers from {at_least} up")
        return value

    def boolean(self, option: str, absent: bool | None = None) -> bool:
        value = self._required(option) if absent is None else self._values.get(option, absent)
        if value not in (True, False):
            raise self.unsupported(option, "True, False")
        return bool(value)

    def one_of(self, option: str, supported: Mapping[str, Aggregation]) -> Aggregation:
        value = self._required(option)
        if not isinstance(value, str) or value not in supported:
            raise self.unsupported(option, ", ".join(map(repr, supported)))
        return supported[value]

    def _required(self, option: str) -> Any:
        if option not in self._values:
            raise CheckpointError(f"checkpoint {self._source} does not say {option}; is it a CLIPZyme checkpoint?")
        return self._values[option]
