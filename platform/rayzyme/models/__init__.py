"""Models: one `Encoder` protocol, the bundled baseline, CLIPZyme, and the checkpoints they come from.

Importing this package is light; torch is loaded with the first checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayzyme.models.checkpoints import CheckpointRegistry
    from rayzyme.models.encoder import Encoder

__all__ = ["load_checkpoint"]


def load_checkpoint(
    name_or_path: str | Path, device: str = "auto", registry: CheckpointRegistry | None = None
) -> Encoder:
    """Load an encoder by the checkpoint's name or path; the file's content says which model it is.

    Args:
        name_or_path: "baseline", another name that `rayzyme checkpoints list` shows, or the path of a checkpoint.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        registry: Where names are looked up; None takes the user's settings and home.

    Raises:
        NotFound: No such name or file, or a known checkpoint that was not fetched yet; the message says what to do.
        CheckpointError: The file is truncated, corrupt, unsafe, altered since it was fetched, or of another model.
        DeviceUnavailable: The device is not there.
    """
    from rayzyme.models.checkpoints import default_registry

    return (registry or default_registry()).open(name_or_path, device)
