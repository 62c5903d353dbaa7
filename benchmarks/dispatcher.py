"""Whole jobs through the dispatcher, each durable at every step, against `distributed` (Dask), which writes nothing down.

The jobs do nothing. Both use two processes of one thread on this machine and get their work in batches. The time from a submit to
the start of its task is compared with a bar: the round trip of a call of an actor of Ray's own, and 10 ms.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement, compared

JOBS = 4_000
BATCH = 500
SINGLE_JOBS = 60
BAR_BEYOND_S = 0.010


def nothing() -> None:
    """The smallest task."""


def when() -> float:
    """The smallest task that tells when it ran."""
    return time.time()


def identity(number: int) -> int:
    """The smallest task of the peer."""
    return number


def run() -> list[Measurement]:
    """Throughput of both, then the latency of ours at rest."""
    theirs = _distributed_rate()
    with tempfile.TemporaryDirectory() as home:
        os.environ["RAYZYME_HOME"] = home
        ours, delay, round_trip = _dispatcher_figures()
    bar = round_trip + BAR_BEYOND_S
    rates = {"jobs_per_second": ours, "peer_per_second": theirs}
    return [
        compared("one no-op job, through and durable", 1e3 / ours, 1e3 / theirs, "ms", **rates),
        compared(
            "submit to start, idle cluster, p50, against its bar", delay * 1e3, bar * 1e3, "ms",
            ray_round_trip_ms=round_trip * 1e3,
        ),
    ]  # fmt: skip


def _distributed_rate() -> float:
    """Tasks per second, the second time around."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(identity, range(BATCH), pure=False))
        begin = time.perf_counter()
        futures = [
            future
            for first in range(0, JOBS, BATCH)
            for future in client.map(identity, range(first, first + BATCH), pure=False)
        ]
        client.gather(futures)
        return JOBS / (time.perf_counter() - begin)


def _dispatcher_figures() -> tuple[float, float, float]:
    """Jobs per second; seconds from submit to start, and of a round trip to an actor, both as medians."""
    import ray

    from rayzyme.workflows import FunctionTask, WorkflowBuilder
    from rayzyme_actors import DispatcherAPI

    sys.path.append(str(Path(__file__).parent.parent))
    config: dict[str, Any] = {"ray": {"num_cpus": 2}, "scheduler": {"max_concurrent_jobs": 1024}}
    with DispatcherAPI(config=config) as dispatcher:

        def batch(size: int) -> list[str]:
            workflows = [WorkflowBuilder("no-op").add_task(FunctionTask("no-op", nothing)).build() for _ in range(size)]
            return dispatcher.submit_many(workflows)

        dispatcher.wait_for_jobs(batch(BATCH))
        begin = time.perf_counter()
        job_ids = [job_id for _ in range(0, JOBS, BATCH) for job_id in batch(BATCH)]
        dispatcher.wait_for_jobs(job_ids)
        rate = JOBS / (time.perf_counter() - begin)
        assert dispatcher.get_stats()["queue"]["completed"] == JOBS + BATCH

        delays = []
        for _ in range(SINGLE_JOBS):
            submitted = time.time()
            job_id = dispatcher.submit_task(FunctionTask("when", when))
            result = dispatcher.wait_for_job(job_id)
            delays.append(result.get_task_result("when").output - submitted)

        echo = ray.remote(_Echo).options(num_cpus=0).remote()
        ray.get(echo.answer.remote())
        round_trips = []
        for _ in range(200):
            begin = time.perf_counter()
            ray.get(echo.answer.remote())
            round_trips.append(time.perf_counter() - begin)
    ray.shutdown()
    return rate, statistics.median(delays), statistics.median(round_trips)


class _Echo:
    def answer(self) -> None:
        """Nothing."""
