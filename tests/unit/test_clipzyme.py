"""CLIPZyme's encoders: published numbers, variants, invariances, and refusals."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.direct_egnn import DirectProteinEncoder
from benchmarks.random_clipzyme import clipzyme_options, random_protein_graph, random_state_dict, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem

from rayzyme.errors import CheckpointError, DeviceUnavailable, InvalidProtein, InvalidReaction, NotFound
from rayzyme.models.clipzyme import ClipzymeEncoder, ProteinGraph, read_checkpoint
from rayzyme.models.clipzyme.distance_expansion import DistanceExpansion, sinusoidal_embedding
from rayzyme.models.clipzyme.reaction_graph import build_reaction_graph
from rayzyme.models.encoder import Encoder
from rayzyme.packed_linear import PackedLinear
from rayzyme.proteins import Protein

SMALL = {"protein_dim": 16, "feat_proj_dim": 16, "chemprop_hidden_dim": 16, "message_dim": 6, "egcl_layers": 3}
OXIDATION = "[CH3:1][CH2:2][OH:3].[O:4]=[O:5]>>[CH3:1][CH:2]=[O:3].[OH:4][OH:5]"
EPOXIDATION = "[CH2:1]=[CH:2][CH2:3][CH2:4][CH3:5].[OH:6][OH:7]>>[CH2:1]1[CH:2]([CH2:3][CH2:4][CH3:5])[O:6]1.[OH2:7]"
HYDRATION = r"[CH3:1]/[CH:2]=[CH:3]\[C:4](=[O:5])[OH:6].[OH2:7]>>[CH3:1][C@H:2]([OH:7])[CH2:3][C:4](=[O:5])[OH:6]"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipzymeEncoder:
    return ClipzymeEncoder.load(write_checkpoint(tmp_path_factory.mktemp("clipzyme") / "small.ckpt", **SMALL))


# --- the published numbers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path) -> ClipzymeEncoder:
    return ClipzymeEncoder.load(shared / "fixtures/clipzyme/checkpoint.ckpt")


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "fixtures/clipzyme/expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.shared
def test_reaction_embeddings_are_those_of_the_published_code(
    shared: Path, published: ClipzymeEncoder, expected: dict[str, np.ndarray]
) -> None:
    reactions = json.loads((shared / "fixtures/clipzyme/reactions.json").read_text())

    np.testing.assert_allclose(
        published.encode_reactions(reactions), expected["reaction_embeddings"], rtol=0, atol=1e-6
    )


@pytest.mark.shared
@pytest.mark.parametrize("given_edges", [True, False])
def test_protein_embedding_is_that_of_the_published_code(
    published: ClipzymeEncoder, expected: dict[str, np.ndarray], given_edges: bool
) -> None:
    edges = expected["knn_edges"] if given_edges else None
    graph = ProteinGraph(expected["ca_positions"], expected["residue_features"], edges)

    embedding = published.encode_protein_graphs([graph])

    np.testing.assert_allclose(embedding[0], expected["protein_embedding"], rtol=0, atol=1e-6)


@pytest.mark.shared
def test_proteins_are_encoded_from_their_structure_files(
    shared: Path, published: ClipzymeEncoder, expected: dict[str, np.ndarray]
) -> None:
    class KnownFeatures:
        """Stands where ESM-2 does, with the features that the expected embedding was computed from."""

        name, dimension, asked = "known", 32, list[str]()

        def encode(self, sequences: list[str], protein_ids: list[str] | None = None) -> list[np.ndarray]:
            self.asked.extend(sequences)
            return [expected["residue_features"] for _ in sequences]

    encoder = ClipzymeEncoder.load(
        shared / "fixtures/clipzyme/checkpoint.ckpt",
        residue_encoder=KnownFeatures(),  # type: ignore[arg-type]
    )
    protein = Protein("P69905", "", shared / "data/AF-P69905-F1-model_v4.cif")

    np.testing.assert_allclose(encoder.encode_proteins([protein])[0], expected["protein_embedding"], rtol=0, atol=1e-5)
    assert KnownFeatures.asked[0].startswith("MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF")


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"norm_feats": False},
        {"norm_coors": False},
        {"update_feats": False},
        {"update_coors": False},
        {"neighbour_aggr": "sum"},
        {"neighbour_aggr": "add", "norm_coors": False},
        {"pool_type": "mean"},
        {"egcl_layers": 1},
        {"protein_dim": 48, "feat_proj_dim": 48, "chemprop_hidden_dim": 48, "message_dim": 5},
    ],
    ids=str,
)
def test_protein_variants_agree_with_the_direct_form(tmp_path: Path, variant: dict[str, Any]) -> None:
    options = {**SMALL, **variant}
    checkpoint = write_checkpoint(tmp_path / "variant.ckpt", seed=3, **options)
    graphs = [random_protein_graph(residues, options["protein_dim"], residues) for residues in (25, 11, 4, 1)]
    direct = DirectProteinEncoder(clipzyme_options(**options), read_checkpoint(checkpoint)[1], torch.float64)

    embeddings = ClipzymeEncoder.load(checkpoint).encode_protein_graphs(graphs)

    np.testing.assert_allclose(embeddings, direct.encode(graphs).numpy(), rtol=0, atol=2e-6)


def dense_reaction_embedding(reaction: str, parameters: dict[str, torch.Tensor], layers: int, over_edges: bool) -> Any:
    """The equations with an atoms x atoms x features tensor per graph, in float64, from the graphs' features."""
    graph = build_reaction_graph(reaction)

    def message_passing(name: str, atoms: Any, bonds: Any, present: Any) -> tuple[Any, Any]:
        w1, w2, w3, b3 = (
            parameters[f"model.{name}.{p}"].double() for p in ("W1.weight", "W2.weight", "W3.weight", "W3.bias")
        )
        count = len(atoms)
        first = torch.relu(torch.cat([atoms[:, None].expand(count, count, -1), bonds], -1) @ w1.T) * present[..., None]
        states = first
        for _ in range(layers - 1):
            messages = states.sum(0)[:, None] - states.transpose(0, 1)
            states = torch.relu(first + messages @ w2.T) * present[..., None]
        return torch.relu(torch.cat([atoms, states.sum(0)], -1) @ w3.T + b3), states

    def dense(side: Any, positions: Any, count: int) -> Any:
        atoms, bonds, present = (
            torch.zeros(count, 9).double(),
            torch.zeros(count, count, 3).double(),
            torch.zeros(count, count),
        )
        atoms[positions] = torch.from_numpy(side.atoms).double()
        bonds[positions[side.source], positions[side.target]] = torch.from_numpy(side.bonds).double()
        present[positions[side.source], positions[side.target]] = 1
        return atoms, bonds, present

    count = len(graph.reactants.atoms)
    reactants = dense(graph.reactants, np.arange(count), count)
    products = dense(graph.products, graph.origin, count)
    change = message_passing("wln", *reactants)[1] + message_passing("wln", *products)[1]
    nodes, edges = message_passing("wln_diff", reactants[0], change, change.sum(-1) != 0)
    total = edges.sum((0, 1)) if over_edges else nodes.sum(0)
    return total / total.norm()


