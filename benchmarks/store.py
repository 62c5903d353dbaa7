"""What the store of jobs costs: accepting, starting, finishing and taking up jobs, against rows written by SQLite alone.

The peer writes the same bytes of spec and event into two tables of one SQLite file, a transaction for as many rows, with the same
syncing. Rates are jobs a second; a ratio below 1 is what chains, leases, attempts, usage and checks cost.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement, compared

from rayzyme.database import open_database
from rayzyme.jobs.changes import Change, TaskChange
from rayzyme.jobs.job import JobRequest
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore

JOBS, BATCH, ROUNDS, SINGLES = 10_000, 200, 3, 200
SLOT = "slot:workflow"
SPEC = {"name": "sample", "tasks": [{"type": "module:function", "arguments": {"x": number}} for number in range(5)]}
TAKEN_UP_S = 2.0


def run() -> list[Measurement]:
    """Rates of the best round; each round has a database of its own."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        rounds = [_round(Path(folder) / str(number)) for number in range(ROUNDS)]
    best = {name: min(each[name] for each in rounds) for name in rounds[0]}
    rate = {name: (SINGLES if "one by one" in name else JOBS) / seconds for name, seconds in best.items()}
    return [
        _compared("submit in one call", rate, "rows of one transaction"),
        _compared("submit one by one", rate, "rows one by one"),
        _compared("start in batches", rate, "rows in batches"),
        _compared("finish in batches", rate, "rows in batches"),
        _compared("finish one by one", rate, "rows one by one"),
        compared(f"taking up {JOBS} queued jobs, against the bar", best["taken up"], TAKEN_UP_S, "s"),
        compared("looking for changes where there are none, against 1 ms", best["looked"] * 1e3, 1.0, "ms"),
    ]


def _compared(name: str, rate: dict[str, float], peer: str) -> Measurement:
    # `compared` takes times: less is better.
    return compared(f"{name}, per job", 1e3 / rate[name], 1e3 / rate[peer], "ms", jobs_per_s=round(rate[name]))


def _round(folder: Path) -> dict[str, float]:
    folder.mkdir()
    figures = _peer(folder / "peer.db")
    with closing(open_database(f"sqlite:///{folder / 'rayzyme.db'}")) as database:
        store = JobStore(database)
        figures["submit in one call"], ids = _timed(lambda: store.submit(_requests(JOBS)))
        figures["taken up"], jobs = _timed(lambda: JobStore(database).live_jobs())
        assert len(jobs) == JOBS
        figures["start in batches"], _ = _timed(lambda: _apply(store, [_start(job_id) for job_id in ids]))
        figures["finish in batches"], _ = _timed(lambda: _apply(store, [_finish(job_id) for job_id in ids]))
        store.changed_since(time.time())
        since = time.time()
        store.changed_since(since)
        figures["looked"], changed = _timed(lambda: store.changed_since(time.time()))
        assert not changed
        figures["submit one by one"], singles = _timed(lambda: [store.submit(_requests(1))[0] for _ in range(SINGLES)])
        _apply(store, [_start(job_id) for job_id in singles])
        figures["finish one by one"], _ = _timed(lambda: [store.apply([_finish(job_id)]) for job_id in singles])
    return figures


def _peer(file: Path) -> dict[str, float]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        for table in ("job", "event"):
            connection.execute(
                f"CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, data TEXT)"
            )
        written = 0

        def write(count: int, batch: int) -> None:
            nonlocal written
            for begin in range(0, count, batch):
                names = [str(written + begin + number) for number in range(min(batch, count - begin))]
                connection.execute("BEGIN IMMEDIATE")
                for table in ("job", "event"):
                    rows = [(name, json.dumps(SPEC)) for name in names]
                    connection.executemany(f"INSERT INTO {table} (name, data) VALUES (?, ?)", rows)
                connection.execute("COMMIT")
            written += count

        return {
            "rows of one transaction": _timed(lambda: write(JOBS, JOBS))[0],
            "rows in batches": _timed(lambda: write(JOBS, BATCH))[0],
            "rows one by one": _timed(lambda: write(SINGLES, 1))[0],
        }


def _requests(count: int) -> list[JobRequest]:
    needs = {SLOT: 1.0}
    return [JobRequest(f"job {number}", f"owner {number % 10}", SPEC, needs=needs) for number in range(count)]


def _start(job_id: str) -> Change:
    return Change(
        job_id=job_id, attempt=0, states=frozenset({JobState.QUEUED}), reason="started", actor="scheduler", to=JobState.RUNNING,
        new_attempt=1, acquire={SLOT: 1.0}, lease_owner="runner:1",
    )  # fmt: skip


def _finish(job_id: str) -> Change:
    now = time.time()
    hops = {"leased": now, "started": now, "computed": now}
    values = {"output": {"kind": "inline", "digest": "0" * 64, "value": 1}, "not_before": None}
    task = TaskChange("task", 1, JobState.COMPLETED, values, hops, runner="runner:1")
    return Change(
        job_id=job_id, attempt=1, states=frozenset({JobState.RUNNING}), reason="completed", actor="runner:1",
        to=JobState.COMPLETED, values={"result": {}}, tasks=(task,), release=True,
    )  # fmt: skip


def _apply(store: JobStore, changes: list[Change]) -> None:
    for begin in range(0, len(changes), BATCH):
        applied = store.apply(changes[begin : begin + BATCH], capacity={SLOT: float(2 * JOBS)})
        assert all(outcome.accepted for outcome in applied)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result
