"""Reactions: what is read, what is refused and why, which spellings are the same reaction, drawings and files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from rayzyme.chemistry import canonical_reaction, draw_reaction, parse_reaction, reaction_key, read_reactions
from rayzyme.errors import InvalidInput, InvalidReaction, NotFound

NAD_OXIDISED = (
    "NC(=O)c1ccc[n+]([C@@H]2O[C@H](COP(=O)(O)OP(=O)(O)OC[C@H]3O[C@@H](n4cnc5c(N)ncnc54)[C@H](O)[C@@H]3O)"
    "[C@@H](O)[C@H]2O)c1"
)

# Pairs of spellings that differ only in protonation.
SAME_WHATEVER_THE_PH = [
    ("CC(=O)[O-]", "CC(=O)O"),
    ("O=P([O-])([O-])[O-]", "O=P(O)(O)O"),
    ("C[NH3+]", "CN"),
    ("[NH4+]", "N"),
    ("[OH-]", "O"),
    ("[NH3+][C@@H](C)C(=O)[O-]", "N[C@@H](C)C(=O)O"),
    ("NC(=[NH2+])NCCC", "NC(=N)NCCC"),
    ("C[n+]1ccccc1.CC(=O)[O-]", "C[n+]1ccccc1.CC(=O)O"),
    ("C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)O"),
    (NAD_OXIDISED.replace("P(=O)(O)O", "P(=O)([O-])O", 1), NAD_OXIDISED),
    ("c1c[nH]c[nH+]1", "c1c[nH]cn1"),
]


class TestParsing:
    def test_two_sides(self) -> None:
        reaction = parse_reaction("  CCO.O=O>>CC=O.OO\n")
        assert (reaction.text, reaction.reactants, reaction.products) == ("CCO.O=O>>CC=O.OO", "CCO.O=O", "CC=O.OO")

    def test_agents_between_the_arrows_are_kept_apart(self) -> None:
        reaction = parse_reaction("CCO>[Pd]>CC=O")
        assert reaction.agents == "[Pd]"
        assert reaction.equation == "CCO>>CC=O"

    @pytest.mark.parametrize(
        "text",
        [
            "[CH3:1][OH:2]>>[CH2:1]=[O:2]",
            "C[N+](C)(C)CCO.[Cl-]>>OCC",
            "*CO>>*C=O",
            "C1.C1O>>CCO",
            "[NH3]->[Fe+2]>>N.[Fe+2]",
        ],
        ids=["atom maps", "charges", "any atom", "ring bond across a dot", "dative bond"],
    )
    def test_accepts(self, text: str) -> None:
        assert parse_reaction(text).text == text

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "it is empty"),
            ("   ", "it is empty"),
            ("CCO", "it must have two '>' (reactants>>products, or reactants>agents>products) and has 0"),
            ("CCO>CC=O", "and has 1"),
            ("CCO>>CC=O>>CC(=O)O", "and has 4"),
            (">>CCO", "the reactant side is empty"),
            ("CCO>>", "the product side is empty"),
            ("CCX>>CCO", "the reactant 'CCX' is not valid SMILES: syntax error near character 3 ('X')"),
            ("CCO>>C1CC", "the product 'C1CC' is not valid SMILES: unclosed ring"),
            ("CCO>Q>CC", "the agent 'Q' is not valid SMILES"),
            ("CC(C)(C)(C)C>>C", "atom 2 (C) has 5 bonds, more than it can have"),
            ("c1cccc1>>C", "an aromatic ring has no valid pattern of double bonds"),
            ("CC)>>C", "extra close parentheses near character 3"),
            ("CCO..O>>C", "on the reactant side there is a dot without a molecule before or after it"),
            ("CCO>>CC=O ethanol oxidation", "after a blank follows 'ethanol oxidation'"),
            ("CCO >> CC=O", "after a blank follows '>> CC=O'"),
            ("C" * 20_001 + ">>C", "it has 20,004 characters; the most that is read is 20,000"),
        ],
    )
    def test_refuses_with_a_reason(self, text: str, reason: str) -> None:
        with pytest.raises(InvalidReaction) as caught:
            parse_reaction(text)
        assert reason in str(caught.value)

    def test_says_which_reaction_it_is(self) -> None:
        with pytest.raises(InvalidReaction, match=r"^line 12 \('CCX>>C'\): the reactant"):
            parse_reaction("CCX>>C", called="line 12")

    def test_a_value_that_is_no_text_is_refused(self) -> None:
        with pytest.raises(InvalidReaction, match="written as text"):
            parse_reaction(None)  # type: ignore[arg-type]

    def test_nothing_is_written_to_the_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        parse_reaction("[H][H]>>[H+]")
        with pytest.raises(InvalidReaction):
            parse_reaction("CCX>>C")
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", "")


class TestReactionKey:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("CCO>>CC=O", "CC=O>>CCO"),
            ("CCO.O=O>>CC=O.OO", "O=O.OCC>>OO.O=CC"),
            ("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:3]", "CCO>>CC=O"),
            ("C[C@H](O)C(=O)O>>CC(=O)C(=O)O", "C[C@@H](O)C(=O)O>>CC(=O)C(=O)O"),
            (r"C/C=C/C>>CCCC", r"C/C=C\C>>CCCC"),
            ("CCO>>CC=O.[H+].[H+]", "CCO>>CC=O"),
            ("OO.OO>>O.O.O=O", "OO>>O.O=O"),
            ("CCO>[Pd]>CC=O", "CCO>>CC=O"),
            ("C1.C1O>>CC=O", "CCO>>CC=O"),
        ],
        ids=["direction", "order", "maps", "centres", "double bonds", "protons", "stoichiometry", "agents", "dots"],
    )
    def test_is_the_same_for_one_transformation(self, one: str, other: str) -> None:
        assert reaction_key(one) == reaction_key(other)

    @pytest.mark.parametrize(("charged", "neutral"), SAME_WHATEVER_THE_PH)
    def test_does_not_depend_on_protonation(self, charged: str, neutral: str) -> None:
        assert reaction_key(f"{charged}>>CCO") == reaction_key(f"{neutral}>>CCO")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("CCO>>CC=O", "CCO>>CC(=O)O"),
            ("[Fe+2].O>>[Fe+3].OO", "[Fe+2].O>>[Fe+2].OO"),
            ("C[N+](C)(C)C>>C", "CN(C)C>>C"),
            ("C[N+](=O)[O-]>>C", "CN(O)O>>C"),
            ("[2H]C>>CO", "C>>CO"),
        ],
        ids=["molecules", "oxidation state of a metal", "quaternary nitrogen", "nitro group", "isotope"],
    )
    def test_differs_for_other_transformations(self, one: str, other: str) -> None:
        assert reaction_key(one) != reaction_key(other)

    def test_is_itself_a_reaction_with_the_same_key(self) -> None:
        key = reaction_key("C[C@H]([NH3+])C(=O)[O-].[H+]>>CC(=O)C(=O)[O-].[NH4+]")
        assert key == "CC(=O)C(=O)O.N>>CC(N)C(=O)O"
        assert reaction_key(key) == key

    def test_a_side_of_protons_only_is_empty(self) -> None:
        assert reaction_key("[H+]>>[H][H]") == ">>[H][H]"

    @given(seed=st.integers(0, 2**32 - 1))
    def test_does_not_depend_on_how_the_smiles_is_written(self, seed: int) -> None:
        reaction = f"{NAD_OXIDISED}.C[C@H](O)C(=O)[O-]>>CC(=O)C(=O)[O-].[H+]"
        assert reaction_key(rewritten(reaction, seed)) == reaction_key(reaction)


class TestCanonicalReaction:
    def test_order_and_spelling_do_not_matter(self) -> None:
        assert canonical_reaction("OCC.O=O>>O=CC.OO") == canonical_reaction("O=O.CCO>>OO.CC=O") == "CCO.O=O>>CC=O.OO"

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("CCO>>CC=O", "CC=O>>CCO"),
            ("C[C@H](O)F>>CC", "C[C@@H](O)F>>CC"),
            ("CC(=O)O>>CC", "CC(=O)[O-]>>CC"),
            ("OO>>O", "OO.OO>>O"),
            ("[CH3:1][OH:2]>>[CH2:1]=[O:2]", "[CH3:2][OH:1]>>[CH2:2]=[O:1]"),
        ],
        ids=["direction", "stereochemistry", "charge", "stoichiometry", "atom maps"],
    )
    def test_keeps_what_an_embedding_may_depend_on(self, one: str, other: str) -> None:
        assert canonical_reaction(one) != canonical_reaction(other)

    @given(seed=st.integers(0, 2**32 - 1))
    def test_does_not_depend_on_how_the_smiles_is_written(self, seed: int) -> None:
        reaction = f"{NAD_OXIDISED}.C[C@H](O)C(=O)[O-]>>CC(=O)C(=O)[O-].[H+]"
        assert canonical_reaction(rewritten(reaction, seed)) == canonical_reaction(reaction)


@pytest.mark.shared
class TestRealReactions:
    def test_every_reaction_of_the_data_set_has_a_key_that_is_its_own_key(self, shared: Path) -> None:
        keys = [reaction_key(reaction) for reaction in real_reactions(shared)]
        assert all(reaction_key(key) == key for key in keys if not key.startswith(">>"))

    def test_turning_a_real_reaction_around_keeps_its_key(self, shared: Path) -> None:
        for reaction in real_reactions(shared)[::20]:
            reactants, products = reaction.split(">>")
            assert reaction_key(f"{products}>>{reactants}") == reaction_key(reaction)

    def test_atom_maps_do_not_change_the_key(self, shared: Path) -> None:
        for mapped in json.loads((shared / "fixtures/clipzyme/reactions.json").read_text()):
            molecules = [Chem.MolFromSmiles(side) for side in mapped.split(">>")]
            for molecule in molecules:
                for atom in molecule.GetAtoms():
                    atom.SetAtomMapNum(0)
            plain = ">>".join(Chem.MolToSmiles(molecule) for molecule in molecules)
            assert reaction_key(mapped) == reaction_key(plain)


class TestDrawing:
    def test_is_inline_svg_of_the_size_asked_for(self) -> None:
        svg = draw_reaction("CCO>>CC=O", width=500, height=120)
        root = ElementTree.fromstring(svg)
        assert svg.startswith("<svg")
        assert (root.get("width"), root.get("height"), root.get("role")) == ("500", "120", "img")

    def test_is_as_high_as_needed_where_no_height_is_given(self) -> None:
        small, large = (
            int(ElementTree.fromstring(draw_reaction(reaction, 900, None)).get("height", "0"))
            for reaction in ("CCO>>CC=O", f"{NAD_OXIDISED}.CCO>>{NAD_OXIDISED}.CC=O.[H+]")
        )
        assert 20 < small < 120 < large < 700

    def test_atom_maps_are_not_drawn(self) -> None:
        mapped = draw_reaction("[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:3]")
        assert picture_of(mapped) == picture_of(draw_reaction("CCO>>CC=O"))

    def test_equal_molecules_are_counted(self) -> None:
        texts = [
            element.text for element in ElementTree.fromstring(draw_reaction("OO.OO>>O.O.O=O")).iter() if element.text
        ]
        assert texts.count("2") == 2

    def test_the_title_cannot_end_the_svg(self) -> None:
        reaction = "[NH3]->[Fe+2]>>N.[Fe+2]"
        assert f"<title>Reaction {reaction.replace('>', '&gt;')}</title>" in draw_reaction(reaction)

    def test_refuses_an_invalid_reaction(self) -> None:
        with pytest.raises(InvalidReaction, match="the product 'CCX'"):
            draw_reaction("CCO>>CCX")

    def test_refuses_an_impossible_size(self) -> None:
        with pytest.raises(InvalidReaction, match="0 x 180 pixels"):
            draw_reaction("CCO>>CC=O", width=0)


class TestFiles:
    def test_a_table(self, tmp_path: Path) -> None:
        found = read_reactions(
            written(
                tmp_path,
                "reaction_id,note,reaction_smiles,known_enzymes\n"
                '# alcohols first\n\nadh,x,CCO>>CC=O,"P00330, P00331,,P00330"\ncat,,OO>>O.O=O,\n',
            )
        )
        assert [(r.reaction_id, r.reaction, r.known_enzymes, r.line) for r in found.records] == [
            ("adh", "CCO>>CC=O", ("P00330", "P00331"), 4),
            ("cat", "OO>>O.O=O", (), 5),
        ]
        assert found.rejected == []

    def test_a_table_with_tabs(self, tmp_path: Path) -> None:
        found = read_reactions(written(tmp_path, "reaction_id\treaction_smiles\nadh\tCCO>>CC=O\n"))
        assert [r.reaction_id for r in found.records] == ["adh"]

    def test_a_list_of_smiles(self, tmp_path: Path) -> None:
        found = read_reactions(written(tmp_path, "\n# two reactions\nCCO>>CC=O\n\nOO>>O.O=O"))
        assert [(r.reaction_id, r.reaction, r.line) for r in found.records] == [
            ("1", "CCO>>CC=O", 3),
            ("2", "OO>>O.O=O", 5),
        ]

    @pytest.mark.parametrize("text", ["reaction_id,reaction_smiles\na,CCO>>CC=O\n", "CCO>>CC=O\n"])
    def test_a_byte_order_mark_and_windows_line_ends_change_nothing(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "windows.csv"
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        assert [r.reaction for r in read_reactions(path).records] == ["CCO>>CC=O"]

    def test_bad_rows_are_rejected_with_their_line_and_the_others_read(self, tmp_path: Path) -> None:
        found = read_reactions(
            written(
                tmp_path,
                "reaction_id,reaction_smiles,known_enzymes\n"
                "good,CCO>>CC=O,P1\n"
                "bad,CCX>>CC=O,P1\n"
                "good,OO>>O.O=O,P1\n"
                ",OO>>O.O=O,P1\n"
                "open,CCO>>CC=O,P1,P2\n"
                "short,CCO>>CC=O\n",
            )
        )
        assert [r.reaction_id for r in found.records] == ["good"]
        assert [(r.line, r.reason) for r in found.rejected] == [
            (3, "line 3 ('CCX>>CC=O'): the reactant 'CCX' is not valid SMILES: syntax error near character 3 ('X')"),
            (4, "line 4: reaction_id 'good' was used before, on line 2"),
            (5, "line 5: reaction_id is empty"),
            (6, "line 6: 4 fields where the header has 3; put quotes around a value that holds commas"),
            (7, "line 7: 2 fields where the header has 3"),
        ]

    def test_a_name_after_the_smiles_is_rejected_and_the_numbering_goes_on(self, tmp_path: Path) -> None:
        found = read_reactions(written(tmp_path, "CCO>>CC=O ethanol\nOO>>O.O=O\n"))
        assert [r.reaction_id for r in found.records] == ["2"]
        assert "line 1" in found.rejected[0].reason
        assert "after a blank follows 'ethanol'" in found.rejected[0].reason

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "the file holds no reaction"),
            (b"\n# only a comment\n", "the file holds no reaction"),
            (b"reaction_id,reaction_smiles\n", "a header and no reaction below it"),
            (
                b"id,smiles\na,CCO>>CC=O\n",
                "no column reaction_id and no column reaction_smiles; its columns are: id, smiles",
            ),
            (
                b"reaction_id,reaction\na,CCO>>CC=O\n",
                "no column reaction_smiles; its columns are: reaction_id, reaction",
            ),
            (b"reaction_id,reaction_smiles,reaction_id\na,CCO>>CC=O,b\n", "a column occurs twice"),
            ("réaction>>CCO\n".encode("latin-1"), "not UTF-8 text (byte 2)"),
            (b'reaction_id,reaction_smiles\na,"CCO>>CC=O\n', "line 2 is not a valid table row"),
        ],
    )
    def test_a_file_that_is_unusable_as_a_whole_is_refused(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "reactions.csv"
        path.write_bytes(content)
        with pytest.raises(InvalidInput) as caught:
            read_reactions(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)

    def test_a_file_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="no such file"):
            read_reactions(tmp_path / "absent.csv")

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_reactions(tmp_path)


def rewritten(reaction: str, seed: int) -> str:
    """The same reaction with its molecules in another order and each written from another atom."""
    sides = []
    for number, side in enumerate(reaction.split(">>")):
        molecules = side.split(".")
        random.Random(seed + number).shuffle(molecules)
        sides.append(
            ".".join(
                Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(m), 1, randomSeed=seed % 10_000 + 1)[0] for m in molecules
            )
        )
    return ">>".join(sides)


def picture_of(svg: str) -> str:
    return svg.split("</title>")[1]


def real_reactions(shared: Path) -> list[str]:
    lines = (shared / "data/reactions.tsv").read_text().splitlines()[1:]
    return [line.split("\t")[1] for line in lines]


def written(folder: Path, text: str) -> Path:
    path = folder / "reactions.csv"
    path.write_text(text)
    return path


def test_a_reaction_that_is_too_large_to_be_drawn_or_fingerprinted_in_time_is_refused() -> None:
    with pytest.raises(InvalidReaction, match="1,201 atoms on one side; the most that is read is 1,200"):
        parse_reaction("CC>>" + "C" * 1_201)
    assert parse_reaction("CC>>" + "[CH2]" * 1_200).products
