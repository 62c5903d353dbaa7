"""Files of reactions: a table with a header, or one reaction SMILES per line.

What can be used and what cannot come back side by side, each with its line; only a file that is unusable as a whole
raises.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayzyme.chemistry.reactions import parse_reaction
from rayzyme.errors import InvalidInput, InvalidReaction, NotFound

ID_COLUMN = "reaction_id"
SMILES_COLUMN = "reaction_smiles"
ENZYMES_COLUMN = "known_enzymes"
EC_COLUMN = "ec"


@dataclass(frozen=True, slots=True)
class ReactionRecord:
    """One reaction of a file.

    Attributes:
        reaction_id: Its id in the table; in a plain list its number among the reactions, from "1".
        reaction: Reaction SMILES that `parse_reaction` accepts.
        known_enzymes: Ids of proteins known to catalyse it, in the order given; empty where none are.
        line: 1-based line of the file on which it begins.
        ec: EC number of the reaction where the table has a column `ec`: reports mark the hits that carry it.
    """

    reaction_id: str
    reaction: str
    known_enzymes: tuple[str, ...]
    line: int
    ec: str | None = None


@dataclass(frozen=True, slots=True)
class RejectedReaction:
    """A row that was left out.

    Attributes:
        line: 1-based line of the file on which it begins.
        text: The row as far as it could be read.
        reason: What is wrong with it, with the line.
    """

    line: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReactionFile:
    """What a file of reactions holds."""

    records: list[ReactionRecord]
    rejected: list[RejectedReaction]


def read_reactions(path: str | Path) -> ReactionFile:
    """Read reactions from a UTF-8 file (a byte order mark and CRLF line ends are fine).

    Two forms are told apart by the first line. A table has a header with `reaction_id` and `reaction_smiles`, and
    optionally `known_enzymes` (ids with commas between them, in quotes) and `ec`; other columns are ignored; it is separated by
    commas, or by tabs where the header is. A plain list has one reaction SMILES per line. Blank lines and lines that
    start with `#` are skipped in both.

    Returns:
        Every row, either as a record or, with a reason, as rejected: a SMILES that cannot be read, an id that is
        missing or was seen before, a row with more or fewer fields than the header.

    Raises:
        NotFound: The file does not exist.
        InvalidInput: The file cannot be read, is not UTF-8, holds no reaction, or its header lacks a column.
    """
    path = Path(path)
    lines = [
        (number, line)
        for number, line in enumerate(_read_text(path).splitlines(keepends=True), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise InvalidInput(f"{path}: the file holds no reaction; write one reaction SMILES per line, or a table")
    first = lines[0][1]
    if ">" in first:
        return _read_list(lines)
    return _read_table(path, lines, delimiter="\t" if "\t" in first else ",")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file of reactions") from None
    except UnicodeDecodeError as fault:
        raise InvalidInput(
            f"{path}: the file is not UTF-8 text (byte {fault.start + 1}); save it as UTF-8, from Excel as 'CSV UTF-8'"
        ) from fault
    except OSError as fault:
        raise InvalidInput(f"{path}: the file cannot be read: {fault.strerror}") from fault


def _read_list(lines: list[tuple[int, str]]) -> ReactionFile:
    result = ReactionFile([], [])
    for order, (number, line) in enumerate(lines, start=1):
        _take(result, number, str(order), line.strip(), known_enzymes=())
    return result


def _read_table(path: Path, lines: list[tuple[int, str]], delimiter: str) -> ReactionFile:
    rows = _rows(path, lines, delimiter)
    _, header = next(rows)
    columns = _columns(path, header)
    result = ReactionFile([], [])
    seen: dict[str, int] = {}
    empty = True
    for number, fields in rows:
        empty = False
        text = delimiter.join(fields)
        if len(fields) != len(header):
            hint = "; put quotes around a value that holds commas" if len(fields) > len(header) else ""
            _reject(result, number, text, f"{len(fields)} fields where the header has {len(header)}{hint}")
            continue
        reaction_id = fields[columns[ID_COLUMN]].strip()
        if not reaction_id:
            _reject(result, number, text, f"{ID_COLUMN} is empty")
        elif reaction_id in seen:
            _reject(result, number, text, f"{ID_COLUMN} '{reaction_id}' was used before, on line {seen[reaction_id]}")
        else:
            seen[reaction_id] = number
            enzymes = fields[columns[ENZYMES_COLUMN]] if ENZYMES_COLUMN in columns else ""
            known = tuple(dict.fromkeys(enzyme.strip() for enzyme in enzymes.split(",") if enzyme.strip()))
            ec = fields[columns[EC_COLUMN]].strip() if EC_COLUMN in columns else ""
            _take(result, number, reaction_id, fields[columns[SMILES_COLUMN]], known, ec or None)
    if empty:
        raise InvalidInput(f"{path}: the table has a header and no reaction below it")
    return result


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip() for name in header]
    if missing := [name for name in (ID_COLUMN, SMILES_COLUMN) if name not in names]:
        raise InvalidInput(
            f"{path}: the table has no column {' and no column '.join(missing)}; its columns are: {', '.join(names)}. "
            f"A table needs the header {ID_COLUMN},{SMILES_COLUMN}[,{ENZYMES_COLUMN}]; "
            "a plain list has one reaction SMILES (with '>>') on each line"
        )
    known = [name for name in names if name in (ID_COLUMN, SMILES_COLUMN, ENZYMES_COLUMN, EC_COLUMN)]
    if len(known) != len(set(known)):
        raise InvalidInput(f"{path}: a column occurs twice in the header: {', '.join(names)}")
    return {name: names.index(name) for name in known}


def _rows(path: Path, lines: list[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which each begins; a quoted value may run over several lines."""
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    begins = 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            raise InvalidInput(f"{path}: line {lines[begins][0]} is not a valid table row: {fault}") from fault
        yield lines[begins][0], fields
        begins = reader.line_num


def _take(
    result: ReactionFile, line: int, reaction_id: str, text: str, known_enzymes: tuple[str, ...], ec: str | None = None
) -> None:
    try:
        reaction = parse_reaction(text, called=f"line {line}")
    except InvalidReaction as fault:
        result.rejected.append(RejectedReaction(line, text.strip(), str(fault)))
    else:
        result.records.append(ReactionRecord(reaction_id, reaction.text, known_enzymes, line, ec))


def _reject(result: ReactionFile, line: int, text: str, reason: str) -> None:
    result.rejected.append(RejectedReaction(line, text, f"line {line}: {reason}"))
