"""Reaction SMILES: read, checked and reduced to the two forms by which reactions are compared.

`canonical_reaction` names one exact reaction, for caches; `reaction_key` names a transformation whatever its direction,
stereochemistry and protonation, for finding duplicates and keeping training and test apart.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache

from rdkit import Chem, rdBase

from rayzyme.errors import InvalidReaction

MAX_ATOMS = 1_200
"""Atoms on the larger side of the largest reaction that is read: fingerprints and drawings take time with the cube of it."""

MAX_LENGTH = 20_000
"""Characters of the longest reaction SMILES that is read; the longest in biochemical collections have about 3,000."""

_CACHED_MOLECULES = 32_768
_CHARACTERS_SHOWN = 120

# A `>` that follows `-` belongs to RDKit's dative bond `->` and separates nothing.
_ARROW = re.compile(r"(?<!-)>")

# RDKit's capture swaps a stream of the whole process: two that overlap would restore each other's.
_ERROR_LOG = threading.Lock()

_ATOM = re.compile(r"\[[^\]]*\]|Br|Cl|[BCNOPSFIbcnops]")
_TIMESTAMP = re.compile(r"^\[\d\d:\d\d:\d\d\]\s*", re.MULTILINE)
_POSITION = re.compile(r"around position (\d+)")
_VALENCE = re.compile(r"[Ee]xplicit valence for atom # (\d+) (\w+), (\d+),? is greater than permitted")


@dataclass(frozen=True, slots=True)
class Reaction:
    """A reaction whose molecules RDKit can read.

    Attributes:
        text: The reaction SMILES as it was given, less blanks around it.
        reactants: SMILES of the left side, molecules separated by dots.
        products: SMILES of the right side.
        agents: SMILES between the arrows of `reactants>agents>products`, often empty. Agents (solvents, catalysts,
            conditions) are checked, and otherwise take no part: not in keys, nor in atom mapping, nor in embeddings.
    """

    text: str
    reactants: str
    products: str
    agents: str = ""

    @property
    def equation(self) -> str:
        """`reactants>>products`, without agents: the form that encoders read."""
        return f"{self.reactants}>>{self.products}"


class UnreadableMolecule(ValueError):
    """RDKit cannot read a SMILES; the message is the reason alone."""


def parse_reaction(text: str, *, called: str = "reaction") -> Reaction:
    """Read a reaction SMILES, `reactants>>products` or `reactants>agents>products`.

    Atom maps, charges, stereochemistry and any number of molecules are accepted. A name or a CXSMILES extension after
    the SMILES is refused, and so is any other blank inside it: what follows a blank would be ignored by RDKit, and
    half a reaction must not pass for a whole one.

    Args:
        text: The reaction SMILES; blanks around it are ignored.
        called: What error messages call it: "reaction 3", "line 12".

    Raises:
        InvalidReaction: Says which side is empty, or which molecule RDKit cannot read and why.
    """
    try:
        return _parse(text)
    except InvalidReaction as fault:
        raise InvalidReaction(f"{called} ({abbreviated(text)}): {fault}") from None


def canonical_reaction(text: str) -> str:
    """The same text for every way to write exactly this reaction: a key for caches of embeddings.

    Molecules are canonical SMILES in sorted order. Direction, stereochemistry, charges, stoichiometry and atom maps are
    kept, because an embedding may depend on each of them; agents are dropped, because none does.

    Raises:
        InvalidReaction: As `parse_reaction`.
    """
    reaction = parse_reaction(text)
    return f"{_sorted_molecules(reaction.reactants)}>>{_sorted_molecules(reaction.products)}"


def reaction_key(text: str) -> str:
    """The same text for every way to write this transformation: a key for duplicates and for splitting data.

    Left out are agents, atom maps, stereochemistry, protons (`[H+]`), the order of molecules, repeated molecules on one
    side (collections disagree about stoichiometry, and a leak into a test set is worse than one example less) and the
    direction (A>>B and B>>A have one key). Charges are neutralised by adding or removing hydrogens wherever that is
    possible, so that acids and bases have one form whatever the pH; charges that no proton explains stay (the
    quaternary nitrogen of NAD+, metal ions, nitro groups). Isotopes and tautomers stay distinct.

    Returns:
        `side>>side` with the lesser side (as text) first; a side of protons only is empty.

    Raises:
        InvalidReaction: As `parse_reaction`.
    """
    reaction = parse_reaction(text)
    return ">>".join(sorted((_neutral_side(reaction.reactants), _neutral_side(reaction.products))))


def atoms_on_larger_side(text: str) -> int:
    """About how many atoms, hydrogens without brackets apart, the larger side of a reaction SMILES has; it need not be valid."""
    return max(len(_ATOM.findall(side)) for side in _ARROW.split(text))


def abbreviated(text: object) -> str:
    """A reaction quoted for a message, cut where it is long."""
    shown = str(text).strip()
    return repr(shown if len(shown) <= _CHARACTERS_SHOWN else f"{shown[: _CHARACTERS_SHOWN - 1]}…")


def read_molecule(smiles: str) -> Chem.Mol:
    """Parse SMILES (one or more molecules) quietly.

    Raises:
        UnreadableMolecule: With RDKit's reason in plain words.
    """
    with _ERROR_LOG, rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise UnreadableMolecule(_plain_reason(smiles, log.messages))
    return molecule


def split_molecules(side: str) -> tuple[str, ...]:
    """The SMILES of a side's molecules.

    Raises:
        InvalidReaction: Where the dots are wrong.
    """
    pieces = tuple(side.split("."))
    if all(pieces):
        return pieces
    raise InvalidReaction("there is a dot without a molecule before or after it")


def _parse(text: str) -> Reaction:
    if not isinstance(text, str):
        raise InvalidReaction(f"a reaction is written as text (SMILES), not as {type(text).__name__}")
    smiles = text.strip()
    if not smiles:
        raise InvalidReaction("it is empty; write it as SMILES: reactants>>products")
    if len(smiles) > MAX_LENGTH:
        raise InvalidReaction(f"it has {len(smiles):,} characters; the most that is read is {MAX_LENGTH:,}")
    if (atoms := atoms_on_larger_side(smiles)) > MAX_ATOMS:
        raise InvalidReaction(f"it has {atoms:,} atoms on one side; the most that is read is {MAX_ATOMS:,}")
    if trailing := smiles.split(maxsplit=1)[1:]:
        raise InvalidReaction(
            f"after a blank follows {abbreviated(trailing[0])}; "
            "give the SMILES alone, without blanks, names or extensions"
        )
    parts = _ARROW.split(smiles)
    if len(parts) != 3:
        raise InvalidReaction(
            f"it must have two '>' (reactants>>products, or reactants>agents>products) and has {len(parts) - 1}"
        )
    reactants, agents, products = parts
    for role, side in (("reactant", reactants), ("product", products)):
        if not side:
            raise InvalidReaction(f"the {role} side is empty")
    for role, side in (("reactant", reactants), ("agent", agents), ("product", products)):
        _check_side(role, side)
    return Reaction(text=smiles, reactants=reactants, products=products, agents=agents)


def _check_side(role: str, side: str) -> None:
    if not side:
        return
    try:
        pieces = split_molecules(side)
    except InvalidReaction as fault:
        raise InvalidReaction(f"on the {role} side {fault}") from None
    for piece in pieces:
        try:
            _canonical_molecule(piece)
        except UnreadableMolecule as fault:
            if not _is_readable(side):
                raise InvalidReaction(f"the {role} {abbreviated(piece)} is not valid SMILES: {fault}") from None


def _is_readable(side: str) -> bool:
    """True where the whole parses though a piece does not: SMILES allows a ring bond across a dot (`C1.C1`)."""
    try:
        read_molecule(side)
    except UnreadableMolecule:
        return False
    return True


def _plain_reason(smiles: str, log: str) -> str:
    """RDKit's error log as one sentence; positions and atoms are counted from 1."""
    message = _TIMESTAMP.sub("", log).replace("SMILES Parse Error: ", "").strip()
    if valence := _VALENCE.search(message):
        number, element, bonds = valence.groups()
        return f"atom {int(number) + 1} ({element}) has {bonds} bonds, more than it can have"
    if "kekulize" in message:
        return "an aromatic ring has no valid pattern of double bonds (is a hydrogen such as [nH] missing?)"
    first = message.splitlines()[0] if message else "RDKit gives no reason"
    reason = first.split(" while parsing:")[0].split(" for input:")[0]
    if position := _POSITION.search(message):
        at = int(position.group(1))
        found = f" ('{smiles[at - 1]}')" if 0 < at <= len(smiles) else ""
        reason = f"{reason} near character {at}{found}"
    return reason


