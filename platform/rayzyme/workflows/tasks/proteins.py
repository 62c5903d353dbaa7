"""Proteins as arguments of tasks: a file or a folder, or a list that is kept as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayzyme.errors import InvalidInput
from rayzyme.proteins import Protein, RejectedProtein, proteins_of, read_proteins
from rayzyme.workflows.tasks.screening_task import full_path

Proteins = str | Path | Sequence[Mapping[str, str]]
"""What `read_proteins` reads, or a list of mappings with `protein_id`, `sequence` and, as text, whatever else is known."""

PlainProteins = str | list[dict[str, str]]
"""Path of a file or folder, or proteins as JSON."""


def plain_proteins(proteins: Proteins) -> PlainProteins:
    """Proteins in the form that is stored.

    Raises:
        InvalidInput: They are none; names the place.
    """
    if isinstance(proteins, (str, Path)):
        return full_path(proteins)
    if not isinstance(proteins, Sequence):
        raise InvalidInput(f"proteins must be a list of mappings, a file or a folder, not {proteins!r}")
    return [_plain(item, number) for number, item in enumerate(proteins, start=1)]


def proteins_at(proteins: PlainProteins) -> Iterator[Protein | RejectedProtein]:
    """The proteins, as `read_proteins`; errors are its."""
    return read_proteins(proteins) if isinstance(proteins, str) else proteins_of(proteins)


def _plain(item: Any, number: int) -> dict[str, str]:
    is_protein = isinstance(item, Mapping) and {"protein_id", "sequence"} <= item.keys()
    if is_protein and all(isinstance(part, str) for pair in item.items() for part in pair):
        return dict(item)
    raise InvalidInput(f"protein {number} is {item!r}; give a mapping of texts with 'protein_id' and 'sequence'")
