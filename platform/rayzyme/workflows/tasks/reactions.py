"""Reactions as arguments of tasks: whatever a user has them in, kept as JSON, and read when the task runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayzyme.chemistry import ReactionRecord, read_reactions
from rayzyme.errors import InvalidInput
from rayzyme.screening.answer import Rejection
from rayzyme.workflows.tasks.screening_task import full_path

Reactions = str | Path | Sequence[str | Mapping[str, Any] | ReactionRecord]
"""A file as `read_reactions` reads it, one reaction SMILES, or a list of SMILES, of records, or of mappings with `reaction` (or
`reaction_smiles`) and optionally `reaction_id`, `known_enzymes` (a list), `line` and `ec`."""

PlainReactions = str | list[str | dict[str, Any]]
"""Path of a file, or reactions as JSON."""


def plain_reactions(reactions: Reactions) -> PlainReactions:
    """Reactions in the form that is stored.

    Raises:
        InvalidInput: They are none; names the place.
    """
    if isinstance(reactions, Path):
        return full_path(reactions)
    if isinstance(reactions, str):
        return [reactions] if ">" in reactions else full_path(reactions)
    if not isinstance(reactions, Sequence):
        raise InvalidInput(f"reactions must be a list of reaction SMILES or a file, not {reactions!r}")
    return [_plain(item, number) for number, item in enumerate(reactions, start=1)]


def records_of(reactions: PlainReactions) -> tuple[list[ReactionRecord], list[Rejection]]:
    """Reactions to screen, and the rows of their file that cannot be, each named by its line. Plain SMILES count from 1.

    Raises:
        NotFound: The file does not exist.
        InvalidInput: The file cannot be read, or holds no reaction.
    """
    if isinstance(reactions, str):
        file = read_reactions(reactions)
        return file.records, [
            {"reaction_id": "", "reaction": row.text, "line": row.line, "reason": f"{reactions}: {row.reason}"}
            for row in file.rejected
        ]
    return [_record(item, number) for number, item in enumerate(reactions, start=1)], []


def _plain(item: Any, number: int) -> str | dict[str, Any]:
    if isinstance(item, str):
        return item
    if isinstance(item, ReactionRecord):
        known = {"known_enzymes": list(item.known_enzymes)} if item.known_enzymes else {}
        ec = {"ec": item.ec} if item.ec else {}
        return {"reaction_id": item.reaction_id, "reaction": item.reaction, "line": item.line, **known, **ec}
    if isinstance(item, Mapping):
        reaction = item.get("reaction", item.get("reaction_smiles"))
        if isinstance(reaction, str) and set(item) <= _KEYS:
            return {**{key: item[key] for key in _KEPT if item.get(key) is not None}, "reaction": reaction}
    raise InvalidInput(
        f"reaction {number} is {item!r}; give a reaction SMILES, or a mapping with 'reaction' and any of {', '.join(_KEPT)}"
    )


def _record(item: str | Mapping[str, Any], number: int) -> ReactionRecord:
    if isinstance(item, str):
        return ReactionRecord(str(number), item, (), number)
    known = item.get("known_enzymes", ())
    enzymes = known.split(",") if isinstance(known, str) else known
    return ReactionRecord(
        str(item.get("reaction_id", number)),
        item["reaction"],
        tuple(enzyme.strip() for enzyme in enzymes),
        int(item.get("line", number)),
        item.get("ec"),
    )


_KEPT = ("reaction_id", "known_enzymes", "line", "ec")
_KEYS = {"reaction", "reaction_smiles", *_KEPT}
