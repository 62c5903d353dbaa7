"""Atom mapping: which atom of the products is which atom of the reactants.

CLIPZyme's encoder subtracts the two sides of a reaction atom by atom, so it needs a number on every atom. A reaction is
*encodable* when

- every atom on both sides has a map number, and no number occurs twice on a side;
- every product atom has its origin, of the same element, among the reactants.

Reactant atoms without a partner in the products are allowed: the right side of many textbook equations leaves out
what is released (`CC(=O)O>>CCO` loses an oxygen), and the encoder sees them in the reactant graph with all their bonds
broken. They get numbers of their own and are named in the note. The reverse, matter from nowhere, is refused.

Molecules of hydrogen alone (`[H+]`, `[H][H]`) are left out before mapping, and the note says so: hydrogens are counts
on their heavy atoms in the encoder's graph, never nodes.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from rdkit import Chem

from rayzyme.chemistry.reactions import Reaction, abbreviated, parse_reaction, read_molecule, split_molecules
from rayzyme.errors import InvalidReaction, MissingExtra

logger = logging.getLogger(__name__)

_ATOMS_SHOWN = 8
_TOKENS = re.compile(r"has (\d+) tokens, should be at most (\d+)")

# RXNMapper changes a logger's level while it runs, and must be loaded once only.
_MAPPER = threading.Lock()

T = TypeVar("T")


class MappingState(StrEnum):
    """How far a reaction is atom-mapped.

    Every atom counts that RDKit keeps in the molecule's graph, so ordinary hydrogens do not.
    """

    UNMAPPED = "unmapped"
    """No atom has a number."""
    PARTIAL = "partial"
    """Some atoms have a number, others have none."""
    INCONSISTENT = "inconsistent"
    """Every atom has a number, but a number occurs twice on a side, changes element, or has no origin."""
    COMPLETE = "complete"
    """Encodable: every atom has a number, and every product atom its origin among the reactants."""


@dataclass(frozen=True, slots=True)
class MappedReaction:
    """What atom mapping made of a reaction.

    Attributes:
        reaction: The reaction SMILES as given.
        mapped_reaction: `reactants>>products` with a number on every atom.
        confidence: RXNMapper's confidence, 0 to 1: the product of its confidences in the single atoms, so long
            reactions score lower than short ones.
        note: What a reader must know about the mapping (atoms without a partner, molecules left out), or None.
    """

    reaction: str
    mapped_reaction: str
    confidence: float
    note: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedReaction:
    """A reaction ready for an encoder.

    Attributes:
        reaction: The reaction SMILES as given, less blanks around it.
        mapped_reaction: `reactants>>products` with a number on every atom; None where the encoder needs no mapping.
        mapping_confidence: RXNMapper's confidence, 0 to 1; None where the mapping is the user's or none is needed.
        note: What was left out, added or done again on the way, in one or two sentences; None where nothing was.
    """

    reaction: str
    mapped_reaction: str | None = None
    mapping_confidence: float | None = None
    note: str | None = None

    @property
    def encoder_input(self) -> str:
        """The text to give to the encoder."""
        return self.reaction if self.mapped_reaction is None else self.mapped_reaction


def mapping_state(reaction_smiles: str) -> MappingState:
    """How far a reaction is atom-mapped.

    Raises:
        InvalidReaction: As `parse_reaction`.
    """
    reaction = parse_reaction(reaction_smiles)
    return _Mapping.of(reaction).state


def map_atoms(reactions: Sequence[str]) -> list[MappedReaction]:
    """Map reactions from scratch with RXNMapper (Schwaller et al. 2021, doi 10.1126/sciadv.abe4166).

    Numbers already present are ignored, agents and molecules of hydrogen alone left out. Reactions are mapped one at a
    time, so that a mapping does not depend on what else is asked for; the model is loaded once per process.

    Raises:
        InvalidReaction: Names the reaction by its 1-based position: it cannot be read, is longer than RXNMapper's 512
            tokens, or has product atoms that no reactant atom can be the origin of.
        MissingExtra: RXNMapper is not installed.
    """
    parsed = [parse_reaction(text, called=f"reaction {position}") for position, text in enumerate(reactions, start=1)]
    return [_named(position, reaction, _map_from_scratch) for position, reaction in enumerate(parsed, start=1)]


def prepare_reactions(texts: Sequence[str], needs_atom_mapping: bool) -> list[PreparedReaction]:
    """Check reactions and, where the encoder asks for it, see that every atom is mapped.

    A completely mapped reaction is kept as it is. An unmapped one is mapped with RXNMapper. A partly mapped one is
    mapped again from scratch, which its note says and the log warns of. One whose numbers contradict each other is
    refused, because a mapping that somebody made by hand must not be replaced in silence.

    Args:
        texts: Reaction SMILES.
        needs_atom_mapping: `Encoder.needs_atom_mapping`.

    Raises:
        InvalidReaction: Names the first reaction that cannot be used, by its 1-based position, and why.
        MissingExtra: A reaction must be mapped and RXNMapper is not installed.
    """
    parsed = [parse_reaction(text, called=f"reaction {position}") for position, text in enumerate(texts, start=1)]
    if not needs_atom_mapping:
        return [PreparedReaction(reaction.text, note=_joined(_agents_note(reaction))) for reaction in parsed]
    return [_named(position, reaction, _prepare_mapped) for position, reaction in enumerate(parsed, start=1)]


def _named(position: int, reaction: Reaction, prepare: Callable[[Reaction], T]) -> T:
    """Prepare one reaction; errors say which one it was."""
    try:
        return prepare(reaction)
    except (InvalidReaction, MissingExtra) as fault:
        raise type(fault)(f"reaction {position} ({abbreviated(reaction.text)}): {fault}") from fault


def _prepare_mapped(reaction: Reaction) -> PreparedReaction:
    given = _Mapping.of(reaction)
    if given.state is MappingState.COMPLETE:
        note = _joined(_agents_note(reaction), given.unpaired_note())
        return PreparedReaction(reaction.text, reaction.equation, note=note)
    trimmed, hydrogens_note = _without_hydrogen_molecules(reaction)
    given = _Mapping.of(trimmed)
    partial_note = None
    match given.state:
        case MappingState.COMPLETE:
            note = _joined(_agents_note(reaction), hydrogens_note, given.unpaired_note())
            return PreparedReaction(reaction.text, trimmed.equation, note=note)
        case MappingState.INCONSISTENT:
            raise InvalidReaction(
                f"its atom map contradicts itself: {'; '.join(given.faults())}. "
                "Correct the numbers, or remove all of them to have the reaction mapped by RXNMapper"
            )
        case MappingState.PARTIAL:
            partial_note = f"The atom map given was incomplete ({given.unnumbered()}); it was replaced by RXNMapper's."
            logger.warning("%s %s", partial_note, abbreviated(reaction.text))
    mapped = _map_from_scratch(reaction)
    return PreparedReaction(
        reaction.text, mapped.mapped_reaction, mapped.confidence, note=_joined(partial_note, mapped.note)
    )


def _map_from_scratch(reaction: Reaction) -> MappedReaction:
    trimmed, hydrogens_note = _without_hydrogen_molecules(reaction)
    plain = _without_numbers(trimmed)
    answer = _ask_rxnmapper(plain.equation)
    mapping = _Mapping.of(parse_reaction(answer["mapped_rxn"], called="RXNMapper's answer"))
    if mapping.atom_counts() != _Mapping.of(plain).atom_counts():
        raise InvalidReaction("RXNMapper lost atoms on the way; map it by hand")
    mapping.number_unpaired_reactant_atoms()
    if faults := mapping.faults():
        raise InvalidReaction(f"{'; '.join(faults)}. {mapping.advice()}")
    return MappedReaction(
        reaction=reaction.text,
        mapped_reaction=mapping.smiles(),
        confidence=min(max(float(answer["confidence"]), 0.0), 1.0),
        note=_joined(_agents_note(reaction), hydrogens_note, mapping.unpaired_note()),
    )


def _ask_rxnmapper(equation: str) -> dict[str, Any]:
    """RXNMapper's answer, `{"mapped_rxn": str, "confidence": float}`."""
    with _MAPPER:
        mapper = _rxnmapper()
        try:
            answer: dict[str, Any] = mapper.get_attention_guided_atom_maps([equation])[0]
        except (AssertionError, IndexError, KeyError, ValueError) as fault:
            if too_long := _TOKENS.search(str(fault)):
                found, most = too_long.groups()
                raise InvalidReaction(
                    f"it is too long to be atom-mapped by RXNMapper ({found} tokens, at most {most}); "
                    "leave out molecules that do not react, or give it atom-mapped"
                ) from fault
            raise InvalidReaction(f"RXNMapper cannot map it ({fault!r}); give it atom-mapped") from fault
    return answer


