"""Side-by-side timing: the contenders take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

RESULTS = Path(__file__).parent / "results"
THREADS = 2


class Measurement(TypedDict):
    """One comparison.

    `ratio` is peer / ours where less is better (times, bytes): above 1 Rayzyme is ahead.
    """

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    detail: dict[str, Any]


def best_of_rounds(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each contender's best round, after one unmeasured round; they take turns within a round."""
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - begin)
    return best


def compared(name: str, ours: float, peer: float, unit: str, **detail: Any) -> Measurement:
    """A comparison, printed as it is made."""
    ratio = peer / ours
    print(f"{name:58s} ours {ours:10.4g} {unit:3s} peer {peer:10.4g} {unit:3s} ratio {ratio:6.2f}", flush=True)
    return {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "detail": detail}


def save(suite: str, measurements: list[Measurement]) -> Path:
    """Write a suite's measurements with machine and versions."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{suite}.json"
    document = {
        "suite": suite,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "measurements": measurements,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores, versions, and the commit."""
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info().get("flags", []))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "processor": cpuinfo.get_cpu_info().get("brand_raw", platform.processor()),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("rayzyme", "torch", "numpy", "ray", "faiss-cpu", "usearch")},
        "commit": commit,
    }
