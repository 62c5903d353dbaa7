"""Protein structures: alpha-carbon positions and sequence out of mmCIF and PDB files, and the neighbour graph on them.

What counts as a residue is the same everywhere in Rayzyme: one of the twenty standard amino acids, written as an ATOM
(not HETATM) record, with an alpha carbon; the first model, and of alternative locations the first.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from rayzyme.errors import InvalidInput, InvalidProtein, NotFound

STRUCTURE_SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")
"""Kinds of structure file, each also with .gz behind it."""

NEIGHBOURS = 10
"""Neighbours per residue in CLIPZyme's protein graph."""

_ONE_LETTER_CODES = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G", "HIS": "H",
    "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S", "THR": "T", "TRP": "W",
    "TYR": "Y", "VAL": "V",
}  # fmt: skip

# Bounds the (rows, n, 3) block of differences to some tens of megabytes.
_DISTANCES_AT_A_TIME = 2_000_000


@dataclass(frozen=True, slots=True)
class Structure:
    """The residues of a structure.

    Attributes:
        sequence: One-letter codes, n of them.
        positions: float32 (n, 3), alpha carbons in ångström, centred on their mean.
    """

    sequence: str
    positions: NDArray[np.float32]


def structure_stem(path: str | Path) -> str | None:
    """A structure file's name without its suffixes ("1abc.cif.gz" -> "1abc"); None for other kinds of file."""
    name = Path(path).name
    if name.lower().endswith(".gz"):
        name = name[: -len(".gz")]
    return Path(name).stem if Path(name).suffix.lower() in STRUCTURE_SUFFIXES else None


def read_structure(path: str | Path, chain: str | None = None) -> Structure:
    """Read the residues of the first model.

    Args:
        path: An mmCIF or PDB file, also gzipped.
        chain: The chain's name as authors gave it; None takes the residues of all chains, in the file's order.

    Raises:
        NotFound: There is no such file.
        InvalidProtein: The file cannot be read, or the model (or the chain) has no alpha carbon of a standard residue.
    """
    path = Path(path)
    model = _read_first_model(path)
    chains = [candidate for candidate in model if chain is None or candidate.name == chain]
    if not chains:
        names = ", ".join(dict.fromkeys(candidate.name for candidate in model))
        raise InvalidProtein(f"{path}: no chain {chain!r}; it has {names or 'none'}")
    letters, positions = [], []
    for candidate in chains:
        for residue in candidate.first_conformer():
            letter = _ONE_LETTER_CODES.get(residue.name)
            position = _alpha_carbon(residue) if letter and residue.het_flag != "H" else None
            if letter and position:
                letters.append(letter)
                positions.append(position)
    if not letters:
        within = "" if chain is None else f" in chain {chain!r}"
        raise InvalidProtein(f"{path}: no alpha carbon (CA) of a standard amino acid{within}; is it a protein?")
    array = np.array(positions, dtype=np.float64)
    if not np.isfinite(array).all():
        raise InvalidProtein(f"{path}: an alpha carbon without coordinates")
    return Structure("".join(letters), (array - array.mean(axis=0)).astype(np.float32))


def nearest_neighbour_edges(positions: NDArray[Any], k: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Edges from each residue's k nearest neighbours to it.

    Args:
        positions: (n, 3) coordinates.
        k: Neighbours per residue; a protein of k residues or fewer has n - 1.

    Returns:
        int64 (2, n * min(k, n - 1)): neighbours in row 0 and the residues they point to in row 1, by residue and then
        by distance.

    Raises:
        InvalidInput: `positions` is not (n, 3), or k is negative.
    """
    points = np.asarray(positions, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InvalidInput(f"positions have shape {points.shape} where (n, 3) is needed")
    if k < 0:
        raise InvalidInput(f"{k} neighbours were asked for; give 0 or more")
    count = len(points)
    k = min(k, count - 1)
    if k <= 0:
        return np.empty((2, 0), dtype=np.int64)
    rows = max(1, _DISTANCES_AT_A_TIME // count)
    neighbours = np.concatenate(
        [_neighbours_of(slice(start, start + rows), points, k) for start in range(0, count, rows)]
    )
    return np.stack([neighbours.ravel(), np.repeat(np.arange(count, dtype=np.int64), k)])


def _read_first_model(path: Path) -> Any:
    if not path.is_file():
        raise NotFound(f"{path}: no such structure file")
    if structure_stem(path) is None:
        raise InvalidProtein(f"{path}: not a structure file; give {', '.join(STRUCTURE_SUFFIXES)}, also with .gz")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise InvalidProtein(f"{path}: cannot be read as a structure: {error}") from error
    if len(structure) == 0:
        raise InvalidProtein(f"{path}: no model, so no alpha carbon (CA); it holds no atoms")
    return structure[0]


def _alpha_carbon(residue: Any) -> tuple[float, float, float] | None:
    for atom in residue.first_conformer():
        if atom.name == "CA" and atom.element == gemmi.Element("C"):
            return atom.pos.x, atom.pos.y, atom.pos.z
    return None


def _neighbours_of(rows: slice, points: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The k points nearest to each of some points (not itself), nearest first."""
    # Differences, not |a|^2 + |b|^2 - 2ab: the latter loses the digits that order close neighbours.
    squared = np.square(points[rows, None, :] - points[None, :, :]).sum(axis=2)
    own = np.arange(len(points))[rows]
    squared[np.arange(len(own)), own] = np.inf
    nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
    by_distance = np.lexsort((nearest, np.take_along_axis(squared, nearest, axis=1)), axis=1)
    return np.take_along_axis(nearest, by_distance, axis=1).astype(np.int64)
