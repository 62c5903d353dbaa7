"""A checkpoint's file: found in a folder, told by its content, and opened as the model it holds."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rayzyme.errors import CheckpointError

if TYPE_CHECKING:
    from rayzyme.models.encoder import Encoder

_SUFFIXES: Final = (".ckpt", ".pt", ".pth", ".safetensors")
_LONGEST_HEADER: Final = 100 << 20  # the limit that the safetensors format sets itself


class CheckpointFormat(StrEnum):
    """How a checkpoint's file is laid out."""

    TORCH = "torch"
    SAFETENSORS = "safetensors"


def checkpoint_format(path: Path) -> CheckpointFormat:
    """Tell a checkpoint's layout by its content.

    Raises:
        CheckpointError: It is neither what torch.save writes nor safetensors; the message gives its size.
    """
    with path.open("rb") as stream:
        head = stream.read(9)
    size = path.stat().st_size
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return CheckpointFormat.TORCH
    if len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= min(size - 8, _LONGEST_HEADER):
        return CheckpointFormat.SAFETENSORS
    raise CheckpointError(
        f"{path} is not a checkpoint ({size:,} bytes, starts with {head!r}): neither what torch.save writes nor "
        "safetensors, or cut short. Fetch or copy it again."
    )


def find_checkpoint(path: Path) -> Path:
    """The file itself, or the one checkpoint in a folder.

    Raises:
        CheckpointError: The folder holds none or several; the message lists them.
    """
    if path.is_file():
        return path
    found = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.relative_to(path).as_posix() for file in found) or "none"
    raise CheckpointError(
        f"{path} should hold one checkpoint ({', '.join(_SUFFIXES)}) and holds {len(found)}: {names}. "
        "Name the file itself."
    )


def is_archive(path: Path) -> bool:
    """A zip archive around a checkpoint; torch's own format is a zip too, told by its data.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("/data.pkl") for name in archive.namelist())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal: what an encoder gives as its digest."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_encoder(path: Path, name: str, device: str) -> Encoder:
    """Load a checkpoint as the model that its content says it is.

    Raises:
        CheckpointError: It is truncated, corrupt, unsafe or of another model.
    """
    if checkpoint_format(path) is CheckpointFormat.TORCH:
        from rayzyme.models.clipzyme import ClipzymeEncoder

        return ClipzymeEncoder.load(path, name=name, device=device)
    from rayzyme.models.baseline import BaselineEncoder

    return BaselineEncoder.load(path)