@cache
def _rxnmapper() -> Any:
    """The mapper with its model, loaded once per process from inside its package; needs no network."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            from rxnmapper import RXNMapper
    except ImportError as fault:
        raise MissingExtra(
            f"it must be atom-mapped, and RXNMapper cannot be imported ({fault}); "
            "install it with: pip install 'rayzyme[mapping]'"
        ) from fault
    return RXNMapper()


@dataclass(frozen=True, slots=True)
class _Mapping:
    """The two sides of a reaction as molecule graphs whose atoms carry map numbers, 0 for none."""

    reactants: Chem.Mol
    products: Chem.Mol

    @classmethod
    def of(cls, reaction: Reaction) -> _Mapping:
        return cls(read_molecule(reaction.reactants), read_molecule(reaction.products))

    @property
    def state(self) -> MappingState:
        numbers = [atom.GetAtomMapNum() for side in (self.reactants, self.products) for atom in side.GetAtoms()]
        if not any(numbers):
            return MappingState.UNMAPPED
        if not all(numbers):
            return MappingState.PARTIAL
        return MappingState.INCONSISTENT if self.faults() else MappingState.COMPLETE

    def faults(self) -> list[str]:
        """Why the numbers do not describe a reaction; empty where they do."""
        faults = []
        for name, side in (("reactants", self.reactants), ("products", self.products)):
            counts = Counter(atom.GetAtomMapNum() for atom in side.GetAtoms() if atom.GetAtomMapNum())
            if repeated := sorted(number for number, count in counts.items() if count > 1):
                faults.append(f"in the {name} more than one atom has number {_listed(map(str, repeated))}")
        elements = {atom.GetAtomMapNum(): atom.GetSymbol() for atom in self.reactants.GetAtoms()}
        changed = []
        for atom in self.products.GetAtoms():
            number, element = atom.GetAtomMapNum(), atom.GetSymbol()
            if number and elements.get(number, element) != element:
                changed.append(f"{number} ({elements[number]} to {element})")
        if changed:
            faults.append(f"an atom changes its element: {_listed(changed)}")
        if orphans := self.product_atoms_without_origin():
            faults.append(f"product atoms have no origin in the reactants: {_described(orphans)}")
        return faults

    def product_atoms_without_origin(self) -> list[Chem.Atom]:
        known = {atom.GetAtomMapNum() for atom in self.reactants.GetAtoms()} - {0}
        return [atom for atom in self.products.GetAtoms() if atom.GetAtomMapNum() not in known]

    def unpaired_reactant_atoms(self) -> list[Chem.Atom]:
        known = {atom.GetAtomMapNum() for atom in self.products.GetAtoms()} - {0}
        return [atom for atom in self.reactants.GetAtoms() if atom.GetAtomMapNum() not in known]

    def number_unpaired_reactant_atoms(self) -> None:
        """Give reactant atoms without a number fresh ones, above all that are in use."""
        used = [atom.GetAtomMapNum() for side in (self.reactants, self.products) for atom in side.GetAtoms()]
        bare = (atom for atom in self.reactants.GetAtoms() if not atom.GetAtomMapNum())
        for number, atom in enumerate(bare, start=max(used, default=0) + 1):
            atom.SetAtomMapNum(number)

    def unpaired_note(self) -> str | None:
        atoms = self.unpaired_reactant_atoms()
        if not atoms:
            return None
        return f"The reaction is not balanced: reactant atoms without a partner in the products: {_described(atoms)}."

    def unnumbered(self) -> str:
        """Which atoms have no number, side by side, in words."""
        sides = []
        for name, side in (("reactants", self.reactants), ("products", self.products)):
            if atoms := [atom for atom in side.GetAtoms() if not atom.GetAtomMapNum()]:
                sides.append(f"no number in the {name}: {_described(atoms)}")
        return "; ".join(sides)

    def advice(self) -> str:
        """What to do about faults in a mapping that RXNMapper made."""
        missing = _elements(self.products) - _elements(self.reactants)
        if not missing:
            return "RXNMapper found no consistent mapping; give the reaction atom-mapped"
        wanted = _listed(f"{count} {element}" for element, count in sorted(missing.items()))
        return f"The reactants lack {wanted}: add the molecule that brings it (water, oxygen, a cofactor)"

    def atom_counts(self) -> tuple[int, int]:
        return self.reactants.GetNumAtoms(), self.products.GetNumAtoms()

    def smiles(self) -> str:
        return f"{Chem.MolToSmiles(self.reactants)}>>{Chem.MolToSmiles(self.products)}"


def _without_hydrogen_molecules(reaction: Reaction) -> tuple[Reaction, str | None]:
    """The reaction without agents and without molecules of hydrogen alone, and a note where there were any."""
    left_out: list[str] = []
    sides = []
    for name, side in (("reactant", reaction.reactants), ("product", reaction.products)):
        pieces = split_molecules(side)
        hydrogen = [piece for piece in pieces if _is_hydrogen_only(piece)]
        if len(hydrogen) == len(pieces):
            raise InvalidReaction(f"the {name} side holds hydrogen only, and nothing is left of it to be atom-mapped")
        left_out += hydrogen
        sides.append(".".join(piece for piece in pieces if piece not in hydrogen))
    reactants, products = sides
    trimmed = replace(reaction, reactants=reactants, products=products, agents="")
    if not left_out:
        return trimmed, None
    return trimmed, f"Left out, since hydrogens are implicit for the encoder: {_listed(dict.fromkeys(left_out))}."


def _is_hydrogen_only(piece: str) -> bool:
    # Without this test, pieces that are no molecules of their own (`C1.C1`) would be parsed alone.
    if "H" not in piece or any(letter.isalpha() and letter != "H" for letter in piece):
        return False
    return all(atom.GetAtomicNum() == 1 for atom in read_molecule(piece).GetAtoms())


def _without_numbers(reaction: Reaction) -> Reaction:
    sides = []
    for side in (reaction.reactants, reaction.products):
        molecule = read_molecule(side)
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
        sides.append(Chem.MolToSmiles(molecule))
    return replace(reaction, reactants=sides[0], products=sides[1])


def _agents_note(reaction: Reaction) -> str | None:
    return f"Agents take no part in the encoding: {reaction.agents}." if reaction.agents else None


def _joined(*notes: str | None) -> str | None:
    return " ".join(note for note in notes if note) or None


def _elements(side: Chem.Mol) -> Counter[str]:
    return Counter(atom.GetSymbol() for atom in side.GetAtoms())


def _described(atoms: Sequence[Chem.Atom]) -> str:
    """Atoms by element, map number and molecule: "O:4 of 'CC(=O)O'"."""
    by_molecule: dict[str, list[str]] = {}
    molecule = atoms[0].GetOwningMol()
    names = _molecule_of_each_atom(molecule)
    for atom in atoms:
        number = atom.GetAtomMapNum()
        by_molecule.setdefault(names[atom.GetIdx()], []).append(f"{atom.GetSymbol()}{f':{number}' if number else ''}")
    return "; ".join(f"{_listed(labels)} of '{name}'" for name, labels in by_molecule.items())


def _molecule_of_each_atom(side: Chem.Mol) -> list[str]:
    """For each atom, the SMILES (without numbers) of the molecule it belongs to."""
    plain = Chem.Mol(side)
    for atom in plain.GetAtoms():
        atom.SetAtomMapNum(0)
    names = [""] * plain.GetNumAtoms()
    for indices in Chem.GetMolFrags(plain):
        name = Chem.MolFragmentToSmiles(plain, atomsToUse=list(indices))
        for index in indices:
            names[index] = name
    return names


def _listed(words: Iterable[str]) -> str:
    """Words with commas, cut where there are many."""
    shown = list(words)
    more = f" and {len(shown) - _ATOMS_SHOWN} more" if len(shown) > _ATOMS_SHOWN else ""
    return ", ".join(shown[:_ATOMS_SHOWN]) + more
