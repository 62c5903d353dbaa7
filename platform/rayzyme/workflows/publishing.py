"""Files of a committed attempt, from its folder to where they belong, by renaming; safe to repeat after any crash.

The order keeps the promise: first the commit, which holds the manifest, then this. Of a late attempt, whose commit is refused,
nothing is ever seen under a final path.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayzyme.errors import DamagedFile
from rayzyme.storage.disk import atomic_file, flush_to_disk

Manifest = Sequence[Mapping[str, Any]]
"""`{path, source, size, sha256}` of each file: where it belongs, where it was written."""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a file."""

    path: Path
    how: Literal["renamed", "copied", "already there"]


def manifest_of(written: Mapping[Path, Path]) -> list[dict[str, Any]]:
    """Describe files, once their bytes are on the disk.

    Args:
        written: By final path, where each was written; what was not written after all is left out.

    Raises:
        IsADirectoryError: A folder was made in place of a file.
    """
    manifest = []
    for final, source in written.items():
        if not source.exists():
            continue
        with source.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        flush_to_disk(source)
        manifest.append({"path": str(final), "source": str(source), "size": source.stat().st_size, "sha256": digest})
    return manifest


def publish(manifest: Manifest) -> list[Published]:
    """Put files in place.

    Returns:
        What was done, in the manifest's order.

    Raises:
        DamagedFile: A file is neither where it was written nor, as it was, where it belongs.
        InsufficientSpace: It must be copied to another disk, which is full.
    """
    published = [Published(Path(entry["path"]), _publish(entry)) for entry in manifest]
    for folder in {one.path.parent for one in published if one.how == "renamed"}:
        flush_to_disk(folder)
    return published


def is_in_place(entry: Mapping[str, Any]) -> bool:
    """Whether the final path holds just that file."""
    path = Path(entry["path"])
    try:
        if path.stat().st_size != entry["size"]:
            return False
        with path.open("rb") as content:
            return bool(hashlib.file_digest(content, "sha256").hexdigest() == entry["sha256"])
    except OSError:
        return False


def discard(folder: str | Path) -> None:
    """Remove an attempt's folder with everything in it; nothing where there is none."""
    shutil.rmtree(folder, ignore_errors=True)


def _publish(entry: Mapping[str, Any]) -> Literal["renamed", "copied", "already there"]:
    path, source = Path(entry["path"]), Path(entry["source"])
    if not source.exists():
        if is_in_place(entry):
            return "already there"
        raise DamagedFile(
            f"{path} cannot be published: {source} is gone, and what stands under the final path, if anything, is another file; "
            "run the job again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, path)
        return "copied"
    return "renamed"


def _copy(source: Path, path: Path) -> None:
    with source.open("rb") as content, atomic_file(path) as sink:
        shutil.copyfileobj(content, sink, 1 << 20)
    source.unlink()