def _molecules_or_whole(side: str) -> tuple[str, ...]:
    """A side's molecules; where a ring bond crosses a dot, the molecules that result."""
    pieces = split_molecules(side)
    try:
        for piece in pieces:
            _canonical_molecule(piece)
    except UnreadableMolecule:
        return tuple(Chem.MolToSmiles(fragment) for fragment in Chem.GetMolFrags(read_molecule(side), asMols=True))
    return pieces


def _sorted_molecules(side: str) -> str:
    return ".".join(sorted(_canonical_molecule(piece) for piece in _molecules_or_whole(side)))


def _neutral_side(side: str) -> str:
    neutral = {_neutral_molecule(piece) for piece in _molecules_or_whole(side)}
    return ".".join(sorted(neutral - {""}))


@lru_cache(maxsize=_CACHED_MOLECULES)
def _canonical_molecule(smiles: str) -> str:
    """Canonical SMILES with stereochemistry, charges and atom maps. Cofactors recur: hence the cache."""
    return str(Chem.MolToSmiles(read_molecule(smiles)))


@lru_cache(maxsize=_CACHED_MOLECULES)
def _neutral_molecule(smiles: str) -> str:
    """Canonical SMILES without atom maps, stereochemistry and removable charges; empty for a proton."""
    molecule = read_molecule(smiles)
    if is_proton(molecule):
        return ""
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    _neutralise(molecule)
    Chem.RemoveStereochemistry(molecule)
    # Read again: aromaticity and explicit hydrogens are perceived afresh on the neutral form.
    return str(Chem.MolToSmiles(read_molecule(Chem.MolToSmiles(molecule))))


def is_proton(molecule: Chem.Mol) -> bool:
    """True for `[H+]`, whatever its isotope or atom map."""
    if molecule.GetNumAtoms() != 1:
        return False
    atom = molecule.GetAtomWithIdx(0)
    return bool(atom.GetAtomicNum() == 1 and atom.GetFormalCharge() == 1)


def _neutralise(molecule: Chem.Mol) -> None:
    """Add and remove protons until no charge is left that a proton explains.

    A charge next to the opposite charge (nitro, N-oxide, azide) is a way to draw a neutral group, not a protonation
    state, and stays.
    """
    charges = [atom.GetFormalCharge() for atom in molecule.GetAtoms()]
    for atom in molecule.GetAtoms():
        charge = charges[atom.GetIdx()]
        if any(charges[neighbour.GetIdx()] * charge < 0 for neighbour in atom.GetNeighbors()):
            continue
        hydrogens = atom.GetTotalNumHs()
        removed = min(charge, hydrogens)
        if removed:
            atom.SetFormalCharge(charge - removed)
            atom.SetNumExplicitHs(hydrogens - removed)
            atom.SetNoImplicit(True)
            atom.UpdatePropertyCache(strict=False)