@pytest.mark.parametrize("over_edges", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_reaction_variants_agree_with_a_dense_evaluation(tmp_path: Path, layers: int, over_edges: bool) -> None:
    options = {**SMALL, "chemprop_num_layers": layers, "aggregate_over_edges": over_edges}
    checkpoint = write_checkpoint(tmp_path / "variant.ckpt", seed=5, **options)
    parameters = read_checkpoint(checkpoint)[1]
    reactions = [OXIDATION, EPOXIDATION, HYDRATION]

    embeddings = ClipzymeEncoder.load(checkpoint).encode_reactions(reactions)

    expected = [dense_reaction_embedding(reaction, parameters, layers, over_edges).numpy() for reaction in reactions]
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-6)


def test_bonds_whose_summed_features_vanish_are_left_out(tmp_path: Path) -> None:
    """Half of the states are dead here, one direction of a bond without the other among them."""
    options = clipzyme_options(**{**SMALL, "protein_dim": 4, "chemprop_hidden_dim": 4, "chemprop_num_layers": 1})
    state = random_state_dict(options, seed=11)
    state["model.wln.W1.weight"] = torch.zeros(4, 12)
    state["model.wln.W1.weight"][0, [0, 2]] = torch.tensor([1.0, -7.5])  # alive at oxygen sources, dead at carbons
    torch.save({"hyper_parameters": {"args": options}, "state_dict": state}, tmp_path / "dead.ckpt")

    embedding = ClipzymeEncoder.load(tmp_path / "dead.ckpt").encode_reactions([HYDRATION])[0]

    expected = dense_reaction_embedding(HYDRATION, state, 1, over_edges=False).numpy()
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("neighbour_aggr", "max"),
        ("pool_type", "attention"),
        ("model_name", "enzyme_reaction_clip_wldnv1"),
        ("protein_encoder", "fair_esm2"),
        ("use_protein_graphs", False),
        ("use_sinusoidal", False),
        ("soft_edge", 1),
        ("edge_attr_dim", 4),
        ("coor_weights_clamp_value", 2.0),
        ("chemprop_node_dim", 74),
        ("chemprop_edge_dim", 12),
        ("chemprop_hidden_dim", 24),
        ("protein_dim", 15),
        ("egcl_layers", 0),
        ("message_dim", "24"),
        ("norm_feats", "yes"),
        ("use_one_hot_mol_features", True),
    ],
)
def test_variants_that_are_not_supported_are_refused_by_name(tmp_path: Path, option: str, value: object) -> None:
    content = {
        "hyper_parameters": {"args": clipzyme_options(**{**SMALL, option: value})},
        "state_dict": random_state_dict(clipzyme_options(**SMALL)),
    }
    torch.save(content, tmp_path / "odd.ckpt")

    with pytest.raises(CheckpointError, match=rf"odd\.ckpt asks for {option}={value!r}; supported: "):
        ClipzymeEncoder.load(tmp_path / "odd.ckpt")


