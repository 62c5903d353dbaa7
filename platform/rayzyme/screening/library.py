"""Screening sets by name: the bundled reference set and the user's own in `RAYZYME_HOME/screening_sets`."""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path

from rayzyme.errors import InvalidInput, NotFound
from rayzyme.screening.screening_set import ScreeningSet

REFERENCE = "reference"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ScreeningSetLibrary:
    """Where screening sets are found by name."""

    def __init__(self, folder: Path) -> None:
        """Use `folder` for the user's sets; it need not exist yet."""
        self._folder = folder

    def names(self) -> list[str]:
        """Names of all sets, the bundled one first."""
        return [REFERENCE, *sorted(path.stem for path in self._folder.glob("*.arrow"))]

    def path(self, name: str) -> Path:
        """Where a new set of this name is to be written.

        Raises:
            InvalidInput: The name cannot be a file's name, or is the bundled set's.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{name!r} cannot name a screening set: use letters, digits, '.', '_' and '-', at most 100"
            )
        if name == REFERENCE:
            raise InvalidInput(
                f"{REFERENCE!r} is the bundled set and cannot be replaced or removed; choose another name"
            )
        return self._folder / f"{name}.arrow"

    def resolve(self, name_or_path: str | Path) -> Path:
        """The file of a set given by name or by path.

        Raises:
            NotFound: Neither; names what there is.
        """
        text = str(name_or_path)
        if text == REFERENCE:
            return Path(str(resources.files("rayzyme.models.baseline") / "data" / "reference_set.arrow"))
        named = self._folder / f"{text}.arrow"
        if _NAME.fullmatch(text) and named.is_file():
            return named
        given = Path(text).expanduser()
        if given.is_file():
            return given.resolve()
        near = difflib.get_close_matches(text, self.names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise NotFound(
            f"unknown screening set {text!r}: neither a known name nor a file; {hint}known: {', '.join(self.names())}; "
            f"`rayzyme sets build` or `rayzyme sets import` makes one"
        )

    def require_name(self, name: str) -> None:
        """Take names only, for callers who are to open no file by its path.

        Raises:
            NotFound: No set has that name; names what there is.
        """
        if name not in self.names():
            raise NotFound(f"unknown screening set {name!r}; known: {', '.join(self.names())}")

    def open(self, name_or_path: str | Path) -> ScreeningSet:
        """Open a set given by name or by path."""
        return ScreeningSet.open(self.resolve(name_or_path))

    def remove(self, name: str) -> Path:
        """Delete a set of the user's.

        Raises:
            NotFound: There is none of this name.
            InvalidInput: It is the bundled one.
        """
        path = self.path(name)
        if not path.is_file():
            raise NotFound(f"there is no screening set {name!r} to remove; known: {', '.join(self.names())}")
        path.unlink()
        return path
