"""The bundled model: what its embeddings promise, what it finds, and how it is made."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rayzyme.errors import CheckpointError, InvalidInput, InvalidProtein, InvalidReaction, NotFound
from rayzyme.models.baseline import BaselineEncoder
from rayzyme.models.baseline.encoder import BUNDLED_WEIGHTS, DATA, REFERENCE_SET
from rayzyme.models.baseline.enzyme_classes import ClassRelations, TransferWeights, split_ec_number
from rayzyme.models.baseline.features import SEQUENCE_FEATURES, reaction_tokens, sequence_features
from rayzyme.models.baseline.landmarks import TokenIndex
from rayzyme.models.baseline.splits import fold_of
from rayzyme.models.baseline.train import main, train
from rayzyme.models.encoder import Encoder
from rayzyme.proteins import Protein
from rayzyme.screening import ScreeningSet

ACETATE_TO_ETHANOL = "CC(=O)O>>CCO"
TRANSAMINATION = "C[C@H](N)C(=O)O.O=C(O)CCC(=O)C(=O)O>>CC(=O)C(=O)O.N[C@@H](CCC(=O)O)C(=O)O"
NAD = (
    "NC(=O)c1ccc[n+]([C@@H]2O[C@H](COP(=O)(O)OP(=O)(O)OC[C@H]3O[C@@H](n4cnc5c(N)ncnc54)[C@H](O)[C@@H]3O)"
    "[C@@H](O)[C@H]2O)c1"
)
NADH = (
    "NC(=O)C1=CN([C@@H]2O[C@H](COP(=O)(O)OP(=O)(O)OC[C@H]3O[C@@H](n4cnc5c(N)ncnc54)[C@H](O)[C@@H]3O)"
    "[C@@H](O)[C@H]2O)C=CC1"
)
ALCOHOL_DEHYDROGENASE = f"CCO.{NAD}>>CC=O.{NADH}.[H+]"
LACTASE = "OCC1OC(OC2C(O)C(O)C(O)OC2CO)C(O)C(O)C1O.O>>OCC1OC(O)C(O)C(O)C1O.OCC1OC(O)C(O)C(O)C1O"
CATALASE = "OO.OO>>O.O.O=O"


@pytest.fixture(scope="module")
def encoder() -> BaselineEncoder:
    return BaselineEncoder.load()


@pytest.fixture(scope="module")
def reference() -> ScreeningSet:
    return ScreeningSet.open(REFERENCE_SET)


def classes_by_rank(encoder: BaselineEncoder, reference: ScreeningSet, reaction: str) -> list[list[str]]:
    """EC numbers of the reference enzymes, best first."""
    scores = reference.embeddings.astype(np.float32) @ encoder.encode_reactions([reaction])[0]
    numbers = reference.metadata["ec"].to_pylist()
    return [numbers[row].split(";") for row in np.argsort(-scores, kind="stable")]


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_it_is_an_encoder_and_its_digest_is_that_of_its_file(encoder: BaselineEncoder) -> None:
    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.needs_atom_mapping) == ("baseline", False)
    assert encoder.dimension <= 512
    assert encoder.digest == hashlib.sha256(BUNDLED_WEIGHTS.read_bytes()).hexdigest()


def test_embeddings_are_unit_float32_rows(encoder: BaselineEncoder) -> None:
    reactions = encoder.encode_reactions([ACETATE_TO_ETHANOL, CATALASE, "[H+]>>[H][H]", "[Fe+2]>>[Fe+3]"])
    proteins = encoder.encode_proteins([Protein("short", "M"), Protein("odd", "XXUOX"), Protein("long", "MKLV" * 3000)])
    for rows, count in ((reactions, 4), (proteins, 3)):
        assert rows.dtype == np.float32
        assert rows.shape == (count, encoder.dimension)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_nothing_in_gives_nothing_out(encoder: BaselineEncoder) -> None:
    assert encoder.encode_reactions([]).shape == (0, encoder.dimension)
    assert encoder.encode_proteins([]).shape == (0, encoder.dimension)


def test_a_batch_gives_the_numbers_of_one_at_a_time(encoder: BaselineEncoder) -> None:
    reactions = [ACETATE_TO_ETHANOL, TRANSAMINATION, LACTASE, CATALASE, ACETATE_TO_ETHANOL, ALCOHOL_DEHYDROGENASE]
    singly = np.concatenate([encoder.encode_reactions([one]) for one in reactions])
    np.testing.assert_array_equal(encoder.encode_reactions(reactions), singly)

    letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), (300, 200))
    proteins = [Protein(str(row), "".join(sequence)) for row, sequence in enumerate(letters)]
    singly = np.concatenate([encoder.encode_proteins([one]) for one in proteins])
    np.testing.assert_allclose(encoder.encode_proteins(proteins), singly, rtol=0, atol=1e-6)


def test_embeddings_do_not_depend_on_the_process(encoder: BaselineEncoder) -> None:
    program = (
        "from rayzyme.models.baseline import BaselineEncoder; import sys;"
        f"sys.stdout.buffer.write(BaselineEncoder.load().encode_reactions([{LACTASE!r}]).tobytes())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    np.testing.assert_array_equal(np.frombuffer(other.stdout, np.float32), encoder.encode_reactions([LACTASE])[0])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("direction", "CC(=O)C(=O)O.N[C@@H](CCC(=O)O)C(=O)O>>C[C@H](N)C(=O)O.O=C(O)CCC(=O)C(=O)O"),
        ("order of molecules", "O=C(O)CCC(=O)C(=O)O.C[C@H](N)C(=O)O>>N[C@@H](CCC(=O)O)C(=O)O.CC(=O)C(=O)O"),
        (
            "protonation",
            "C[C@H]([NH3+])C(=O)[O-].O=C([O-])CCC(=O)C(=O)[O-]>>CC(=O)C(=O)[O-].[NH3+][C@@H](CCC(=O)[O-])C(=O)[O-]",
        ),
        ("protons", TRANSAMINATION + ".[H+]"),
        ("stereochemistry", "CC(N)C(=O)O.O=C(O)CCC(=O)C(=O)O>>CC(=O)C(=O)O.NC(CCC(=O)O)C(=O)O"),
        (
            "atom maps",
            "[CH3:1][C@H:2]([NH2:3])[C:4](=[O:5])[OH:6].O=C(O)CC[C:7](=O)C(=O)O>>CC(=O)C(=O)O.N[C@@H](CCC(=O)O)C(=O)O",
        ),
        ("agents", "C[C@H](N)C(=O)O.O=C(O)CCC(=O)C(=O)O>O>CC(=O)C(=O)O.N[C@@H](CCC(=O)O)C(=O)O"),
    ],
)
def test_a_way_of_writing_changes_no_embedding(encoder: BaselineEncoder, change: str, same: str) -> None:
    one, other = encoder.encode_reactions([TRANSAMINATION, same])
    np.testing.assert_array_equal(one, other, err_msg=change)


def test_another_reaction_has_another_embedding(encoder: BaselineEncoder) -> None:
    one, other = encoder.encode_reactions([TRANSAMINATION, ACETATE_TO_ETHANOL])
    assert float(one @ other) < 0.9


@pytest.mark.parametrize(
    ("reaction", "reason"),
    [
        ("CC(=O)O>>", "the product side is empty"),
        (">>CCO", "the reactant side is empty"),
        ("CCO", "it must have two '>'"),
        ("", "it is empty"),
        ("CC(=O)O>>C1CO", "'C1CO' is not valid SMILES"),
    ],
)
def test_a_bad_reaction_is_named_by_position_and_text(encoder: BaselineEncoder, reaction: str, reason: str) -> None:
    with pytest.raises(InvalidReaction, match="reaction 2") as refused:
        encoder.encode_reactions([ACETATE_TO_ETHANOL, reaction])
    assert reason in str(refused.value)
    assert reaction in str(refused.value)


def test_a_bad_sequence_is_named(encoder: BaselineEncoder) -> None:
    with pytest.raises(InvalidProtein, match=r"P2.*'1'"):
        encoder.encode_proteins([Protein("P1", "MKV"), Protein("P2", "MK1V")])


# --- the weights file -------------------------------------------------------------------------------------------------


def test_absent_weights_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        BaselineEncoder.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "weights.safetensors"
    cut.write_bytes(BUNDLED_WEIGHTS.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        BaselineEncoder.load(cut)


def bundled_parts() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    length = int.from_bytes(BUNDLED_WEIGHTS.read_bytes()[:8], "little")
    header = json.loads(BUNDLED_WEIGHTS.read_bytes()[8 : 8 + length])
    return load_file(BUNDLED_WEIGHTS), header["__metadata__"]


def test_another_model_in_the_same_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(CheckpointError, match="no baseline model"):
        BaselineEncoder.load(path)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("reaction.votes", np.zeros((7, 3), np.float16), "protein.class_vectors has shape|landmarks"),
        ("reaction.weights", np.full(4, np.nan, np.float32), "holds NaN"),
        ("reaction.weights", np.ones(4, np.float64), "float64"),
        ("identities.classes", None, "lacks tensor identities.classes"),
        ("surplus", np.zeros(1, np.float32), "unknown tensor surplus"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, tensor: str, value: np.ndarray | None, message: str) -> None:
    tensors, header = bundled_parts()
    if value is None:
        del tensors[tensor]
    else:
        tensors[tensor] = value
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match=message):
        BaselineEncoder.load(path)


def test_an_identity_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    tensors, header = bundled_parts()
    tensors["identities.classes"][0] = 1_000_000
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match=r"identities\.classes points outside"):
        BaselineEncoder.load(path)


def test_fingerprints_of_another_rdkit_are_refused(tmp_path: Path) -> None:
    tensors, header = bundled_parts()
    facts = {**json.loads(header["rayzyme-baseline"]), "probe": "0" * 64, "rdkit": "1999.01"}
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, metadata={"rayzyme-baseline": json.dumps(facts)})
    with pytest.raises(CheckpointError, match=r"trained with RDKit 1999\.01"):
        BaselineEncoder.load(path)


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reaction"),
    [
        ("1.1.1.27", f"CC(O)C(=O)O.{NAD}>>CC(=O)C(=O)O.{NADH}"),
        ("2.6.1.2", TRANSAMINATION),
        ("3.1.1.7", "CC(=O)OCC[N+](C)(C)C.O>>CC(=O)[O-].OCC[N+](C)(C)C.[H+]"),
        ("4.2.1.2", "OC(=O)/C=C/C(=O)O.O>>OC(=O)CC(O)C(=O)O"),
        ("4.2.1.11", "OCC(OP(=O)(O)O)C(=O)O>>C=C(OP(=O)(O)O)C(=O)O.O"),
        ("5.3.1.1", "O=CC(O)COP(=O)(O)O>>OCC(=O)COP(=O)(O)O"),
    ],
)
def test_a_reaction_of_the_training_set_finds_all_its_enzymes_first(
    encoder: BaselineEncoder, reference: ScreeningSet, number: str, reaction: str
) -> None:
    ranked = classes_by_rank(encoder, reference, reaction)
    known = sum(number in numbers for numbers in ranked)
    assert known > 1
    assert all(number in numbers for numbers in ranked[:known])


@pytest.mark.parametrize(
    ("number", "reaction"), [("1.1.1.1", ALCOHOL_DEHYDROGENASE), ("3.2.1.23", LACTASE)], ids=["ethanol", "lactose"]
)
def test_a_reaction_whose_class_has_no_example_finds_its_sub_subclass(
    encoder: BaselineEncoder, reference: ScreeningSet, number: str, reaction: str
) -> None:
    ranked = classes_by_rank(encoder, reference, reaction)
    own = number.rpartition(".")[0] + "."
    alike = [any(one.startswith(own) for one in numbers) for numbers in ranked]
    assert alike[0]
    assert sum(alike[:50]) >= 45
    first = next(rank for rank, numbers in enumerate(ranked, start=1) if number in numbers)
    assert first <= 200


def test_the_figures_shipped_meet_the_bar() -> None:
    measured = json.loads((DATA / "metrics.json").read_text())["unseen_reactions"]
    model, yardstick = (measured[name]["bedroc_85"] for name in ("model", "nearest_neighbour"))
    assert model["low"] > 0.43
    assert model["low"] <= model["mean"] <= model["high"]
    assert model["mean"] > yardstick["mean"]
    assert model["low"] <= np.mean(measured["model_bedroc_85_by_fold"]) <= model["high"]


def test_the_reference_set_is_small_and_made_by_the_bundled_weights(
    encoder: BaselineEncoder, reference: ScreeningSet
) -> None:
    assert len(reference) == 7757
    assert reference.embedding_type == "float16"
    assert reference.metadata.column_names == ["ec"]
    assert reference.checkpoint.digest == encoder.digest
    assert REFERENCE_SET.stat().st_size < 10_000_000


@pytest.mark.shared
def test_the_reference_set_holds_what_the_encoder_gives(
    encoder: BaselineEncoder, reference: ScreeningSet, shared: Path
) -> None:
    lines = (shared / "data" / "enzymes.tsv").read_text().splitlines()[1:]
    chosen = np.random.default_rng(1).choice(len(lines), 50, replace=False)
    records = [lines[row].split("\t") for row in chosen]
    embedded = encoder.encode_proteins([Protein(accession, sequence) for accession, _, sequence in records])
    place = {accession: row for row, accession in enumerate(reference.protein_ids)}
    stored = reference.embeddings[[place[accession] for accession, *_ in records]]
    np.testing.assert_allclose(stored.astype(np.float32), embedded, rtol=0, atol=5e-4)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_exchanging_the_sides_exchanges_the_directions() -> None:
    one, other = reaction_tokens("CC(=O)O>>CCO"), reaction_tokens("CCO>>CC(=O)O")
    for name, tokens in one.forward.items():
        np.testing.assert_array_equal(tokens, other.backward[name])
    np.testing.assert_array_equal(one.total["atoms"], other.total["atoms"])


def test_similarity_is_tanimotos() -> None:
    index = TokenIndex.build([np.array(tokens) for tokens in ([1, 2, 3], [3, 4], [])], weighted=False)
    np.testing.assert_allclose(index.similarities(np.array([2, 3, 9])), [2 / 4, 1 / 4, 0])
    np.testing.assert_allclose(index.similarities(np.array([], np.int64)), [0, 0, 1])


def test_a_token_that_every_landmark_has_weighs_nothing() -> None:
    index = TokenIndex.build([np.array(tokens) for tokens in ([1, 2], [1, 3], [1, 4])], weighted=True)
    np.testing.assert_allclose(index.similarities(np.array([1, 2])), [1, 0, 0])


def test_sequence_features_have_unit_blocks_and_skip_unknown_letters() -> None:
    features = sequence_features("MKVLAAGICW")
    assert features.shape == (SEQUENCE_FEATURES,)
    np.testing.assert_allclose(np.square(features).sum(), 5, rtol=1e-6)
    np.testing.assert_array_equal(sequence_features("MKX"), sequence_features("MKB"))
    assert not sequence_features("XXX").any()


def test_votes_follow_the_hierarchy() -> None:
    relations = ClassRelations.between(["1.1.1.5"], ["1.1.1.5", "1.1.1.6", "1.1.1.60", "1.1.2.5", "1.2.1.5", "2.1.1.5"])
    weights = TransferWeights(0.01, 0.1, 1.0, (1.0, 0.0, 0.0, 0.0), crowding=0.0)
    votes = relations.transfer(weights, np.ones(6, np.int64))[0]
    assert votes[0] == votes[1] > votes[2] > votes[3] > votes[4] > votes[5] == 0
    np.testing.assert_array_equal(relations.same[0], [1, 0, 0, 0, 0, 0])


def test_provisional_numbers_have_no_neighbours() -> None:
    relations = ClassRelations.between(["1.1.1.n5"], ["1.1.1.4", "1.1.1.n5"])
    assert not relations.serial.any()
    assert relations.levels[2].all()
    assert relations.same[0].tolist() == [0, 1]


@pytest.mark.parametrize("number", ["1.1.1", "1.1.1.-", "", "8.1.1.1", "1.1.1.x"])
def test_an_incomplete_ec_number_is_refused(number: str) -> None:
    with pytest.raises(InvalidInput, match="no complete EC number"):
        split_ec_number(number)


def test_folds_are_those_of_the_key_alone() -> None:
    assert fold_of("CCO>>CC=O", 5) == fold_of("CCO>>CC=O", 5)
    assert {fold_of(f"{'C' * n}O>>C", 5) for n in range(1, 60)} == {0, 1, 2, 3, 4}


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_tables(shared: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Sixty reactions and the enzymes of their classes."""
    reactions = (shared / "data" / "reactions.tsv").read_text().splitlines()
    enzymes = (shared / "data" / "enzymes.tsv").read_text().splitlines()
    carried = {number for line in enzymes[1:] for number in line.split("\t")[1].split(";")}
    chosen = [line for line in reactions[1:] if line.split("\t")[0] in carried][::20][:60]
    wanted = {line.split("\t")[0] for line in chosen}
    kept = [line for line in enzymes[1:] if wanted.intersection(line.split("\t")[1].split(";"))]
    one, other = tmp_path / "reactions.tsv", tmp_path / "enzymes.tsv"
    one.write_text("\n".join([reactions[0], *chosen]) + "\n")
    other.write_text("\n".join([enzymes[0], *kept]) + "\n")
    return one, other


