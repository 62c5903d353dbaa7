"""Reading proteins from tables, FASTA files and folders of structures."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzyme.errors import InvalidInput, InvalidProtein, NotFound
from rayzyme.proteins import (
    AMBIGUOUS_RESIDUES,
    AMINO_ACIDS,
    Protein,
    RejectedProtein,
    proteins_of,
    read_fasta,
    read_proteins,
    read_proteins_csv,
    read_structure_folder,
    validate_sequence,
)

ALANINE = "ATOM      1  CA  ALA A   1       0.000   0.000   0.000  1.00 50.00           C\nEND\n"
WATER = "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00 50.00           O\nEND\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


Write = Callable[[str, str | bytes], Path]


# --- sequences --------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=AMINO_ACIDS + AMBIGUOUS_RESIDUES, min_size=1))
def test_sequences_in_either_case_with_blanks_and_a_stop_become_canonical(sequence: str) -> None:
    assert validate_sequence(sequence, "P1") == sequence
    assert validate_sequence(f" {sequence.lower()}*\r\n", "P1") == sequence


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "protein 'P1': the sequence is empty"),
        (" * ", "the sequence is empty"),
        ("MK1V", "not amino acids: '1' at position 3; allowed are ACDEFGHIKLMNPQRSTVWY and XBZUOJ"),
        ("M-K-", "'-' at positions 2, 4"),
        ("M*K", r"'\*' at position 2"),
        ("M K", "' ' at position 2"),
        ("-" * 9, "'-' at positions 1, 2, 3, 4, 5 and 4 more"),
        ("MKß", "'ß' at position 3"),
    ],
)
def test_other_letters_are_named_with_their_positions(sequence: str, message: str) -> None:
    with pytest.raises(InvalidProtein, match=message):
        validate_sequence(sequence, "P1")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_gives_proteins_with_the_other_columns_as_metadata(write: Write) -> None:
    write("model.pdb", ALANINE)
    path = write("p.csv", "protein_id,organism,sequence,cif,ec\nP1,human,mkv,model.pdb,1.1.1.1\nP2,,MK,,\n")

    assert list(read_proteins_csv(path)) == [
        Protein("P1", "MKV", path.parent / "model.pdb", {"organism": "human", "ec": "1.1.1.1"}),
        Protein("P2", "MK", None, {"organism": "", "ec": ""}),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"protein_id,sequence\nP1,MKV\n",
        b"\xef\xbb\xbfprotein_id,sequence\r\nP1,MKV\r\n",
        b'"protein_id","sequence"\n"P1","MKV"\n',
        b"\n sequence , protein_id \n\nMKV,P1\n\n",
        b"protein_id,sequence\nP1,MKV",
    ],
    ids=["plain", "spreadsheet", "quoted", "blank lines", "no line end"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_tables_of_all_origins_read_the_same(write: Write, content: bytes, zipped: bool) -> None:
    path = write("p.csv.gz", gzip.compress(content)) if zipped else write("p.csv", content)

    assert list(read_proteins(path)) == [Protein("P1", "MKV")]


def test_rows_are_checked_as_those_of_a_table_and_name_no_structure() -> None:
    rows = [
        {"protein_id": " P1 ", "sequence": "mkv", "organism": "human", "cif": "/etc/passwd"},
        {"protein_id": "P1", "sequence": "MK"},
        {"protein_id": "P2", "sequence": "M1"},
    ]

    good, *rejected = proteins_of(rows)

    assert good == Protein("P1", "MKV", None, {"organism": "human", "cif": "/etc/passwd"})
    assert [(entry.line, entry.protein_id) for entry in rejected if isinstance(entry, RejectedProtein)] == [
        (2, "P1"), (3, "P2"),
    ]  # fmt: skip


def test_tab_separated_tables(write: Write) -> None:
    path = write("p.tsv", "protein_id\tsequence\tname\nP1\tMKV\ta, b\n")

    assert list(read_proteins(path)) == [Protein("P1", "MKV", None, {"name": "a, b"})]


def test_bad_rows_are_rejected_with_line_and_reason_and_the_good_ones_go_on(write: Write) -> None:
    path = write(
        "p.csv",
        'protein_id,sequence,cif,note\nP1,MKV,,"two\nlines"\nP2,MK1,,\nP3,,,\n,MKV,,\nP1,MK,,\nP4,MKV\nP5,MK,gone.cif,\n'
        "P6,MKV,,\n",
    )

    good, *rejected, last = read_proteins_csv(path)

    assert good == Protein("P1", "MKV", None, {"note": "two\nlines"})
    assert [(entry.line, entry.protein_id) for entry in rejected if isinstance(entry, RejectedProtein)] == [
        (4, "P2"), (5, "P3"), (6, ""), (7, "P1"), (8, "P4"), (9, "P5"),
    ]  # fmt: skip
    reasons = [entry.reason for entry in rejected if isinstance(entry, RejectedProtein)]
    assert "'1' at position 3" in reasons[0]
    assert "empty" in reasons[1]
    assert reasons[2] == "the protein_id is empty"
    assert reasons[3] == "the id already occurs on line 2"
    assert reasons[4] == "2 fields where the header has 4"
    assert "gone.cif does not exist" in reasons[5]
    assert last == Protein("P6", "MKV", None, {"note": ""})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,sequence\nP1,MK\n", r"p\.csv: missing column 'protein_id'; the columns found are 'id', 'sequence'"),
        ("protein_id;sequence\n", "missing column 'protein_id' and 'sequence'.*'protein_id;sequence'"),
        ("", "the file is empty; it needs the columns protein_id and sequence"),
        ("protein_id,sequence,sequence\n", "column 'sequence' occurs more than once"),
    ],
)
def test_an_unusable_header_is_refused_at_once(write: Write, content: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_proteins_csv(write("p.csv", content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b'protein_id,sequence\nP1,"MKV\n', "not a readable table"),
        ("p.csv", b"protein_id,sequence\nP1,M\xffK\n", "not UTF-8 text"),
        ("p.csv.gz", b"protein_id,sequence\n", "damaged gzip"),
        ("p.csv.gz", gzip.compress(b"protein_id,sequence\nP1,MKV\n")[:-9], "damaged gzip"),
    ],
)
def test_damaged_tables_are_refused_by_name(write: Write, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name}: {message}"):
        list(read_proteins(write(name, content)))


# --- FASTA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["p.fasta", "p.fa", "p.faa", "p.fasta.gz"])
def test_fasta_records(write: Write, name: str, line_end: str) -> None:
    text = line_end.join(["", ">P1 Haemoglobin subunit", "MVLS", "padk*", "", ">P2", "MK"])
    path = write(name, gzip.compress(text.encode()) if name.endswith(".gz") else text)

    assert list(read_proteins(path)) == [
        Protein("P1", "MVLSPADK", None, {"description": "Haemoglobin subunit"}),
        Protein("P2", "MK"),
    ]


def test_bad_fasta_records_are_rejected_with_the_line_of_their_header(write: Write) -> None:
    path = write("p.fasta", ">P1\nMK\n>P2\n>P3\nM-K\n>\nMK\n>P1\nMK\n>P4\nMK\n")

    entries = list(read_fasta(path))

    assert [type(entry) for entry in entries] == [Protein, *[RejectedProtein] * 4, Protein]
    rejected = [(entry.line, entry.protein_id, entry.reason) for entry in entries if isinstance(entry, RejectedProtein)]
    assert rejected[0][:2] == (3, "P2")
    assert "empty" in rejected[0][2]
    assert rejected[1][:2] == (4, "P3")
    assert "'-' at position 2" in rejected[1][2]
    assert rejected[2] == (6, "", "the protein_id is empty")
    assert rejected[3] == (8, "P1", "the id already occurs on line 1")


def test_files_that_are_no_fasta_are_refused_at_once(write: Write) -> None:
    with pytest.raises(InvalidInput, match=r"p\.fasta: not a FASTA file: it begins with 'MVLS' instead of '>'"):
        read_fasta(write("p.fasta", "MVLS\n"))
    with pytest.raises(InvalidInput, match="the file is empty"):
        read_fasta(write("q.fasta", "\n"))


# --- folders and kinds ------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_structures_by_name_with_the_sequence_inside(write: Write, tmp_path: Path) -> None:
    write("b.pdb", ALANINE)
    write("a.ent.gz", gzip.compress(ALANINE.encode()))
    write("b.ent", ALANINE)
    write("c.pdb", WATER)
    write("readme.txt", "no structure")

    a, duplicate, b, c = read_structure_folder(tmp_path)

    assert a == Protein("a", "A", tmp_path / "a.ent.gz")
    assert duplicate == Protein("b", "A", tmp_path / "b.ent")
    assert b == RejectedProtein(None, "b", "b.pdb has the same id as b.ent")
    assert isinstance(c, RejectedProtein)
    assert "no alpha carbon" in c.reason


def test_a_folder_without_structures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no structure in this folder; looked for \.cif"):
        read_proteins(tmp_path)


def test_unknown_kinds_and_missing_files_are_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"p\.xlsx: unknown kind of protein file '\.xlsx'; give a \.csv, \.tsv"):
        read_proteins(write("p.xlsx", ""))
    for name in ("gone.csv", "gone.fasta", "gone"):
        with pytest.raises(NotFound, match=name):
            read_proteins(tmp_path / name)


def test_proteins_travel_between_processes_and_into_sets() -> None:
    protein = Protein("P1", "MK", Path("a.cif"), {"ec": "1.1.1.1"})

    assert pickle.loads(pickle.dumps(protein)) == protein
    assert len({protein, Protein("P1", "MK", Path("a.cif"), {"ec": "1.1.1.1"})}) == 1