def test_options_that_may_be_absent(tmp_path: Path) -> None:
    options = clipzyme_options(**SMALL)
    state = random_state_dict(options)
    for option in ("feat_proj_dim", "soft_edge", "edge_attr_dim", "coor_weights_clamp_value", "aggregate_over_edges"):
        delattr(options, option)
    torch.save({"hyper_parameters": {"args": options}, "state_dict": state}, tmp_path / "sparse.ckpt")

    assert ClipzymeEncoder.load(tmp_path / "sparse.ckpt").dimension == 16


def test_an_option_that_must_be_there_is_named(tmp_path: Path) -> None:
    options = clipzyme_options(**SMALL)
    del options.pool_type
    torch.save({"hyper_parameters": {"args": options}, "state_dict": {}}, tmp_path / "mute.ckpt")

    with pytest.raises(CheckpointError, match=r"mute\.ckpt does not say pool_type"):
        ClipzymeEncoder.load(tmp_path / "mute.ckpt")


# --- checkpoint files -------------------------------------------------------------------------------------------------


def test_a_loaded_checkpoint_is_an_encoder_with_the_digest_of_its_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "mine.ckpt", **SMALL)
    encoder = ClipzymeEncoder.load(path)

    assert isinstance(encoder, Encoder)
    assert encoder.needs_atom_mapping
    assert (encoder.name, encoder.dimension) == ("mine", 16)
    assert encoder.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ClipzymeEncoder.load(path, name="clipzyme_v1").name == "clipzyme_v1"


def test_reading_gives_options_and_parameters_as_stored(tmp_path: Path) -> None:
    hyper_parameters, state_dict = read_checkpoint(write_checkpoint(tmp_path / "small.ckpt", **SMALL))

    assert hyper_parameters["args"].message_dim == 6
    assert state_dict["model.protein_encoder.mpnn_layers.2.edge_mlp.0.weight"].shape == (96, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.ln_final.bias"), "missing parameters: model.ln_final.bias"),
        (lambda state: state.update({"model.extra": torch.zeros(1)}), "unexpected parameters: model.extra"),
        (
            lambda state: state.update({"model.wln.W2.weight": torch.zeros(16, 15)}),
            r"model.wln.W2.weight is \(16, 15\) instead of \(16, 16\)",
        ),
        (lambda state: state["model.wln_diff.W3.bias"].fill_(torch.nan), "NaN or infinite values: wln_diff.W3.bias"),
    ],
)
def test_parameters_are_loaded_strictly(tmp_path: Path, change: Any, message: str) -> None:
    options = clipzyme_options(**SMALL)
    state = random_state_dict(options)
    change(state)
    torch.save({"hyper_parameters": {"args": options}, "state_dict": state}, tmp_path / "wrong.ckpt")

    with pytest.raises(CheckpointError, match=message):
        ClipzymeEncoder.load(tmp_path / "wrong.ckpt")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "short.ckpt", **SMALL)
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(CheckpointError, match=r"short\.ckpt"):
        ClipzymeEncoder.load(path)