@pytest.mark.shared
def test_training_makes_a_model_a_reference_set_and_figures(tiny_tables: tuple[Path, Path], tmp_path: Path) -> None:
    metrics = train(*tiny_tables, tmp_path / "one", seed=3, folds=2)
    train(*tiny_tables, tmp_path / "two", seed=3, folds=0)
    one, two = (BaselineEncoder.load(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.digest == two.digest, "the same tables and seed give the same weights"

    reference = ScreeningSet.open(tmp_path / "one" / "reference_set.arrow")
    assert reference.checkpoint.digest == one.digest
    assert json.loads((tmp_path / "one" / "metrics.json").read_text()) == metrics
    assert metrics["unseen_reactions"]["model"]["examples"] == metrics["data"]["reactions_with_an_enzyme"]

    known = [line.split("\t") for line in tiny_tables[0].read_text().splitlines()[1:]]
    best = [classes_by_rank(one, reference, reaction)[0] for _, reaction in known]
    found = np.mean([number in numbers for (number, _), numbers in zip(known, best, strict=True)])
    assert found > 0.8, "reactions of the training set find their enzymes first"


def test_training_says_which_table_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reactions = tmp_path / "reactions.tsv"
    reactions.write_text("number\treaction\n1.1.1.1\tCCO>>CC=O\n")
    options = ["--reactions", str(reactions), "--enzymes", str(tmp_path / "absent.tsv"), "--output", str(tmp_path)]
    assert main(options) == 1
    assert "lacks column 'ec'; it has number, reaction" in caplog.text
    reactions.write_text("ec\treaction\n1.1.1.1\tCCO>>CC=O\n")
    assert main(options) == 1
    assert "absent.tsv does not exist" in caplog.text
