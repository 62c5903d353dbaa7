"""Proteins as users bring them: tables, FASTA files and folders of structures, read one at a time.

A reader yields every protein that can be used and, in its place, a `RejectedProtein` with the line and the reason for
every one that cannot; it raises only where the file as a whole is unusable. Nothing is repaired beyond what the format
itself leaves open (upper case, surrounding blanks, the stop sign that some tools put at the end of a sequence).
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import TextIO

from rayzyme.errors import InvalidInput, InvalidProtein, NotFound
from rayzyme.structures import STRUCTURE_SUFFIXES, read_structure, structure_stem

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
AMBIGUOUS_RESIDUES = "XBZUOJ"
"""X any, B Asx, Z Glx, U selenocysteine, O pyrrolysine, J Leu or Ile."""

# Of ASCII letters only: str.upper also turns a sharp s into two serines.
_TO_UPPER = str.maketrans(ascii_lowercase, ascii_uppercase)
_ALLOWED_LETTERS = frozenset(AMINO_ACIDS + AMBIGUOUS_RESIDUES)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FASTA_SUFFIXES = frozenset({".fasta", ".fa", ".faa"})
_POSITIONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Protein:
    """One protein.

    Attributes:
        protein_id: The name it goes by in results; unique within a file.
        sequence: Amino acids in one-letter code, upper case.
        structure: Path of an mmCIF or PDB file (also gzipped), where there is one.
        metadata: Everything else that its source said about it, as text.
    """

    protein_id: str
    sequence: str
    structure: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class RejectedProtein:
    """A protein that was left out.

    Attributes:
        line: 1-based line of the file on which its record begins; None where the source has no lines.
        protein_id: Its id as far as it could be read, else the empty string.
        reason: What is wrong with it.
    """

    line: int | None
    protein_id: str
    reason: str


def validate_sequence(sequence: str, protein_id: str) -> str:
    """Bring a sequence into its canonical form, or say which of its letters are no amino acids.

    Args:
        sequence: One-letter codes in either case; blanks around it and one `*` at its end are dropped.
        protein_id: Named in the error.

    Returns:
        The sequence in upper case.

    Raises:
        InvalidProtein: It is empty or holds other letters; the message gives them with their 1-based positions.
    """
    letters = sequence.strip().translate(_TO_UPPER).removesuffix("*")
    if not letters:
        raise InvalidProtein(f"protein {protein_id!r}: the sequence is empty")
    if not _ALLOWED_LETTERS.issuperset(letters):
        raise InvalidProtein(
            f"protein {protein_id!r}: not amino acids: {_describe_illegal_letters(letters)}; "
            f"allowed are {AMINO_ACIDS} and {AMBIGUOUS_RESIDUES}"
        )
    return letters


def read_proteins(path: str | Path) -> Iterator[Protein | RejectedProtein]:
    """Read proteins from a table (.csv, .tsv), a FASTA file (.fasta, .fa, .faa), either also .gz, or a folder.

    Raises:
        NotFound: There is nothing at the path.
        InvalidInput: The kind of file is not known, or the file as a whole cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return read_structure_folder(path)
    kind = _kind_of(path)
    if kind in _DELIMITERS:
        return read_proteins_csv(path)
    if kind in _FASTA_SUFFIXES:
        return read_fasta(path)
    if not path.exists():
        raise NotFound(f"{path}: no such file or folder")
    known = ", ".join([*_DELIMITERS, *sorted(_FASTA_SUFFIXES)])
    raise InvalidInput(
        f"{path}: unknown kind of protein file {kind!r}; give a {known} file (also .gz) or a folder of structures"
    )


def proteins_of(rows: Sequence[Mapping[str, str]]) -> Iterator[Protein | RejectedProtein]:
    """Proteins that are given as rows of a table: `protein_id`, `sequence` and metadata. Their lines count from 1.

    No row names a structure: rows may come from somebody who is to open no file here.
    """
    first_line: dict[str, int] = {}
    for line, row in enumerate(rows, start=1):
        metadata = {name: value for name, value in row.items() if name not in ("protein_id", "sequence")}
        yield _accept(line, row["protein_id"].strip(), row["sequence"], None, metadata, first_line)


def read_proteins_csv(path: str | Path) -> Iterator[Protein | RejectedProtein]:
    """Read a table with the columns `protein_id` and `sequence`, and optionally `cif` (a structure's path).

    A relative `cif` path counts from the table's folder. All other columns become metadata. Fields are separated by
    tabs in .tsv files and by commas otherwise, and may be quoted.

    Raises:
        NotFound: There is no such file.
        InvalidInput: At once, where a column is missing or named twice; while reading, where the file is damaged.
    """
    path = Path(path)
    with _open_text(path) as text:
        columns = _read_header(_table(text, path), path)
    return _rows_of(path, columns)


def read_fasta(path: str | Path) -> Iterator[Protein | RejectedProtein]:
    """Read a FASTA file: the id is the header's first word, the rest of the header becomes `description`.

    Raises:
        NotFound: There is no such file.
        InvalidInput: At once, where the file does not begin with `>`; while reading, where the file is damaged.
    """
    path = Path(path)
    with _open_text(path) as text:
        first = next((line for line in text if line.strip()), None)
    if first is None:
        raise InvalidInput(f"{path}: the file is empty")
    if not first.startswith(">"):
        raise InvalidInput(f"{path}: not a FASTA file: it begins with {first.strip()[:40]!r} instead of '>'")
    return _fasta_records(path)


