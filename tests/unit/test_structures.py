"""Reading structures and building neighbour graphs."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayzyme.errors import InvalidInput, InvalidProtein, NotFound
from rayzyme.structures import nearest_neighbour_edges, read_structure, structure_stem


def pdb_line(
    serial: int, residue: str, number: int, x: float, *, atom: str = "CA", element: str = "C", chain: str = "A",
    record: str = "ATOM", alternative: str = " ",
) -> str:  # fmt: skip
    name = f" {atom:<3}" if len(element) == 1 else f"{atom:<4}"
    return (
        f"{record:<6}{serial:>5} {name}{alternative}{residue:>3} {chain}{number:>4}    "
        f"{x:8.3f}{0:8.3f}{0:8.3f}{1:6.2f}{50:6.2f}          {element:>2}"
    )


def write_pdb(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, "END"]) + "\n")
    return path


@pytest.fixture
def tripeptide(tmp_path: Path) -> Path:
    return write_pdb(
        tmp_path / "tripeptide.pdb",
        pdb_line(1, "GLY", 1, -9.0, atom="N", element="N"),
        pdb_line(2, "GLY", 1, 1.0),
        pdb_line(3, "TRP", 2, 2.0),
        pdb_line(4, "SER", 3, 6.0),
    )


@pytest.mark.shared
def test_alphafold_model_gives_the_published_positions_and_sequence(shared: Path) -> None:
    structure = read_structure(shared / "data/AF-P69905-F1-model_v4.cif")
    expected = np.load(shared / "fixtures/clipzyme/expected.npz")["ca_positions"]

    assert structure.sequence.startswith("MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMF")
    assert len(structure.sequence) == 142
    np.testing.assert_allclose(structure.positions, expected, rtol=0, atol=1e-5)


@pytest.mark.shared
def test_neighbours_are_the_published_ones(shared: Path) -> None:
    expected = np.load(shared / "fixtures/clipzyme/expected.npz")

    edges = nearest_neighbour_edges(expected["ca_positions"])

    np.testing.assert_array_equal(edges, expected["knn_edges"])


def test_alpha_carbons_are_centred_on_their_mean(tripeptide: Path) -> None:
    structure = read_structure(tripeptide)

    assert structure.sequence == "GWS"
    assert structure.positions.dtype == np.float32
    np.testing.assert_array_equal(structure.positions, [[-2, 0, 0], [-1, 0, 0], [3, 0, 0]])


def test_cif_pdb_and_gzipped_files_read_the_same(tripeptide: Path, tmp_path: Path) -> None:
    cif = tmp_path / "tripeptide.cif"
    parsed = gemmi.read_structure(str(tripeptide))
    parsed.setup_entities()
    parsed.make_mmcif_document().write_file(str(cif))
    paths = [tripeptide, cif]
    for path in (tripeptide, cif):
        zipped = path.with_name(path.name + ".gz")
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        paths.append(zipped)

    structures = [read_structure(path) for path in paths]

    assert [structure.sequence for structure in structures] == ["GWS"] * 4
    for structure in structures:
        np.testing.assert_array_equal(structure.positions, structures[0].positions)


def test_only_atom_records_of_standard_residues_with_an_alpha_carbon_count(tmp_path: Path) -> None:
    path = write_pdb(
        tmp_path / "mixed.pdb",
        pdb_line(1, "ALA", 1, 0.0),
        pdb_line(2, "MSE", 2, 1.0, record="HETATM"),
        pdb_line(3, "ALA", 3, 2.0, record="HETATM"),
        pdb_line(4, "UNK", 4, 3.0),
        pdb_line(5, "LYS", 5, 4.0, atom="CB"),
        pdb_line(6, "VAL", 6, 5.0),
        pdb_line(7, "CA", 7, 6.0, atom="CA", element="CA", record="HETATM"),
        pdb_line(8, "HOH", 8, 7.0, atom="O", element="O", record="HETATM"),
    )

    assert read_structure(path).sequence == "AV"


def test_of_alternatives_and_models_the_first_counts(tmp_path: Path) -> None:
    path = write_pdb(
        tmp_path / "alternatives.pdb",
        "MODEL        1",
        pdb_line(1, "ALA", 1, 0.0, alternative="A"),
        pdb_line(2, "ALA", 1, 100.0, alternative="B"),
        pdb_line(3, "SER", 2, 4.0, alternative="A"),
        pdb_line(4, "THR", 2, 8.0, alternative="B"),
        "ENDMDL",
        "MODEL        2",
        pdb_line(1, "TRP", 1, 0.0),
        "ENDMDL",
    )

    structure = read_structure(path)

    assert structure.sequence == "AS"
    np.testing.assert_array_equal(structure.positions[:, 0], [-2, 2])


def test_all_chains_are_read_unless_one_is_named(tmp_path: Path) -> None:
    path = write_pdb(
        tmp_path / "dimer.pdb", pdb_line(1, "ALA", 1, 0.0), "TER", pdb_line(3, "VAL", 1, 5.0, chain="B"), "TER"
    )

    assert read_structure(path).sequence == "AV"
    assert read_structure(path, chain="B").sequence == "V"
    with pytest.raises(InvalidProtein, match=r"dimer\.pdb: no chain 'C'; it has A, B"):
        read_structure(path, chain="C")


def test_a_structure_without_alpha_carbons_is_refused_by_its_file_name(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "water.pdb", pdb_line(1, "HOH", 1, 0.0, atom="O", element="O", record="HETATM"))

    with pytest.raises(InvalidProtein, match=r"water\.pdb: no alpha carbon \(CA\) of a standard amino acid"):
        read_structure(path)


@pytest.mark.parametrize("name", ["empty.pdb", "empty.cif", "damaged.cif.gz", "garbage.cif"])
def test_files_that_hold_no_structure_are_refused_by_their_name(tmp_path: Path, name: str) -> None:
    contents = {
        "empty.pdb": b"",
        "empty.cif": b"",
        "damaged.cif.gz": b"\x1f\x8bnonsense",
        "garbage.cif": b"\x00loop_ x",
    }
    (tmp_path / name).write_bytes(contents[name])

    with pytest.raises(InvalidProtein, match=name):
        read_structure(tmp_path / name)


def test_missing_files_and_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "protein.mol2").write_text("")

    with pytest.raises(NotFound, match=r"absent\.cif"):
        read_structure(tmp_path / "absent.cif")
    with pytest.raises(InvalidProtein, match=r"protein\.mol2: not a structure file"):
        read_structure(tmp_path / "protein.mol2")


@pytest.mark.parametrize(
    ("name", "stem"), [("1abc.cif", "1abc"), ("AF-P1-F1.cif.gz", "AF-P1-F1"), ("x.y.PDB", "x.y"), ("notes.txt", None)]
)
def test_stems(name: str, stem: str | None) -> None:
    assert structure_stem(name) == stem


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), k=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_edges_come_from_the_nearest_by_distance(count: int, k: int, seed: int) -> None:
    positions = np.random.default_rng(seed).normal(size=(count, 3))
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distances, np.inf)

    edges = nearest_neighbour_edges(positions, k)

    kept = min(k, count - 1)
    assert edges.dtype == np.int64
    np.testing.assert_array_equal(edges[0].reshape(count, kept), np.argsort(distances, axis=1)[:, :kept])
    np.testing.assert_array_equal(edges[1], np.repeat(np.arange(count), kept))


def test_large_proteins_are_done_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.random.default_rng(0).normal(size=(200, 3))
    whole = nearest_neighbour_edges(positions)
    monkeypatch.setattr("rayzyme.structures._DISTANCES_AT_A_TIME", 1000)

    np.testing.assert_array_equal(nearest_neighbour_edges(positions), whole)


def test_a_residue_is_not_its_own_neighbour_even_where_others_coincide() -> None:
    edges = nearest_neighbour_edges(np.zeros((4, 3)), 3)

    assert (edges[0] != edges[1]).all()


def test_positions_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(4, 2\) where \(n, 3\)"):
        nearest_neighbour_edges(np.zeros((4, 2)))
    with pytest.raises(InvalidInput, match="-1 neighbours"):
        nearest_neighbour_edges(np.zeros((4, 3)), -1)
