"""The weights file: one safetensors file that holds both towers, checked on reading down to every shape.

Large tables are stored as float16. The header names the format and carries a fingerprint of a known reaction, because
the landmarks' tokens mean nothing to an RDKit that computes other fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rdkit
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rayzyme.errors import CheckpointError, NotFound
from rayzyme.models.baseline.features import DIFFERENCES, SEQUENCE_FEATURES, SUMS, reaction_tokens
from rayzyme.models.baseline.landmarks import SIMILARITIES, Landmarks, TokenIndex
from rayzyme.models.baseline.towers import Identities, ProteinTower, ReactionTower

FORMAT = "rayzyme-baseline"
FORMAT_VERSION = "1"

_PROBE = "CC(N)C(=O)O.O=C(O)CCC(=O)C(=O)O>>CC(=O)C(=O)O.NC(CCC(=O)O)C(=O)O"
_LAYOUT: dict[str, tuple[type[np.generic], tuple[str, ...]]] = {
    "reaction.weights": (np.float32, ("parts",)),
    "reaction.votes": (np.float16, ("landmarks", "leading")),
    "identities.landmarks": (np.int32, ("identities",)),
    "identities.classes": (np.int32, ("identities",)),
    "identities.votes": (np.float32, ("identities",)),
    "protein.hidden_weight": (np.float16, ("features", "hidden")),
    "protein.hidden_bias": (np.float32, ("hidden",)),
    "protein.class_weight": (np.float16, ("hidden", "classes")),
    "protein.class_bias": (np.float32, ("classes",)),
    "protein.class_vectors": (np.float16, ("classes", "coordinates")),
}
_FINGERPRINTS = (*(("difference", name) for name in DIFFERENCES), *(("sum", name) for name in SUMS))

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Towers:
    """Both towers of one checkpoint.

    Attributes:
        reaction: Embeds reactions.
        protein: Embeds proteins.
        dimension: Length of an embedding.
    """

    reaction: ReactionTower
    protein: ProteinTower

    @property
    def dimension(self) -> int:
        return int(self.protein.class_vectors.shape[1]) + 1

    def rounded(self) -> Towers:
        """The towers as they come back from a file, their large tables rounded to float16."""
        return _towers(_tensors(self))


def write_weights(towers: Towers, path: Path, description: Mapping[str, str]) -> None:
    """Write the weights file.

    Args:
        towers: What to write.
        path: The file.
        description: Facts for the header (what it was trained on), besides format, version and RDKit's version.
    """
    header = {
        **description,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rdkit": rdkit.__version__,
        "probe": _probe_digest(),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in _tensors(towers).items()}
    # One entry, because safetensors writes several in random order and the file's digest must not depend on that.
    save_file(tensors, path, metadata={FORMAT: json.dumps(header, sort_keys=True)})
    path.chmod(0o644)


def read_weights(path: Path) -> Towers:
    """Read and check a weights file.

    Raises:
        NotFound: There is no such file.
        CheckpointError: It is truncated, of another format or version, a tensor is missing, unknown, of the wrong shape
            or type or not finite, or the installed RDKit computes other fingerprints than the model was trained on.
    """
    if not path.is_file():
        raise NotFound(f"baseline weights {path} do not exist; install Rayzyme again, or train them anew")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as fault:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({fault}); it may be cut short: copy or train it again"
        ) from fault
    _check_header(header, path)
    _check_tensors(tensors, path)
    return _towers(tensors)


def _tensors(towers: Towers) -> Tensors:
    owners = {"reaction": towers.reaction, "identities": towers.reaction.identities, "protein": towers.protein}
    tensors: Tensors = {}
    for name, (dtype, _) in _LAYOUT.items():
        owner, attribute = name.split(".")
        tensors[name] = getattr(owners[owner], attribute).astype(dtype)
    for kind, fingerprint in _FINGERPRINTS:
        index = _index_of(towers.reaction.landmarks, kind, fingerprint)
        prefix = f"landmarks.{kind}.{fingerprint}"
        tensors[f"{prefix}.vocabulary"] = index.vocabulary
        tensors[f"{prefix}.offsets"] = index.offsets.astype(np.int32)
        tensors[f"{prefix}.places"] = index.places
    return tensors


def _towers(tensors: Tensors) -> Towers:
    indices = {
        (kind, name): TokenIndex(
            tensors[f"landmarks.{kind}.{name}.vocabulary"],
            tensors[f"landmarks.{kind}.{name}.offsets"].astype(np.int64),
            tensors[f"landmarks.{kind}.{name}.places"],
            weighted=kind == "sum",
        )
        for kind, name in _FINGERPRINTS
    }
    landmarks = Landmarks(
        {name: indices["difference", name] for name in DIFFERENCES}, {name: indices["sum", name] for name in SUMS}
    )
    values = {name: tensors[name].astype(np.float64) for name in _LAYOUT if not name.startswith("identities")}
    class_vectors = values["protein.class_vectors"]
    identities = Identities(
        tensors["identities.landmarks"].astype(np.int64),
        tensors["identities.classes"].astype(np.int64),
        tensors["identities.votes"].astype(np.float64),
    )
    protein = {name.removeprefix("protein."): value for name, value in values.items() if name.startswith("protein.")}
    return Towers(
        ReactionTower(landmarks, values["reaction.weights"], values["reaction.votes"], identities, class_vectors),
        ProteinTower(**protein),
    )


def _index_of(landmarks: Landmarks, kind: str, name: str) -> TokenIndex:
    return (landmarks.differences if kind == "difference" else landmarks.sums)[name]


def _probe_digest() -> str:
    """SHA-256 of the fingerprints of a transamination."""
    tokens = reaction_tokens(_PROBE)
    plain = [{name: values.tolist() for name, values in part.items()} for part in (tokens.forward, tokens.total)]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _check_header(header: Mapping[str, str], path: Path) -> None:
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but no baseline model (its header says format {header.get('format')!r}, "
            f"not {FORMAT!r}); Rayzyme reads CLIPZyme's checkpoints as published, in torch's format"
        )
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {header.get('format_version')!r}, this Rayzyme reads {FORMAT_VERSION!r}; "
            "use the Rayzyme that wrote it, or train the model again"
        )
    if header.get("probe") != _probe_digest():
        raise CheckpointError(
            f"{path} was trained with RDKit {header.get('rdkit')}, whose fingerprints differ from those of the installed "
            f"{rdkit.__version__}; install that version, or train again: python -m rayzyme.models.baseline.train"
        )


def _check_tensors(tensors: Tensors, path: Path) -> None:
    index_names = {
        f"landmarks.{kind}.{name}.{part}"
        for kind, name in _FINGERPRINTS
        for part in ("vocabulary", "offsets", "places")
    }
    expected = {*_LAYOUT, *index_names}
    if missing := sorted(expected - tensors.keys()):
        raise CheckpointError(f"{path} lacks tensor {missing[0]} ({len(missing)} of {len(expected)} are missing)")
    if unknown := sorted(tensors.keys() - expected):
        raise CheckpointError(f"{path} holds an unknown tensor {unknown[0]} ({len(unknown)} are unknown)")
    _check_shapes(tensors, path)
    for kind, name in _FINGERPRINTS:
        _check_index(tensors, f"landmarks.{kind}.{name}", len(tensors["reaction.votes"]), path)


def _check_shapes(tensors: Tensors, path: Path) -> None:
    sizes = {"parts": len(SIMILARITIES), "features": SEQUENCE_FEATURES}
    for name, (dtype, axes) in _LAYOUT.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != len(axes):
            raise CheckpointError(
                f"{path}: tensor {name} is {tensor.dtype} {tensor.shape}, expected {np.dtype(dtype)} {axes}"
            )
        wanted = tuple(sizes.setdefault(axis, length) for axis, length in zip(axes, tensor.shape, strict=True))
        if tensor.shape != wanted:
            raise CheckpointError(f"{path}: tensor {name} has shape {tensor.shape}, expected {wanted} {axes}")
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity")
    if sizes["leading"] > sizes["coordinates"]:
        raise CheckpointError(f"{path}: tensor reaction.votes is wider than protein.class_vectors")
    for axis in ("landmarks", "classes"):
        places = tensors[f"identities.{axis}"]
        if not ((places >= 0) & (places < sizes[axis])).all():
            raise CheckpointError(f"{path}: tensor identities.{axis} points outside the {sizes[axis]} {axis}")


def _check_index(tensors: Tensors, prefix: str, landmarks: int, path: Path) -> None:
    vocabulary, offsets, places = (tensors[f"{prefix}.{part}"] for part in ("vocabulary", "offsets", "places"))
    sound = (
        vocabulary.dtype == np.int64
        and offsets.dtype == np.int32
        and places.dtype == np.uint16
        and vocabulary.ndim == offsets.ndim == places.ndim == 1
        and len(offsets) == landmarks + 1
        and offsets[0] == 0
        and offsets[-1] == len(places)
        and bool((np.diff(offsets) >= 0).all())
        and len(vocabulary) > 0
        and bool((np.diff(vocabulary) > 0).all())
        and int(places.max(initial=0)) < len(vocabulary)
    )
    if not sound:
        raise CheckpointError(f"{path}: the token index {prefix} is inconsistent; copy or train the file again")
