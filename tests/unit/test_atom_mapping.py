"""Atom mapping: what is mapped, what is kept, what is refused, and what the user is told."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rdkit import Chem

from rayzyme.chemistry import MappingState, atom_mapping, map_atoms, mapping_state, prepare_reactions
from rayzyme.errors import InvalidReaction, MissingExtra

MAPPED_ETHANOL = "[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:3]"


@pytest.fixture(scope="module")
def rxnmapper() -> None:
    """RXNMapper itself with its own weights; it needs no network."""
    pytest.importorskip("rxnmapper", reason="RXNMapper absent: pip install 'rayzyme[mapping]'", exc_type=ImportError)


@pytest.fixture
def without_rxnmapper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    atom_mapping._rxnmapper.cache_clear()
    monkeypatch.setitem(sys.modules, "rxnmapper", None)
    yield
    atom_mapping._rxnmapper.cache_clear()


class TestMappingState:
    @pytest.mark.parametrize(
        ("reaction", "state"),
        [
            ("CCO>>CC=O", MappingState.UNMAPPED),
            (MAPPED_ETHANOL, MappingState.COMPLETE),
            ("[CH3:1][C:2](=[O:4])[OH:3]>>[CH3:1][CH2:2][OH:3]", MappingState.COMPLETE),
            ("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=O", MappingState.PARTIAL),
            ("CCO>>[CH3:1][CH:2]=[O:3]", MappingState.PARTIAL),
            (f"{MAPPED_ETHANOL}.[H+]", MappingState.PARTIAL),
            ("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:9]", MappingState.INCONSISTENT),
            ("[CH3:1][CH2:1][OH:3]>>[CH3:1][CH:1]=[O:3]", MappingState.INCONSISTENT),
            ("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:3]=[O:2]", MappingState.INCONSISTENT),
        ],
    )
    def test_tells(self, reaction: str, state: MappingState) -> None:
        assert mapping_state(reaction) is state

    @pytest.mark.shared
    def test_published_reactions_are_complete(self, shared: Path) -> None:
        reactions = json.loads((shared / "fixtures/clipzyme/reactions.json").read_text())
        assert {mapping_state(reaction) for reaction in reactions} == {MappingState.COMPLETE}


class TestWithoutRxnmapper:
    """What needs no mapper works without the extra; what needs it says how to install it."""

    pytestmark = pytest.mark.usefixtures("without_rxnmapper")

    def test_an_encoder_that_needs_no_mapping_gets_the_reaction_as_it_is(self) -> None:
        [prepared] = prepare_reactions([" CC(=O)O>>CCO "], needs_atom_mapping=False)
        assert (prepared.reaction, prepared.mapped_reaction, prepared.mapping_confidence, prepared.note) == (
            "CC(=O)O>>CCO",
            None,
            None,
            None,
        )
        assert prepared.encoder_input == "CC(=O)O>>CCO"

    def test_a_complete_mapping_is_kept_as_it_is(self) -> None:
        [prepared] = prepare_reactions([MAPPED_ETHANOL], needs_atom_mapping=True)
        assert (prepared.mapped_reaction, prepared.mapping_confidence, prepared.note) == (MAPPED_ETHANOL, None, None)
        assert prepared.encoder_input == MAPPED_ETHANOL

    def test_agents_are_left_out_and_the_note_says_so(self) -> None:
        with_agent = MAPPED_ETHANOL.replace(">>", ">[Pd]>")
        [prepared] = prepare_reactions([with_agent], needs_atom_mapping=True)
        assert prepared.mapped_reaction == MAPPED_ETHANOL
        assert prepared.note == "Agents take no part in the encoding: [Pd]."

    def test_unmapped_protons_beside_a_complete_mapping_are_left_out_and_the_note_says_so(self) -> None:
        [prepared] = prepare_reactions([f"{MAPPED_ETHANOL}.[H+]"], needs_atom_mapping=True)
        assert (prepared.mapped_reaction, prepared.mapping_confidence) == (MAPPED_ETHANOL, None)
        assert prepared.note == "Left out, since hydrogens are implicit for the encoder: [H+]."

    def test_mapped_reactants_without_a_partner_are_kept_and_named(self) -> None:
        reaction = "[CH3:1][C:2](=[O:4])[OH:3]>>[CH3:1][CH2:2][OH:3]"
        [prepared] = prepare_reactions([reaction], needs_atom_mapping=True)
        assert prepared.mapped_reaction == reaction
        assert prepared.note == (
            "The reaction is not balanced: reactant atoms without a partner in the products: O:4 of 'CC(=O)O'."
        )

    @pytest.mark.parametrize(
        ("reaction", "reason"),
        [
            (
                "[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:9]",
                "product atoms have no origin in the reactants: O:9 of 'CC=O'",
            ),
            ("[CH3:1][CH2:1][OH:3]>>[CH3:1][CH2:1][OH:3]", "in the reactants more than one atom has number 1"),
            ("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:3]=[O:2]", "an atom changes its element: 3 (O to C), 2 (C to O)"),
        ],
    )
    def test_a_mapping_that_contradicts_itself_is_refused_not_replaced(self, reaction: str, reason: str) -> None:
        with pytest.raises(InvalidReaction) as caught:
            prepare_reactions([MAPPED_ETHANOL, reaction], needs_atom_mapping=True)
        assert str(caught.value).startswith(f"reaction 2 ('{reaction}'): its atom map contradicts itself: ")
        assert reason in str(caught.value)

    def test_an_invalid_reaction_is_named_by_its_position(self) -> None:
        with pytest.raises(
            InvalidReaction, match=r"^reaction 3 \('CCX>>CCO'\): the reactant 'CCX' is not valid SMILES"
        ):
            prepare_reactions(["CCO>>CC=O", "OO>>O", "CCX>>CCO"], needs_atom_mapping=False)

    @pytest.mark.parametrize("reaction", ["CC(=O)O>>CCO", "[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=O"])
    def test_what_must_be_mapped_says_how_to_install_the_extra(self, reaction: str) -> None:
        with pytest.raises(MissingExtra) as caught:
            prepare_reactions([reaction], needs_atom_mapping=True)
        assert str(caught.value).startswith("reaction 1 (")
        assert str(caught.value).endswith("install it with: pip install 'rayzyme[mapping]'")


@pytest.mark.usefixtures("rxnmapper")
class TestWithRxnmapper:
    def test_a_balanced_reaction(self) -> None:
        [mapped] = map_atoms(["CCO.O=O>>CC=O.OO"])
        assert mapping_state(mapped.mapped_reaction) is MappingState.COMPLETE
        assert without_numbers(mapped.mapped_reaction) == without_numbers("CCO.O=O>>CC=O.OO")
        assert 0 < mapped.confidence <= 1
        assert mapped.note is None

    def test_reactant_atoms_that_are_lost_get_numbers_of_their_own_and_are_named(self) -> None:
        [prepared] = prepare_reactions(["CC(=O)O>>CCO"], needs_atom_mapping=True)
        assert prepared.mapped_reaction == "[CH3:1][C:2]([OH:3])=[O:4]>>[CH3:1][CH2:2][OH:3]"
        assert prepared.mapping_confidence == pytest.approx(0.97, abs=0.02)
        assert prepared.note == (
            "The reaction is not balanced: reactant atoms without a partner in the products: O:4 of 'CC(=O)O'."
        )

    def test_matter_from_nowhere_is_refused(self) -> None:
        with pytest.raises(InvalidReaction) as caught:
            map_atoms(["CCO>>CC(=O)O"])
        assert "product atoms have no origin in the reactants: O:4 of 'CC(=O)O'" in str(caught.value)
        assert "The reactants lack 1 O: add the molecule that brings it" in str(caught.value)

    def test_molecules_of_hydrogen_alone_are_left_out_and_the_note_says_so(self) -> None:
        [mapped] = map_atoms(["[H][H].CC=O>>CCO.[H+]"])
        assert without_numbers(mapped.mapped_reaction) == without_numbers("CC=O>>CCO")
        assert mapped.note == "Left out, since hydrogens are implicit for the encoder: [H][H], [H+]."

    def test_a_side_of_hydrogen_alone_is_refused(self) -> None:
        with pytest.raises(InvalidReaction, match="the reactant side holds hydrogen only"):
            map_atoms(["[H+]>>C"])

    def test_a_partial_mapping_is_made_again_and_both_note_and_log_say_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            [prepared] = prepare_reactions(["[CH3:7][CH2:8][OH:9]>>[CH3:7][CH:8]=O"], needs_atom_mapping=True)
        assert prepared.mapped_reaction == MAPPED_ETHANOL
        assert prepared.mapping_confidence is not None
        assert prepared.note == (
            "The atom map given was incomplete (no number in the products: O of 'CC=O'); it was replaced by RXNMapper's."
        )
        assert prepared.note in caplog.text

    def test_stereochemistry_and_charges_survive(self) -> None:
        reaction = "C[C@H](O)C(=O)[O-]>>CC(=O)C(=O)[O-]"
        [mapped] = map_atoms([reaction])
        assert without_numbers(mapped.mapped_reaction) == without_numbers(reaction)

    def test_a_reaction_that_is_too_long_is_refused_with_the_figures(self) -> None:
        long_chain = "C" * 300
        with pytest.raises(
            InvalidReaction, match=r"too long to be atom-mapped by RXNMapper \(60\d tokens, at most 512\)"
        ):
            map_atoms([f"{long_chain}O>>{long_chain}=O"])

    def test_a_mapping_does_not_depend_on_what_else_is_asked_for(self) -> None:
        alone = map_atoms(["CC(=O)O>>CCO"])
        together = map_atoms(["CCO.O=O>>CC=O.OO", "CC(=O)O>>CCO", "OO.OO>>O.O.O=O"])
        assert together[1] == alone[0]

    @pytest.mark.shared
    def test_real_reactions_become_encodable(self, shared: Path) -> None:
        lines = (shared / "data/reactions.tsv").read_text().splitlines()[1:]
        reactions = [line.split("\t")[1] for line in lines[::150]]
        prepared = prepare_reactions(reactions, needs_atom_mapping=True)
        assert {mapping_state(p.encoder_input) for p in prepared} == {MappingState.COMPLETE}


def without_numbers(reaction: str) -> list[str]:
    sides = []
    for side in reaction.split(">>"):
        molecule = Chem.MolFromSmiles(side)
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
        sides.append(Chem.MolToSmiles(molecule))
    return sides
