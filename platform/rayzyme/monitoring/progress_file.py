"""Progress on disk: JSON files with a digest, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any, Final

from rayzyme.errors import CheckpointError

logger = logging.getLogger(__name__)

KEPT: Final = 5
_FORMAT: Final = 1
_NAME: Final = re.compile(r"checkpoint_(\d+)\.json")


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state in one step; its folder is made.

    Raises:
        InsufficientSpace: The disk is full; what was there before stands.
    """
    from rayzyme.storage.disk import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, _encode(state))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that was written.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is torn or altered, were it by one bit, or of another version.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a progress checkpoint; give one of the files in it")
    written = path.read_bytes()
    try:
        document = json.loads(written)
        state, version = document["state"], document["format"]
        # Some changes of bytes change nothing in what they mean; they are changes all the same.
        is_intact = _encode(state, version) == written
    except (ValueError, KeyError, TypeError, RecursionError):
        is_intact = False
    if not is_intact:
        raise CheckpointError(f"the progress checkpoint {path} is torn or altered; use an older one")
    if version != _FORMAT:
        raise CheckpointError(f"the progress checkpoint {path} has format {version}, this Rayzyme reads {_FORMAT}")
    found: dict[str, Any] = state
    return found


def add_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a state as `checkpoint_<epoch ms>.json` and remove all but the newest 5 of these."""
    present = checkpoints_in(folder)
    # Names only grow, even where two fall in one millisecond or the clock was set back.
    number = max(int(time.time() * 1000), _number(present[0]) + 1 if present else 0)
    path = folder / f"checkpoint_{number}.json"
    write_checkpoint(path, state)
    for old in checkpoints_in(folder)[KEPT:]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the old progress checkpoint %s cannot be removed: %s", old, error)
    return path


def checkpoints_in(folder: Path) -> list[Path]:
    """The folder's progress checkpoints, newest first; nothing else is looked at."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def remove_leftovers_of_dead_writers(folder: Path) -> None:
    """Remove what killed writers left in the folder."""
    from rayzyme.storage.disk import remove_leftovers

    if folder.is_dir():
        remove_leftovers(folder)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _encode(state: Any, version: Any = _FORMAT) -> bytes:
    digest = hashlib.sha256(_canonical(state)).hexdigest()
    return _canonical({"format": version, "sha256": digest, "state": state}) + b"\n"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