def test_a_checkpoint_that_asks_for_code_is_refused_before_it_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"hyper_parameters": Hostile(), "state_dict": {}}, tmp_path / "hostile.ckpt", pickle_module=pickle)

    with pytest.raises(CheckpointError, match="mkdir"):
        ClipzymeEncoder.load(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no 'hyper_parameters' mapping"),
        ({"hyper_parameters": {"args": argparse.Namespace()}}, "no 'state_dict' mapping"),
        ({"hyper_parameters": {"args": {}}, "state_dict": {}}, "no 'args' namespace"),
        ({"hyper_parameters": {"args": argparse.Namespace()}, "state_dict": {"a": 1}}, "not tensors: a"),
    ],
)
def test_files_laid_out_otherwise_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")

    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_missing_checkpoint_and_an_absent_device_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        ClipzymeEncoder.load(tmp_path / "nowhere.ckpt")
    path = write_checkpoint(tmp_path / "small.ckpt", **SMALL)
    with pytest.raises(DeviceUnavailable, match="'cuda:97'"):
        ClipzymeEncoder.load(path, device="cuda:97")
    with pytest.raises(DeviceUnavailable, match="'gpu'"):
        ClipzymeEncoder.load(path, device="gpu")


# --- reactions --------------------------------------------------------------------------------------------------------


def test_reaction_features() -> None:
    graph = build_reaction_graph(
        r"[CH3:2]/[CH:5]=[CH:4]/[C@@H:3]([NH3+:1])[c:6]1[cH:7][cH:8][o:9][cH:10]1"
        r">>[CH3:2]/[CH:5]=[CH:4]/[C@@H:3]([NH3+:1])[c:6]1[cH:7][cH:8][o:9][cH:10]1"
    )
    sp2, sp3 = 3, 4
    ammonium, methyl, stereocentre = graph.reactants.atoms[:3].astype(int).tolist()

    assert ammonium == [7, 0, 4, 6, 3, 4, sp3, 0, 0]
    assert methyl == [6, 0, 4, 5, 3, 4, sp3, 0, 0]
    assert stereocentre[0] == 6
    assert stereocentre[1] in (1, 2)
    assert stereocentre[2:] == [4, 5, 1, 4, sp3, 0, 0]
    assert graph.reactants.atoms[8].astype(int).tolist() == [8, 0, 2, 5, 0, 4, sp2, 1, 1]
    bonds = dict(
        zip(
            zip(graph.reactants.source.tolist(), graph.reactants.target.tolist(), strict=True),
            graph.reactants.bonds.astype(int).tolist(),
            strict=True,
        )
    )
    single, double, aromatic, trans = 1, 2, 4, 2
    assert bonds[1, 4] == bonds[4, 1] == [single, 0, 0]
    assert bonds[3, 4] == bonds[4, 3] == [double, trans, 0]
    assert bonds[5, 6] == bonds[6, 5] == [aromatic, 0, 1]
    assert list(bonds) == sorted(bonds)


def test_no_reactions_give_no_rows(small: ClipzymeEncoder) -> None:
    assert small.encode_reactions([]).shape == (0, 16)


def test_reaction_embeddings_are_unit_float32_rows(small: ClipzymeEncoder) -> None:
    embeddings = small.encode_reactions([OXIDATION, EPOXIDATION])

    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_a_batch_of_reactions_gives_the_numbers_of_each_alone(small: ClipzymeEncoder) -> None:
    reactions = [OXIDATION, EPOXIDATION, HYDRATION] * 40

    together = small.encode_reactions(reactions)

    alone = np.concatenate([small.encode_reactions([reaction]) for reaction in reactions[:3]])
    np.testing.assert_allclose(together, np.tile(alone, (40, 1)), rtol=0, atol=1e-6)


def test_direction_and_stereochemistry_matter(small: ClipzymeEncoder) -> None:
    forward, mirrored = HYDRATION, HYDRATION.replace("@", "@@")
    backward = ">>".join(reversed(HYDRATION.split(">>")))
    embeddings = small.encode_reactions([forward, backward, mirrored])

    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3
    assert np.abs(embeddings[0] - embeddings[2]).max() > 1e-5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), reaction=st.sampled_from([OXIDATION, EPOXIDATION, HYDRATION]))
