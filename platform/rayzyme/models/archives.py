"""Unpacking zip archives that may be hostile: whole and inside of one folder, or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn

from rayzyme.errors import CheckpointError
from rayzyme.storage.disk import flush_to_disk, require_space, sole_owner, writing

_MOST_ENTRIES: Final = 10_000
_LARGEST_RATIO: Final = 100  # weights hardly shrink; a thousandfold is a bomb
_HARMLESS: Final = 16 << 20
_BLOCK: Final = 1 << 20


def extract_zip(path: Path, destination: Path) -> Path:
    """Unpack a zip archive into a folder that appears in one step, or not at all.

    Nothing is written outside of `destination`: absolute paths, `..`, links and special files are refused before the
    first byte, and so is a bomb (over 16 MiB and a hundred times the archive). CRCs are checked. A folder
    already at the destination is replaced.

    Raises:
        CheckpointError: The archive is truncated, corrupt or unsafe; the message names the entry.
        InsufficientSpace: The disk cannot hold what it unpacks to.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.parent / f".{destination.name}.unpacking"
    with sole_owner(destination):
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            _extract(path, unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(destination, ignore_errors=True)
        unfinished.replace(destination)
        flush_to_disk(destination.parent)
    return destination


def _extract(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            needed = sum(entry.file_size for entry in entries)
            require_space(str(path), folder.parent, needed)
            with writing(str(path), folder.parent, needed):
                for entry in entries:
                    _extract_entry(archive, entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        # zipfile raises OSError without a number for a damaged file; one with a number is the system's own.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CheckpointError(
            f"{path} is truncated or corrupt and was not unpacked ({path.stat().st_size:,} bytes): {error}. "
            "Fetch it again."
        ) from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(f"{path} was not unpacked: {reason}. Get the archive from its publisher again.")

    if not entries:
        refuse("it is empty")
    if len(entries) > _MOST_ENTRIES:
        refuse(f"it holds {len(entries):,} entries, more than {_MOST_ENTRIES:,}")
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\\" in name or ":" in parts[0] or "\0" in name or ".." in parts:
            refuse(f"entry {name!r} would be written outside of the folder")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            refuse(f"entry {name!r} is a link or special file")
        if entry.flag_bits & 0x1:
            refuse(f"entry {name!r} is encrypted")
        normal = "/".join(parts).casefold()
        if normal in seen and not entry.is_dir():
            refuse(f"entry {name!r} occurs twice")
        seen.add(normal)
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > max(packed * _LARGEST_RATIO, _HARMLESS):
        refuse(f"its {packed:,} bytes would unpack to {unpacked:,}, more than {_LARGEST_RATIO} times as many")


def _extract_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, _BLOCK)
        out.flush()
        os.fsync(out.fileno())
