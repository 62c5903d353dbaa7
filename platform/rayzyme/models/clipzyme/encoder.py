"""CLIPZyme as an `Encoder`: checkpoints in, unit vectors of reactions and proteins out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rayzyme.chemistry import prepare_reactions
from rayzyme.errors import CheckpointError, DeviceUnavailable, InvalidProtein, InvalidReaction
from rayzyme.models.clipzyme.checkpoint import Parameters, load_parameters
from rayzyme.models.clipzyme.protein_graph import ProteinGraph
from rayzyme.models.clipzyme.protein_tower import ProteinTower
from rayzyme.models.clipzyme.reaction_graph import ReactionGraph, build_reaction_graph
from rayzyme.models.clipzyme.reaction_tower import ReactionTower
from rayzyme.models.encoder import Embeddings
from rayzyme.models.esm import ResidueEncoder
from rayzyme.proteins import Protein
from rayzyme.settings import get_settings
from rayzyme.structures import Structure, read_structure

logger = logging.getLogger(__name__)

_CHARACTERS_SHOWN = 120


class ClipzymeEncoder:
    """A loaded CLIPZyme checkpoint (arXiv 2402.06748).

    Args:
        parameters: What `load_parameters` read.
        name: What the encoder is called.
        device: "cpu", "cuda" or "cuda:<n>".
        residue_encoder: Gives residues their features in `encode_proteins`. None loads ESM-2 when first needed, from
            where the settings (`esm.source`) say.

    Attributes:
        name: The name it was loaded by.
        digest: SHA-256 of the checkpoint's bytes, hexadecimal.
        dimension: Length of an embedding.
        needs_atom_mapping: True.
    """

    needs_atom_mapping = True

    def __init__(
        self, parameters: Parameters, name: str, device: str = "cpu", residue_encoder: ResidueEncoder | None = None
    ) -> None:
        self.name = name
        self.digest = parameters.digest
        self.dimension = parameters.architecture.dimension
        self._device = _available(device)
        self._reactions = ReactionTower(parameters.architecture, parameters.tensors, self._device)
        self._proteins = ProteinTower(parameters.architecture, parameters.tensors, self._device)
        self._residue_encoder = residue_encoder

    @classmethod
    def load(
        cls,
        path: str | Path,
        name: str | None = None,
        device: str = "cpu",
        residue_encoder: ResidueEncoder | None = None,
    ) -> ClipzymeEncoder:
        """Load a checkpoint in the published format.

        Args:
            path: A file that `torch.save` wrote; nothing in it is executed.
            name: What the encoder is called; None takes the file's stem.
            device: "cpu", "cuda" or "cuda:<n>".
            residue_encoder: See the class.

        Raises:
            NotFound: There is no such file.
            CheckpointError: It is truncated, unsafe to read, of an unsupported variant, or its parameters do not fit.
            DeviceUnavailable: The device does not exist here.
        """
        return cls(load_parameters(path), name or Path(path).stem, device, residue_encoder)

    def encode_reactions(self, reactions: Sequence[str]) -> Embeddings:
        """Embed reactions.

        Args:
            reactions: `reactants>>products` with a map number on every atom; reactions that lack numbers are mapped
                by `rayzyme.chemistry.prepare_reactions`, or refused where that is impossible.

        Returns:
            float32 (n, dimension), unit rows, in the order given; the same numbers whatever else is in the batch.

        Raises:
            InvalidReaction: Names the first reaction that cannot be encoded, by its 1-based position and SMILES.
            MissingExtra: A reaction is not mapped, and the mapper is not installed.
        """
        embeddings: Embeddings = self._reactions.embed(_reaction_graphs(list(reactions))).numpy()
        for row in np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
            reason = "the network's features of it all vanish, so it has no direction and no embedding"
            raise InvalidReaction(_about_reaction(row + 1, reactions[row], reason))
        return embeddings

    def encode_protein_graphs(self, graphs: Sequence[ProteinGraph]) -> Embeddings:
        """Embed proteins given as graphs.

        Returns:
            float32 (n, dimension), unit rows, in the order given; the same numbers whatever else is in the batch.

        Raises:
            InvalidProtein: Names the first graph, by its 1-based position, whose features have another width than the
                checkpoint's, or whose embedding is not finite.
        """
        for position, graph in enumerate(graphs, start=1):
            width = graph.features.shape[1]
            if width != self.dimension:
                raise InvalidProtein(
                    f"protein graph {position} has features of width {width}; checkpoint {self.name!r} takes "
                    f"{self.dimension}"
                )
        embeddings: Embeddings = self._proteins.embed(graphs).numpy()
        for row in np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
            raise InvalidProtein(f"protein graph {row + 1}: its embedding is not finite; are its features sane?")
        return embeddings

    def encode_proteins(self, proteins: Sequence[Protein]) -> Embeddings:
        """Embed proteins from their structures: alpha carbons, and ESM-2 features of the sequence found in them.

        Returns:
            float32 (n, dimension), unit rows, in the order given.

        Raises:
            InvalidProtein: Names the first protein without a usable structure, or too long for ESM-2.
            CheckpointError: The checkpoint takes features of another width than the residue encoder gives.
            MissingExtra: The extra `esm` is not installed.
        """
        structures = [_structure_of(protein) for protein in proteins]
        if not structures:
            return np.empty((0, self.dimension), dtype=np.float32)
        residue_encoder = self._require_residue_encoder()
        ids = [protein.protein_id for protein in proteins]
        features = residue_encoder.encode([structure.sequence for structure in structures], ids)
        return self.encode_protein_graphs(
            [ProteinGraph(structure.positions, rows) for structure, rows in zip(structures, features, strict=True)]
        )

    def _require_residue_encoder(self) -> ResidueEncoder:
        if self._residue_encoder is None:
            wanted = get_settings().esm
            self._residue_encoder = ResidueEncoder.load(
                wanted.source, device=str(self._device), too_long=wanted.too_long
            )
        if self._residue_encoder.dimension != self.dimension:
            raise CheckpointError(
                f"checkpoint {self.name!r} takes residue features of width {self.dimension}; "
                f"{self._residue_encoder.name} gives {self._residue_encoder.dimension}. Give the features yourself, "
                "with encode_protein_graphs"
            )
        return self._residue_encoder


def _available(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceUnavailable(f"no device is called {device!r}; give cpu, cuda or cuda:<n>") from error
    if chosen.type not in ("cpu", "cuda"):
        raise DeviceUnavailable(f"CLIPZyme does not run on {device!r}; give cpu, cuda or cuda:<n>")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceUnavailable(f"{device!r} was asked for, and this machine has {count} CUDA devices; try cpu")
    return chosen


def _reaction_graphs(reactions: list[str]) -> list[ReactionGraph]:
    """Graphs of all reactions. What cannot be read as it is goes through `prepare_reactions`, which maps or explains."""
    graphs: list[ReactionGraph] = []
    prepared: list[str] | None = None
    for position, reaction in enumerate(reactions, start=1):
        try:
            graphs.append(build_reaction_graph(reaction))
        except InvalidReaction:
            if prepared is None:
                prepared = [item.encoder_input for item in prepare_reactions(reactions, needs_atom_mapping=True)]
            graphs.append(_prepared_graph(position, reaction, prepared[position - 1]))
    return graphs


def _prepared_graph(position: int, reaction: str, prepared: str) -> ReactionGraph:
    try:
        return build_reaction_graph(prepared)
    except InvalidReaction as error:
        raise InvalidReaction(_about_reaction(position, reaction, str(error))) from error


def _about_reaction(position: int, reaction: str, reason: str) -> str:
    shown = reaction if len(reaction) <= _CHARACTERS_SHOWN else reaction[: _CHARACTERS_SHOWN - 3] + "..."
    return f"reaction {position} ({shown!r}): {reason}"


def _structure_of(protein: Protein) -> Structure:
    if protein.structure is None:
        raise InvalidProtein(
            f"protein {protein.protein_id!r} has no structure, and CLIPZyme encodes structures; name an mmCIF or PDB "
            "file (column 'cif' of a table, or a folder of structures)"
        )
    structure = read_structure(protein.structure)
    if protein.sequence and protein.sequence != structure.sequence:
        logger.warning(
            "protein %r: its sequence (%d residues) is not that of its structure (%d); the structure's is encoded",
            protein.protein_id,
            len(protein.sequence),
            len(structure.sequence),
        )
    return structure
