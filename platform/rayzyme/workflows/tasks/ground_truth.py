"""Reactions with the enzymes that are known to catalyse them: a list, or a file in either of two column forms."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayzyme.chemistry import ReactionRecord, parse_reaction, reaction_key, read_reactions
from rayzyme.errors import InvalidInput, InvalidReaction, NotFound
from rayzyme.workflows.tasks.reactions import PlainReactions, plain_reactions, records_of
from rayzyme.workflows.tasks.screening_task import full_path

_REACTION, _PROTEIN, _ID = "reaction_smiles", "protein_id", "reaction_id"
_REASONS_KEPT = 100
_GIVEN = "given"


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What a file knows, or a list.

    Attributes:
        path: The file; "given" where it was a list.
        records: Reactions with at least one known enzyme.
        rejected: Why rows could not be read, each with its line.
        without_enzymes: Ids of reactions for which no enzyme is known.
        not_screened: Ids of reactions that were not screened.
        screened_unknown: How many screened reactions it does not know.
    """

    path: str
    records: list[ReactionRecord]
    rejected: tuple[str, ...] = ()
    without_enzymes: tuple[str, ...] = ()
    not_screened: tuple[str, ...] = ()
    screened_unknown: int = 0

    def of_reactions(self, reactions: Sequence[str]) -> GroundTruth:
        """What it knows of some reactions, recognised by `chemistry.reaction_key`.

        Raises:
            InvalidInput: Nothing.
        """
        screened = {reaction_key(reaction) for reaction in reactions}
        keys = {record.reaction_id: reaction_key(record.reaction) for record in self.records}
        kept = [record for record in self.records if keys[record.reaction_id] in screened]
        if not kept:
            raise InvalidInput(
                f"{self.path} knows no enzyme of any of the {len(screened)} reactions that were screened; reactions are the same "
                f"when their canonical SMILES are"
            )
        return replace(
            self,
            records=kept,
            not_screened=tuple(name for name, key in keys.items() if key not in screened),
            screened_unknown=len(screened - set(keys.values())),
        )

    def counts(self) -> dict[str, Any]:
        """What became of its rows, as JSON."""
        return {
            "file": self.path, "reactions": len(self.records), "rejected": len(self.rejected),
            "first_rejected": list(self.rejected[:_REASONS_KEPT]), "without_enzymes": len(self.without_enzymes),
            "not_screened": len(self.not_screened), "screened_unknown": self.screened_unknown,
        }  # fmt: skip


KnownEnzymes = str | Path | Sequence[str | Mapping[str, Any] | ReactionRecord]
"""A file as `read_ground_truth` reads it, or reactions with `known_enzymes` as `rayzyme.workflows.tasks.reactions` takes them."""


def plain_known_enzymes(known: KnownEnzymes) -> PlainReactions:
    """Known enzymes in the form that is stored.

    Raises:
        InvalidInput: Something in a list is no reaction; names the place.
    """
    return full_path(known) if isinstance(known, (str, Path)) else plain_reactions(known)


def ground_truth_of(known: PlainReactions) -> GroundTruth:
    """What a file or a list knows.

    Raises:
        NotFound: The file does not exist.
        InvalidInput: It cannot be read, or names no enzyme at all.
    """
    if isinstance(known, str):
        return read_ground_truth(known)
    records, _ = records_of(known)
    readable, rejected = [], []
    for record in records:
        try:
            parse_reaction(record.reaction)
        except InvalidReaction as error:
            rejected.append(f"reaction {record.reaction_id}: {error}")
        else:
            readable.append(record)
    return _known(_GIVEN, readable, rejected)


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read `reaction_id,reaction_smiles,known_enzymes`, or one row for each pair `[reaction_id,]reaction_smiles,protein_id`.

    Raises:
        NotFound: The file does not exist.
        InvalidInput: It cannot be read, or names no enzyme at all.
    """
    pairs = _pairs_header(Path(path))
    records, rejected = _read_pairs(Path(path), pairs) if pairs else _read_lists(path)
    return _known(str(path), records, rejected)


def _known(source: str, records: Sequence[ReactionRecord], rejected: Sequence[str]) -> GroundTruth:
    known = [record for record in records if record.known_enzymes]
    if not known:
        needed = (
            "at least one reaction that can be read must have known_enzymes"
            if source == _GIVEN
            else "it needs the column known_enzymes (ids joined by commas), or protein_id with a row for each pair"
        )
        raise InvalidInput(f"{source} names no known enzymes: {needed}")
    without = tuple(record.reaction_id for record in records if not record.known_enzymes)
    return GroundTruth(source, known, tuple(rejected), without)


def _read_lists(path: str | Path) -> tuple[list[ReactionRecord], list[str]]:
    file = read_reactions(path)
    return file.records, [f"{path}: {row.reason}" for row in file.rejected]


def _pairs_header(path: Path) -> list[str] | None:
    """The columns where the file has a row for each pair."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            first = next(csv.reader(lines), [])
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file of known enzymes") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    columns = [column.strip() for column in first]
    return columns if {_REACTION, _PROTEIN} <= set(columns) else None


def _read_pairs(path: Path, columns: Sequence[str]) -> tuple[list[ReactionRecord], list[str]]:
    found: dict[str, ReactionRecord] = {}
    rejected: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines)
        next(rows)
        for fields in rows:
            line = rows.line_num
            if not any(field.strip() for field in fields):
                continue
            row = dict(zip(columns, (field.strip() for field in fields), strict=False))
            reason = _fault(row, fields, columns, found)
            if reason is not None:
                rejected.append(f"{path}: line {line}: {reason}")
                continue
            name = row.get(_ID) or row[_REACTION]
            record = found.setdefault(name, ReactionRecord(name, row[_REACTION], (), line))
            if row[_PROTEIN] not in record.known_enzymes:
                found[name] = replace(record, known_enzymes=(*record.known_enzymes, row[_PROTEIN]))
    return list(found.values()), rejected


def _fault(
    row: dict[str, str], fields: Sequence[str], columns: Sequence[str], found: dict[str, ReactionRecord]
) -> str | None:
    if len(fields) != len(columns):
        return f"{len(fields)} fields where the header has {len(columns)}"
    if not row[_PROTEIN]:
        return f"{_PROTEIN} is empty"
    earlier = found.get(row.get(_ID, ""))
    if earlier is not None:
        is_same = earlier.reaction == row[_REACTION]
        return None if is_same else f"{_ID} '{row[_ID]}' stands for another reaction on line {earlier.line}"
    try:
        parse_reaction(row[_REACTION])
    except InvalidReaction as error:
        return str(error)
    return None
