"""The data handler beside plain files, `numpy.savez_compressed`, and HDF5 and Zarr as they come: throughput and size.

Sizes are of trajectories in float32: a real one of GROMACS (the peptide of the test fixture; `RAYZYME_BENCHMARK_XTC_FRAMES` names
an `.npz` with `frames` of a larger one), a smooth random one, and random numbers, of which nobody can promise anything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import Measurement, best_of_rounds, compared
from numpy.typing import NDArray

from rayzyme.storage import DataHandler

ROUNDS = 5
_PEPTIDE = Path(__file__).parent.parent / "tests" / "fixtures" / "peptide_trajectory.npz"
_LARGE = np.random.default_rng(0).normal(size=(25_000_000,)).astype(np.float32)


def run() -> list[Measurement]:
    """Throughput of 100 MB without compression, latency of a hot structure, then size and time of each trajectory."""
    with tempfile.TemporaryDirectory() as folder:
        measured = [*_plain(Path(folder)), _hot(Path(folder))]
        for name, frames in _trajectories().items():
            measured += _trajectory(name, frames, Path(folder))
    return measured


def _plain(folder: Path) -> list[Measurement]:
    source, copy = folder / "source", folder / "copy"
    source.write_bytes(_LARGE.tobytes())
    with DataHandler(folder / "plain", enable_compression=False) as handler:
        key = handler.store_structure({"array": _LARGE}, "large")
        seconds = best_of_rounds(
            {
                "store": lambda: handler.store_structure({"array": _LARGE}, "large"),
                "load": lambda: handler.load_data(key)["array"].sum(),
                "copy": lambda: _copy_with_sync(source, copy),
            },
            ROUNDS,
        )
    return [
        compared("store 100 MB plainly, against a copy with sync", seconds["store"] * 1e3, seconds["copy"] * 1e3, "ms"),
        compared("load and sum 100 MB, against a copy with sync", seconds["load"] * 1e3, seconds["copy"] * 1e3, "ms"),
    ]


def _hot(folder: Path) -> Measurement:
    structure = {"positions": np.random.default_rng(0).normal(size=(10_000, 4, 3)).astype(np.float64)}
    np.savez(folder / "hot.npz", **structure)
    with DataHandler(folder / "hot") as handler:
        key = handler.store_structure(structure, "hot")
        seconds = best_of_rounds(
            {"ours": lambda: handler.load_data(key), "numpy": lambda: np.load(folder / "hot.npz")["positions"]}, 50
        )
    return compared(
        "load a hot 1 MB structure, against numpy.load", seconds["ours"] * 1e3, seconds["numpy"] * 1e3, "ms"
    )


def _trajectories() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    found = {"GROMACS peptide": np.load(_PEPTIDE)["frames"]}
    larger = os.environ.get("RAYZYME_BENCHMARK_XTC_FRAMES")
    if larger:
        found["GROMACS with water"] = np.load(larger)["frames"]
    start, phase = rng.uniform(0, 6, (1, 5000, 3)), rng.uniform(0, 6, (1, 5000, 3))
    found["smooth"] = (start + 0.1 * np.sin(np.linspace(0, 20, 300)[:, None, None] + phase)).astype(np.float32)
    found["random"] = rng.random((300, 5000, 3), dtype=np.float32)
    return found


def _trajectory(name: str, frames: NDArray[np.float32], folder: Path) -> list[Measurement]:
    with DataHandler(folder / f"trajectory {name}") as handler:
        keys: list[str] = []
        writers: dict[str, Callable[[], Any]] = {
            "ours": lambda: keys.append(handler.store_trajectory({"frames": frames}, name)),
            "savez_compressed": lambda: np.savez_compressed(folder / "t.npz", frames=frames),
            "h5py gzip": lambda: _write_hdf5(folder / "t.h5", frames),
            "zarr": lambda: _write_zarr(folder / "t.zarr", frames),
        }
        stored = best_of_rounds(writers, 2)
        readers: dict[str, Callable[[], Any]] = {
            "ours": lambda: handler.load_data(keys[-1])["frames"],
            "savez_compressed": lambda: np.load(folder / "t.npz")["frames"],
            "h5py gzip": lambda: _read_hdf5(folder / "t.h5"),
            "zarr": lambda: _read_zarr(folder / "t.zarr"),
        }
        loaded = best_of_rounds(readers, 3)
        sizes = {
            "ours": handler.list_entries()[0]["size"],
            "savez_compressed": (folder / "t.npz").stat().st_size,
            "h5py gzip": (folder / "t.h5").stat().st_size,
            "zarr": sum(path.stat().st_size for path in (folder / "t.zarr").rglob("*") if path.is_file()),
        }
    saved = {writer: round(1 - size / frames.nbytes, 4) for writer, size in sizes.items()}
    smallest = min(size for writer, size in sizes.items() if writer != "ours")
    megabytes = frames.nbytes / 1e6
    print("  saved:", ", ".join(f"{writer} {share:.1%}" for writer, share in saved.items()))
    return [
        compared(f"{name}: bytes, against the smallest peer", sizes["ours"], smallest, "B", saved=saved),
        *(
            compared(
                f"{name}: {verb}, against the fastest peer", seconds["ours"] * 1e3,
                min(value for peer, value in seconds.items() if peer != "ours") * 1e3, "ms",
                megabytes_per_second={peer: round(megabytes / value, 1) for peer, value in seconds.items()},
            )
            for verb, seconds in (("store", stored), ("load", loaded))
        ),
    ]  # fmt: skip


def _copy_with_sync(source: Path, copy: Path) -> None:
    shutil.copyfile(source, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def _write_hdf5(path: Path, frames: NDArray[np.float32]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=frames, compression="gzip")


def _read_hdf5(path: Path) -> Any:
    import h5py

    with h5py.File(path) as file:
        return file["frames"][:]


def _write_zarr(path: Path, frames: NDArray[np.float32]) -> None:
    import zarr

    array = zarr.create_array(str(path), shape=frames.shape, dtype=frames.dtype, overwrite=True)
    array[:] = frames


def _read_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_array(str(path), mode="r")[:]