def test_neither_atom_order_nor_map_numbers_matter(small: ClipzymeEncoder, data: st.DataObject, reaction: str) -> None:
    sides = [Chem.MolFromSmiles(side) for side in reaction.split(">>")]
    numbers = sorted(atom.GetAtomMapNum() for atom in sides[0].GetAtoms())
    renumbered = dict(zip(numbers, data.draw(st.permutations([3 * n + 1 for n in numbers])), strict=True))
    written = []
    for side in sides:
        shuffled = Chem.RenumberAtoms(side, data.draw(st.permutations(range(side.GetNumAtoms()))))
        for atom in shuffled.GetAtoms():
            atom.SetAtomMapNum(renumbered[atom.GetAtomMapNum()])
        written.append(Chem.MolToSmiles(shuffled, canonical=False))

    original, other = small.encode_reactions([reaction, ">>".join(written)])

    # A chirality tag depends on the order of the neighbours in the SMILES; only unchiral reactions are unchanged by it.
    if "@" not in reaction:
        np.testing.assert_allclose(other, original, rtol=0, atol=1e-6)
    else:
        assert np.isfinite(other).all()


def test_agents_take_no_part(small: ClipzymeEncoder) -> None:
    with_agent = OXIDATION.replace(">>", ">[Cu:9]>")

    np.testing.assert_array_equal(small.encode_reactions([with_agent]), small.encode_reactions([OXIDATION]))


def test_a_leaving_group_that_the_products_omit_counts_as_broken_bonds(small: ClipzymeEncoder) -> None:
    whole = "[CH3:1][C:2](=[O:3])[O:4][CH3:5].[OH2:6]>>[CH3:1][C:2](=[O:3])[OH:6].[CH3:5][OH:4]"
    without_methanol = whole.removesuffix(".[CH3:5][OH:4]")

    embeddings = small.encode_reactions([whole, without_methanol])

    assert np.isfinite(embeddings).all()
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4


def test_reactions_without_bonds_have_an_embedding(small: ClipzymeEncoder) -> None:
    (alone,) = small.encode_reactions(["[Fe+2:1]>>[Fe+3:1]"])
    among_others = small.encode_reactions([OXIDATION, "[Fe+2:1]>>[Fe+3:1]", "[OH2:1]>>[OH2:1]"])

    np.testing.assert_allclose(among_others[1], alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(among_others, axis=1), 1, atol=1e-6)


def test_a_reaction_that_changes_nothing_has_an_embedding(small: ClipzymeEncoder) -> None:
    (embedding,) = small.encode_reactions(["[CH3:1][CH2:2][OH:3]>>[CH3:1][CH2:2][OH:3]"])

    assert np.isfinite(embedding).all()


def test_a_reaction_whose_features_all_vanish_is_refused_instead_of_nan(tmp_path: Path) -> None:
    encoder = ClipzymeEncoder.load(write_checkpoint(tmp_path / "e.ckpt", **SMALL, aggregate_over_edges=True))

    with pytest.raises(InvalidReaction, match=r"reaction 2 \('\[Fe\+2:1\]>>\[Fe\+3:1\]'\).*vanish"):
        encoder.encode_reactions([OXIDATION, "[Fe+2:1]>>[Fe+3:1]"])


@pytest.mark.parametrize(
    ("reaction", "message"),
    [
        ("[CH3:1][OH:2]>>[CH2:1]=[O:2].[OH2:3]", "3"),
        ("[CH3:1][OH:1]>>[CH2:1]=[O:1]", "number 1"),
        ("[CH3:1][OH:2]>>[CH3:2][OH:1]", "element"),
        ("[CH3:1][OH:2]", ">>"),
        ("[CH3:1][OH:2]>>", "product"),
        ("[CH3:1][XX:2]>>[CH3:1][OH:2]", "reactant"),
        ("", "empty"),
    ],
)
def test_reactions_that_cannot_be_encoded_are_refused_by_position(
    small: ClipzymeEncoder, reaction: str, message: str
) -> None:
    with pytest.raises(InvalidReaction, match=message) as refusal:
        small.encode_reactions([OXIDATION, reaction])
    assert "reaction 2" in str(refusal.value)


