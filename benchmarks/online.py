"""The HTTP endpoint against a plain FastAPI and uvicorn server that does, for each request, what CLIPZyme's README does: one
matrix-vector product in float32 and a sort.

Both answer the same 64 reactions of which the embeddings are known: the peer holds them, ours remembers them. The set has the
size of the published one. Load comes from a process of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from benchmarks.http_load import load
from benchmarks.measuring import THREADS, Measurement, compared
from benchmarks.random_clipzyme import write_checkpoint
from benchmarks.search import ROWS, unit_rows

REACTIONS, TOP_K = 64, 100
SECONDS = 6.0
PEER = """
import sys, fastapi, numpy as np, torch, uvicorn
torch.set_num_threads(int(sys.argv[3]))
rows, queries = torch.from_numpy(np.load(sys.argv[1])), torch.from_numpy(np.load(sys.argv[2]))
api = fastapi.FastAPI()

@api.post("/v1/screen")
def screen(request: dict):
    scores = rows @ queries[request["number"]]
    best = torch.argsort(scores, descending=True)[: request["top_k"]]
    return {"hits": [{"protein_id": f"P{row:06d}", "score": float(scores[row])} for row in best.tolist()]}

uvicorn.run(api, host="127.0.0.1", port=int(sys.argv[4]), log_level="error")
"""


def run() -> list[Measurement]:
    """One client, 32 clients, 8 against 64 clients, and one client while batch work runs."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["RAYZYME_HOME"] = folder
        rows = unit_rows(ROWS, 0)
        peer = _measured_peer(home, rows)
        checkpoint = _prepared(home, rows)
        del rows
        ours = _measured_ours(checkpoint)
    results = [
        compared("HTTP, 1 client, p50", ours[1]["p50_s"] * 1e3, peer[1]["p50_s"] * 1e3, "ms"),
        compared(
            "HTTP, 32 clients, time per request (bar: 10)",
            1e3 / ours[32]["per_second"], 1e3 / peer[32]["per_second"], "ms",
            ours_per_second=ours[32]["per_second"], peer_per_second=peer[32]["per_second"],
        ),
        compared("HTTP, 32 clients, p99", ours[32]["p99_s"] * 1e3, peer[32]["p99_s"] * 1e3, "ms"),
        compared(
            "HTTP, time per request at 64 clients against 8 (bar: 0.9)",
            1e3 / ours[64]["per_second"], 1e3 / ours[8]["per_second"], "ms",
        ),
        compared(
            "HTTP, p99 of one client under batch load, against its bar",
            ours["loaded"]["p99_s"] * 1e3, (2 * ours[1]["p99_s"] + ours["step_s"]) * 1e3, "ms",
            idle_p99_ms=ours[1]["p99_s"] * 1e3, loaded_p50_ms=ours["loaded"]["p50_s"] * 1e3,
            longest_batch_step_ms=ours["step_s"] * 1e3, batch_reactions_per_second=ours["batch_per_second"],
        ),
    ]  # fmt: skip
    for measurement in results:
        measurement["detail"]["statuses"] = {
            str(key): value["statuses"] for key, value in ours.items() if key in (1, 8, 32, 64)
        }
    return results


def _measured_peer(home: Path, rows: np.ndarray) -> dict[int, dict[str, Any]]:
    np.save(home / "rows.npy", rows)
    np.save(home / "queries.npy", unit_rows(REACTIONS, 1))
    port = _free_port()
    arguments = [str(home / "rows.npy"), str(home / "queries.npy"), str(THREADS), str(port)]
    bodies = [json.dumps({"number": number, "top_k": TOP_K}) for number in range(REACTIONS)]
    url = f"http://127.0.0.1:{port}/v1/screen"
    with subprocess.Popen([sys.executable, "-c", PEER, *arguments]) as server:
        try:
            _wait_for(url, bodies[0])
            return {clients: load(url, clients, SECONDS, bodies) for clients in (1, 32)}
        finally:
            server.terminate()
            (home / "rows.npy").unlink()


def _prepared(home: Path, rows: np.ndarray) -> str:
    """A checkpoint of the published shape with random weights, and a set that it might have made."""
    from rayzyme.models.checkpoints import CheckpointRegistry
    from rayzyme.screening import CheckpointRef, ScreeningSet
    from rayzyme.settings import get_settings

    path = write_checkpoint(home / "random.ckpt")
    os.environ["RAYZYME_CHECKPOINTS__SOURCES"] = json.dumps({"random": str(path)})
    settings = get_settings()
    reference = CheckpointRef(*CheckpointRegistry(settings.home, settings.checkpoints.sources).identify("random"))
    ids = [f"P{number:06d}" for number in range(len(rows))]
    settings.screening_sets.mkdir(parents=True)
    ScreeningSet.from_arrays(ids, rows, None, reference).save(settings.screening_sets / "published.arrow")
    return "random"


def _measured_ours(checkpoint: str) -> dict[Any, Any]:
    import ray
    from ray import serve

    from rayzyme_actors.connection import connect
    from rayzyme_actors.screening import Screener
    from rayzyme_serve.app import build

    connect()
    port = _free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(), name="rayzyme")
    url = f"http://127.0.0.1:{port}/v1/screen"
    reactions = [_mapped_reaction(number) for number in range(REACTIONS)]
    common = {"checkpoint": checkpoint, "screening_set": "published", "top_k": TOP_K}
    bodies = [json.dumps({"reactions": [reaction], **common}) for reaction in reactions]
    _wait_for(url, bodies[0])
    # Everything is encoded once before.
    _wait_for(url, json.dumps({"reactions": reactions, **common}))
    measured: dict[Any, Any] = {clients: load(url, clients, SECONDS, bodies) for clients in (1, 8, 32, 64)}
    screener = Screener(checkpoint, "published")
    with _batch_load(screener, reactions) as done:
        begin = time.perf_counter()
        measured["loaded"] = load(url, 1, 2 * SECONDS, bodies)
        measured["batch_per_second"] = sum(done) / (time.perf_counter() - begin)
    measured["step_s"] = max(shard.wait_until_ready()["longest_batch_step"] for shard in screener.shards)
    serve.shutdown()
    ray.shutdown()
    return measured


@contextmanager
def _batch_load(screener: Any, reactions: list[str]) -> Iterator[list[int]]:
    """Batch work on the same actors without a pause; yields how many reactions each round did."""
    is_over, done = threading.Event(), list[int]()

    def work() -> None:
        while not is_over.is_set():
            screener.screen(reactions, TOP_K, mode="batched")
            done.append(len(reactions))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        is_over.set()
        thread.join()


def _mapped_reaction(number: int) -> str:
    """An oxidation of an alcohol with `number` carbons more, every atom mapped."""
    chain = "".join(f"[CH2:{index}]" for index in range(4, 4 + number % 32))
    branch = "[CH3:99]" if number < 32 else "[CH3:98][CH2:99]"
    return f"{branch}{chain}[CH2:1][OH:2]>>{branch}{chain}[CH:1]=[O:2]"


def _wait_for(url: str, body: str) -> None:
    end = time.monotonic() + 180
    while True:
        try:
            answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=180)
            assert answer.status_code == 200, answer.text
            return
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
