"""Small checkpoints, archives around them, and a registry that fetches from a test's own server."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from tests.support.broken_http_server import BrokenServer

from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.models.download import Retries


def saved(content: object) -> bytes:
    """What `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


WEIGHTS = saved({"state_dict": {"model.weight": torch.ones(3)}})


def packed(entries: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, body in entries.items():
            archive.writestr(name, body)
    return stream.getvalue()


def registry_of(home: Path, server: BrokenServer | None = None, **sources: object) -> CheckpointRegistry:
    """A registry whose Zenodo is the server, or nowhere, and that never waits."""
    api = f"{server.url}/api" if server else "http://127.0.0.1:9/api"
    retries = Retries(attempts=3, sleep=lambda _seconds: None)
    return CheckpointRegistry(home, sources, zenodo_api=api, retries=retries)  # type: ignore[arg-type]