@pytest.mark.parametrize(
    ("reaction", "message"),
    [
        ("[CH3:1][OH:2].O>>[CH2:1]=[O:2].O", r"not atom-mapped: O \(atom 3\) in the reactants and O \(atom 3\) in"),
        ("[CH3:1][OH:1]>>[CH2:1]=[O:1]", "more than once in the reactants: 1"),
        ("[CH3:1][OH:2]>>[CH2:1]=[O:2].[OH2:7]", "unbalanced: product atoms without an origin in the reactants: O:7"),
        ("[CH3:1][OH:2]>>[CH3:2][OH:1]", "change their element from reactants to products: map number 1, 2"),
    ],
)
def test_a_graph_is_only_built_from_a_consistent_map(reaction: str, message: str) -> None:
    with pytest.raises(InvalidReaction, match=message):
        build_reaction_graph(reaction)


def test_an_unmapped_reaction_is_mapped_first(small: ClipzymeEncoder) -> None:
    pytest.importorskip("rxnmapper")
    unmapped = "CCO.O=O>>CC=O.OO"

    embeddings = small.encode_reactions([EPOXIDATION, unmapped, OXIDATION])

    np.testing.assert_allclose(embeddings[1], embeddings[2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(embeddings[0], small.encode_reactions([EPOXIDATION])[0], rtol=0, atol=1e-6)


# --- proteins ---------------------------------------------------------------------------------------------------------


def test_a_batch_of_proteins_gives_the_numbers_of_each_alone(small: ClipzymeEncoder) -> None:
    graphs = [random_protein_graph(residues, 16, residues) for residues in (40, 7, 900, 120, 1, 300)]

    together = small.encode_protein_graphs(graphs)

    alone = np.concatenate([small.encode_protein_graphs([graph]) for graph in graphs])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_neither_pose_nor_residue_order_matters(small: ClipzymeEncoder, seed: int) -> None:
    random = np.random.default_rng(seed)
    graph = random_protein_graph(30, 16, seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    order = random.permutation(30)
    moved = graph.positions @ rotation.T + random.normal(size=3) * 50
    edges = np.argsort(order)[graph.edges]
    other = ProteinGraph(moved[order], graph.features[order], edges[:, random.permutation(edges.shape[1])])

    original, transformed = small.encode_protein_graphs([graph, other])

    np.testing.assert_allclose(transformed, original, rtol=0, atol=1e-5)


def test_at_the_published_width_the_embedding_is_that_of_the_direct_form(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "wide.ckpt", egcl_layers=1, chemprop_num_layers=1)
    graph = random_protein_graph(12, 1280)
    direct = DirectProteinEncoder(clipzyme_options(egcl_layers=1), read_checkpoint(checkpoint)[1])

    ours, theirs = ClipzymeEncoder.load(checkpoint).encode_protein_graphs([graph])[0], direct.encode([graph])[0].numpy()

    assert ours @ theirs > 0.999999
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 300.0])
def test_the_protein_may_be_as_stretched_as_it_likes(small: ClipzymeEncoder, tmp_path: Path, scale: float) -> None:
    checkpoint = write_checkpoint(tmp_path / "small.ckpt", **SMALL)
    folded = random_protein_graph(40, 16)
    graph = ProteinGraph(folded.positions * scale, folded.features)
    direct = DirectProteinEncoder(clipzyme_options(**SMALL), read_checkpoint(checkpoint)[1], torch.float64)

    np.testing.assert_allclose(small.encode_protein_graphs([graph]), direct.encode([graph]).numpy(), rtol=0, atol=1e-5)


def test_edges_may_be_any_and_some_residues_without(small: ClipzymeEncoder, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "small.ckpt", **SMALL)
    base = random_protein_graph(9, 16)
    graph = ProteinGraph(base.positions, base.features, np.array([[5, 1, 2, 2, 0], [0, 0, 7, 7, 3]]))
    bare = ProteinGraph(base.positions, base.features, np.empty((2, 0), dtype=np.int64))
    direct = DirectProteinEncoder(clipzyme_options(**SMALL), read_checkpoint(checkpoint)[1], torch.float64)

    embeddings = small.encode_protein_graphs([graph, bare])

    np.testing.assert_allclose(embeddings, direct.encode([graph, bare]).numpy(), rtol=0, atol=2e-6)


def test_coincident_residues_give_no_nan(small: ClipzymeEncoder) -> None:
    graph = random_protein_graph(5, 16)

    assert np.isfinite(small.encode_protein_graphs([ProteinGraph(np.zeros((5, 3)), graph.features)])).all()


def test_missing_edges_are_the_ten_nearest_neighbours() -> None:
    graph = random_protein_graph(20, 4)
    positions = graph.positions.astype(np.float64)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:11]

    assert graph.edges is not None
    assert graph.edges.dtype == np.int64
    np.testing.assert_array_equal(graph.edges[0].reshape(20, 10), nearest)
    np.testing.assert_array_equal(graph.edges[1], np.repeat(np.arange(20), 10))


