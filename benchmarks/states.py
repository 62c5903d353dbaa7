"""Checkpoints of component states against `torch.save` and `torch.load` of the same arrays, and what several take on disk.

`torch.save` neither syncs, nor writes beside the old file and renames, nor computes digests (it has a CRC-32 per tensor, which
`torch.load` does not check); the detail has it with a sync too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import Measurement, best_of_rounds, compared

from rayzyme.storage.checkpoints import CheckpointManager

COMPONENTS = ("structure", "dynamics", "analysis", "progress")
COMPONENT_BYTES = 25_000_000
CHECKPOINTS = 5
ROUNDS = 7


def run() -> list[Measurement]:
    """Four components with 100 MB of arrays: one array each for speed, 25 each for space."""
    # Beside the repository, not under /tmp, which is memory on some machines.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        return [*_speed(Path(folder)), *_space(Path(folder))]


def _speed(folder: Path) -> list[Measurement]:
    states = _states(arrays_per_component=1)
    tensors = {
        component: {key: torch.from_numpy(array) for key, array in state.items()} for component, state in states.items()
    }
    manager = CheckpointManager(folder / "speed", 2)
    numbers = count()

    def create(change: Callable[[int], None]) -> None:
        change(next(numbers))
        manager.create_checkpoint("run", states)

    def change_all(number: int) -> None:
        for state in states.values():
            state["0"][0] = number

    def change_one(number: int) -> None:
        states["progress"]["0"][0] = number

    def save_synced() -> None:
        torch.save(tensors, folder / "synced.pt")
        with (folder / "synced.pt").open("rb") as stream:
            os.fsync(stream.fileno())

    seconds = best_of_rounds(
        {
            "create": lambda: create(change_all),
            "create, 1 of 4 changed": lambda: create(change_one),
            "create, nothing changed": lambda: create(lambda _: None),
            "load": lambda: manager.load_checkpoint(manager.list_checkpoints()[0]["path"]),
            "torch.save": lambda: torch.save(tensors, folder / "peer.pt"),
            "torch.save and sync": save_synced,
            "torch.load": lambda: torch.load(folder / "peer.pt", weights_only=True),
        },
        ROUNDS,
    )
    return [
        compared(
            f"{name}, against {peer}", seconds[name] * 1e3, seconds[peer] * 1e3, "ms",
            against=peer, peer_synced_ms=seconds["torch.save and sync"] * 1e3, bar_ms=bar_ms,
        )
        for name, peer, bar_ms in (
            ("create", "torch.save", 5000),
            ("create", "torch.save and sync", 5000),
            ("create, 1 of 4 changed", "torch.save", 5000),
            ("create, nothing changed", "torch.save", 5000),
            ("load", "torch.load", 2000),
        )
    ]  # fmt: skip


def _space(folder: Path) -> list[Measurement]:
    states = _states(arrays_per_component=25)
    manager = CheckpointManager(folder / "space", CHECKPOINTS)
    peer_bytes = 0
    for number in range(CHECKPOINTS):
        states["progress"][str(number)] += 1
        manager.create_checkpoint("run", states)
        torch.save(
            {name: list(map(torch.from_numpy, state.values())) for name, state in states.items()}, folder / "peer.pt"
        )
        peer_bytes += (folder / "peer.pt").stat().st_size
    blocks = {file.stat().st_ino: file.stat().st_blocks * 512 for file in (folder / "space").rglob("*")}
    return [
        compared(
            f"{CHECKPOINTS} checkpoints of 100 MB, 1 MB changed between them", sum(blocks.values()) / 1e6, peer_bytes / 1e6, "MB",
            bar_mb=120,
        )
    ]  # fmt: skip


def _states(arrays_per_component: int) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = COMPONENT_BYTES // arrays_per_component // 8
    return {name: {str(number): random.random(rows) for number in range(arrays_per_component)} for name in COMPONENTS}