def read_structure_folder(path: str | Path) -> Iterator[Protein | RejectedProtein]:
    """Read every mmCIF and PDB file (also gzipped) directly in a folder, by name; the id is the file's stem.

    The sequence is that of the residues in the structure (see `rayzyme.structures.read_structure`).

    Raises:
        NotFound: There is no such folder.
        InvalidInput: It holds no structure.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFound(f"{path}: no such folder")
    files = sorted(file for file in path.iterdir() if file.is_file() and structure_stem(file) is not None)
    if not files:
        raise InvalidInput(f"{path}: no structure in this folder; looked for {', '.join(STRUCTURE_SUFFIXES)} files")
    return _structures_of(files)


def _describe_illegal_letters(letters: str) -> str:
    positions: dict[str, list[int]] = {}
    for position, letter in enumerate(letters, start=1):
        if letter not in _ALLOWED_LETTERS:
            positions.setdefault(letter, []).append(position)
    parts = []
    for letter, found in positions.items():
        shown = ", ".join(map(str, found[:_POSITIONS_SHOWN]))
        more = f" and {len(found) - _POSITIONS_SHOWN} more" if len(found) > _POSITIONS_SHOWN else ""
        parts.append(f"{letter!r} at position{'s' if len(found) > 1 else ''} {shown}{more}")
    return "; ".join(parts)


def _kind_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open for reading, gzipped or not, without the byte order mark that spreadsheets write; name the file in errors."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        else:
            with path.open(encoding="utf-8-sig", newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path}: damaged gzip file: {error}") from error
    except csv.Error as error:
        raise InvalidInput(f"{path}: not a readable table: {error}") from error


class _table:  # noqa: N801 - used like the csv.reader that it wraps
    """Rows with the line on which each begins; a quoted field may hold line ends, so the two counts differ."""

    def __init__(self, text: TextIO, path: Path) -> None:
        self._rows = csv.reader(text, delimiter=_DELIMITERS.get(_kind_of(path), ","), strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        line = 1
        for row in self._rows:
            if any(field.strip() for field in row):
                yield line, row
            line = self._rows.line_num + 1


def _read_header(table: _table, path: Path) -> list[str]:
    _, header = next(iter(table), (0, None))
    if header is None:
        raise InvalidInput(f"{path}: the file is empty; it needs the columns protein_id and sequence")
    columns = [column.strip() for column in header]
    found = ", ".join(map(repr, columns))
    missing = [column for column in ("protein_id", "sequence") if column not in columns]
    if missing:
        raise InvalidInput(f"{path}: missing column {' and '.join(map(repr, missing))}; the columns found are {found}")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise InvalidInput(f"{path}: column {', '.join(map(repr, twice))} occurs more than once; found are {found}")
    return columns


def _rows_of(path: Path, columns: list[str]) -> Iterator[Protein | RejectedProtein]:
    first_line: dict[str, int] = {}
    with _open_text(path) as text:
        rows = iter(_table(text, path))
        next(rows)
        for line, row in rows:
            if len(row) != len(columns):
                protein_id = dict(zip(columns, row, strict=False)).get("protein_id", "").strip()
                reason = f"{len(row)} fields where the header has {len(columns)}"
                yield RejectedProtein(line, protein_id, reason)
                continue
            fields = dict(zip(columns, row, strict=True))
            yield _accept(
                line,
                fields.pop("protein_id").strip(),
                fields.pop("sequence"),
                _resolve(path, fields.pop("cif", "").strip()),
                fields,
                first_line,
            )


def _resolve(table: Path, structure: str) -> Path | None:
    return table.parent / structure if structure else None


def _accept(
    line: int,
    protein_id: str,
    sequence: str,
    structure: Path | None,
    metadata: Mapping[str, str],
    first_line: dict[str, int],
) -> Protein | RejectedProtein:
    """Check one record against its own contents and the ids that came before it (`first_line`, which it updates)."""
    if not protein_id:
        return RejectedProtein(line, "", "the protein_id is empty")
    if protein_id in first_line:
        return RejectedProtein(line, protein_id, f"the id already occurs on line {first_line[protein_id]}")
    first_line[protein_id] = line
    try:
        letters = validate_sequence(sequence, protein_id)
    except InvalidProtein as error:
        return RejectedProtein(line, protein_id, str(error))
    if structure is not None and not structure.is_file():
        return RejectedProtein(line, protein_id, f"its structure {structure} does not exist")
    return Protein(protein_id, letters, structure, metadata)


def _fasta_records(path: Path) -> Iterator[Protein | RejectedProtein]:
    first_line: dict[str, int] = {}
    header, header_line, letters = "", 0, list[str]()
    with _open_text(path) as text:
        for line, content in enumerate(text, start=1):
            if not content.startswith(">"):
                letters.append(content.strip())
                continue
            if header_line:
                yield _fasta_record(header_line, header, letters, first_line)
            header, header_line, letters = content[1:].strip(), line, []
    yield _fasta_record(header_line, header, letters, first_line)


def _fasta_record(line: int, header: str, letters: list[str], first_line: dict[str, int]) -> Protein | RejectedProtein:
    protein_id, _, description = header.partition(" ")
    metadata = {"description": description.strip()} if description.strip() else {}
    return _accept(line, protein_id, "".join(letters), None, metadata, first_line)


def _structures_of(files: list[Path]) -> Iterator[Protein | RejectedProtein]:
    seen: dict[str, Path] = {}
    for file in files:
        protein_id = structure_stem(file) or file.name
        if protein_id in seen:
            yield RejectedProtein(None, protein_id, f"{file.name} has the same id as {seen[protein_id].name}")
            continue
        seen[protein_id] = file
        try:
            yield Protein(protein_id, read_structure(file).sequence, file)
        except InvalidProtein as error:
            yield RejectedProtein(None, protein_id, str(error))
