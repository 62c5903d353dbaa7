"""Atom-mapped reactions as two molecule graphs with integer features, and several such pairs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from rayzyme.chemistry import parse_reaction
from rayzyme.errors import InvalidReaction
from rayzyme.models.clipzyme.architecture import ATOM_FEATURES, BOND_FEATURES

# Categories by position; a value beyond them is refused unless there is one that stands for others.
_CHIRALITIES = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER")
_HYBRIDISATIONS = ("UNSPECIFIED", "S", "SP", "SP2", "SP3", "SP3D", "SP3D2", "OTHER")
_BOND_TYPES = ("misc", "SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
_BOND_STEREO = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")

_CHIRALITY_INDEX = {
    tag: _CHIRALITIES.index(name) if name in _CHIRALITIES else _CHIRALITIES.index("CHI_OTHER")
    for name, tag in Chem.ChiralType.names.items()
}
_HYBRIDISATION_INDEX = {
    kind: _HYBRIDISATIONS.index(name) if name in _HYBRIDISATIONS else _HYBRIDISATIONS.index("OTHER")
    for name, kind in Chem.HybridizationType.names.items()
}
_BOND_TYPE_INDEX = {
    kind: _BOND_TYPES.index(name) if name in _BOND_TYPES else _BOND_TYPES.index("misc")
    for name, kind in Chem.BondType.names.items()
}
_BOND_STEREO_INDEX = {
    kind: _BOND_STEREO.index(name) for name, kind in Chem.BondStereo.names.items() if name in _BOND_STEREO
}

_CHARGE_OFFSET = 5
# The published code takes the larger of the number of radical electrons and 4 where the smaller was meant; the
# published weights have learned with it.
_LEAST_RADICAL_ELECTRONS = 4

_ATOMS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class MoleculeGraph:
    """All molecules of one side of a reaction.

    Attributes:
        atoms: float32 (n, 9), by ascending map number.
        source: int64 (e,) atom at which a directed bond begins; each bond occurs in both directions.
        target: int64 (e,) atom at which it ends. Bonds are sorted by source, then target.
        bonds: float32 (e, 3).
        map_numbers: int64 (n,), ascending.
    """

    atoms: NDArray[np.float32]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    bonds: NDArray[np.float32]
    map_numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReactionGraph:
    """Both sides of a reaction.

    Attributes:
        reactants: The left side.
        products: The right side.
        origin: int64 (product atoms,), the position among the reactants' atoms of each product atom.
    """

    reactants: MoleculeGraph
    products: MoleculeGraph
    origin: NDArray[np.int64]


def build_reaction_graph(reaction: str) -> ReactionGraph:
    """Read an atom-mapped reaction.

    Reactant atoms that the products lack (a leaving group that the equation leaves out) keep their bonds, which then
    count as broken. Agents between the arrows take no part.

    Args:
        reaction: `reactants>>products`, a map number on every atom.

    Raises:
        InvalidReaction: It cannot be read; atoms lack a number; numbers repeat; product atoms have no origin of their
            element among the reactants; or a bond has a kind of stereochemistry that the model has no feature for.
    """
    parsed = parse_reaction(reaction)
    sides = {"reactants": Chem.MolFromSmiles(parsed.reactants), "products": Chem.MolFromSmiles(parsed.products)}
    _require_map_numbers(sides)
    reactants, products = (_build_molecule_graph(side, molecule) for side, molecule in sides.items())
    return ReactionGraph(reactants, products, _find_origins(reactants, products, sides["products"]))


def _require_map_numbers(sides: dict[str, Chem.Mol]) -> None:
    bare = [
        f"{', '.join(names[:_ATOMS_SHOWN])}{', ...' if len(names) > _ATOMS_SHOWN else ''} in the {side}"
        for side, molecule in sides.items()
        if (names := [f"{a.GetSymbol()} (atom {a.GetIdx() + 1})" for a in molecule.GetAtoms() if not a.GetAtomMapNum()])
    ]
    if bare:
        raise InvalidReaction(f"not atom-mapped: {' and '.join(bare)}; every atom needs a map number")


def _build_molecule_graph(side: str, molecule: Chem.Mol) -> MoleculeGraph:
    numbers = np.array([atom.GetAtomMapNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    if repeated := np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist():
        raise InvalidReaction(f"map numbers occur more than once in the {side}: {_listed(repeated)}")
    atoms = np.array([_atom_features(atom) for atom in molecule.GetAtoms()], dtype=np.float32)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    ends = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()], dtype=np.int64)
    features = np.array([_bond_features(bond) for bond in molecule.GetBonds()], dtype=np.float32)
    ends, features = position[ends.reshape(-1, 2)], features.reshape(-1, BOND_FEATURES)
    source, target = np.concatenate([ends, ends[:, ::-1]]).T
    by_source = np.lexsort((target, source))
    return MoleculeGraph(
        atoms=atoms.reshape(-1, ATOM_FEATURES)[order],
        source=source[by_source],
        target=target[by_source],
        bonds=np.concatenate([features, features])[by_source],
        map_numbers=ordered,
    )


def _atom_features(atom: Chem.Atom) -> tuple[int, ...]:
    return (
        atom.GetAtomicNum(),
        _CHIRALITY_INDEX[atom.GetChiralTag()],
        atom.GetTotalDegree(),
        atom.GetFormalCharge() + _CHARGE_OFFSET,
        atom.GetTotalNumHs(),
        max(atom.GetNumRadicalElectrons(), _LEAST_RADICAL_ELECTRONS),
        _HYBRIDISATION_INDEX[atom.GetHybridization()],
        atom.GetIsAromatic(),
        atom.IsInRing(),
    )


def _bond_features(bond: Chem.Bond) -> tuple[int, ...]:
    stereo = _BOND_STEREO_INDEX.get(bond.GetStereo())
    if stereo is None:
        ends = f"{bond.GetBeginAtom().GetAtomMapNum()} and {bond.GetEndAtom().GetAtomMapNum()}"
        raise InvalidReaction(f"the bond between atoms {ends} has {bond.GetStereo()}; the model has no feature for it")
    return _BOND_TYPE_INDEX[bond.GetBondType()], stereo, bond.GetIsConjugated()


def _find_origins(reactants: MoleculeGraph, products: MoleculeGraph, molecule: Chem.Mol) -> NDArray[np.int64]:
    origin = np.searchsorted(reactants.map_numbers, products.map_numbers).clip(max=len(reactants.map_numbers) - 1)
    orphans = products.map_numbers[reactants.map_numbers[origin] != products.map_numbers].tolist()
    if orphans:
        symbols = {atom.GetAtomMapNum(): atom.GetSymbol() for atom in molecule.GetAtoms()}
        named = _listed([f"{symbols[number]}:{number}" for number in orphans])
        raise InvalidReaction(f"unbalanced: product atoms without an origin in the reactants: {named}")
    changed = products.map_numbers[reactants.atoms[origin, 0] != products.atoms[:, 0]].tolist()
    if changed:
        raise InvalidReaction(f"atoms change their element from reactants to products: map number {_listed(changed)}")
    return origin


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_ATOMS_SHOWN])) + (", ..." if len(values) > _ATOMS_SHOWN else "")