@pytest.mark.parametrize(
    ("positions", "features", "edges", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 16)), None, r"positions have shape \(4, 2\); \(n, 3\)"),
        (np.zeros((4, 3)), np.zeros((4,)), None, r"features have shape \(4,\)"),
        (np.zeros((4, 3)), np.zeros((5, 16)), None, "4 positions and 5 rows of features"),
        (np.zeros((0, 3)), np.zeros((0, 16)), None, "without residues"),
        (np.full((4, 3), np.nan), np.zeros((4, 16)), None, "positions hold NaN or infinite values, first at residue 1"),
        (np.zeros((4, 3)), np.full((4, 16), np.inf), None, "features hold NaN or infinite"),
        (np.zeros((4, 3)), np.zeros((4, 16)), np.zeros((3, 2), int), r"edges have shape \(3, 2\)"),
        (np.zeros((4, 3)), np.zeros((4, 16)), np.array([[0], [4]]), "residues 0 to 4; the protein has 0 to 3"),
        (np.zeros((4, 3)), np.zeros((4, 16)), np.array([[0.5], [1.0]]), "whole numbers"),
        ("far", np.zeros((4, 16)), None, "positions are not an array of numbers"),
    ],
)
def test_malformed_protein_graphs_are_refused(positions: Any, features: Any, edges: Any, message: str) -> None:
    with pytest.raises(InvalidProtein, match=message):
        ProteinGraph(positions, features, edges)


def test_features_of_another_width_are_refused(small: ClipzymeEncoder) -> None:
    with pytest.raises(InvalidProtein, match=r"protein graph 2 has features of width 8; checkpoint 'small' takes 16"):
        small.encode_protein_graphs([random_protein_graph(5, 16), random_protein_graph(5, 8)])


def test_absurd_features_are_refused_instead_of_nan(small: ClipzymeEncoder) -> None:
    graph = ProteinGraph(np.zeros((3, 3)), np.full((3, 16), 3e38))

    with pytest.raises(InvalidProtein, match="protein graph 1: its embedding is not finite"):
        small.encode_protein_graphs([graph])


def test_no_proteins_give_no_rows(small: ClipzymeEncoder) -> None:
    assert small.encode_protein_graphs([]).shape == (0, 16)
    assert small.encode_proteins([]).shape == (0, 16)


def test_a_protein_without_structure_is_refused(small: ClipzymeEncoder) -> None:
    with pytest.raises(InvalidProtein, match="protein 'P1' has no structure, and CLIPZyme encodes structures"):
        small.encode_proteins([Protein("P1", "MVLS")])


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [3.0, 16.0, 40.0, 900.0, 5000.0])
def test_the_distance_polynomial_is_the_sinusoids_to_float32(longest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 1280, generator=generator) / 36
    distances = torch.cat([torch.tensor([0.0, longest]), torch.rand(500, generator=generator) * longest])
    exact = sinusoidal_embedding(distances.double(), 1280) @ weight.double().T

    basis, coefficients = DistanceExpansion(weight, torch.device("cpu")).expand(distances)

    rounding = 3e-6 if longest < 1000 else 5e-4  # of float32 in the angles themselves, where sines are taken of them
    np.testing.assert_allclose((basis @ coefficients).numpy(), exact.numpy(), rtol=0, atol=rounding)


def test_the_distance_polynomial_is_short_for_distances_between_neighbours() -> None:
    expansion = DistanceExpansion(torch.randn(8, 1280), torch.device("cpu"))

    assert expansion.expand(torch.tensor([3.8, 15.9]))[0].shape[1] <= 24


@pytest.mark.parametrize("rows", [0, 1, 7, 600])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_agree_with_plain_ones(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight, offset, inputs = torch.randn(40, 24), torch.randn(40) if bias else None, torch.randn(rows, 24)

    product = PackedLinear(weight, offset, torch.device("cpu"))(inputs)

    np.testing.assert_allclose(product, torch.nn.functional.linear(inputs, weight, offset), rtol=0, atol=1e-5)


def test_packed_layers_do_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, inputs = torch.eye(3), torch.randn(5, 3)

    np.testing.assert_array_equal(PackedLinear(weight, None, torch.device("cpu"))(inputs), inputs)
