"""A program of its own: a cluster of three nodes, one of which is killed under a running task. Prints what became of the job."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="120")

import psutil
import ray
from ray.cluster_utils import Cluster

sys.path.append(str(Path(__file__).parent / "importable"))
import sample_tasks

from rayzyme.errors import ResourceError
from rayzyme.workflows import FunctionTask, TaskConfig
from rayzyme_actors import DispatcherAPI

FAST = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


def main(folder: Path) -> None:
    """The scheduler and the runner live on the head, the tasks on the two others."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": FAST, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.connect(namespace="rayzyme")
    nodes = {}
    for _ in range(2):
        node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        nodes[node.node_id] = node
    params = {"log": str(folder / "log"), "until": str(folder / "until")}
    config = {"ray": {"address": cluster.address}, "leases": {"ttl": 6, "renew": 1}}
    with DispatcherAPI(config=config) as dispatcher:
        job_id = dispatcher.submit_task(
            FunctionTask("task", sample_tasks.wait_for_file, TaskConfig("task", task_params=params, max_retries=0))
        )
        try:
            dispatcher.submit_task(FunctionTask("wide", sample_tasks.nothing, TaskConfig("wide", num_cpus=2)))
        except ResourceError as error:
            refused = str(error)
        first = _wait_for_lines(folder / "log", 1)
        cluster.remove_node(nodes[_node_of(first)], allow_graceful=False)
        _wait_for_lines(folder / "log", 2)
        (folder / "until").touch()
        result = dispatcher.wait_for_job(job_id, timeout=60)
        (task,) = dispatcher._store.tasks(job_id)
        told = {"status": result.status, "attempt": task.attempt, "site_faults": task.site_faults, "refused": refused}
        sys.stdout.write(json.dumps(told) + "\n")
    ray.shutdown()
    cluster.shutdown()


def _wait_for_lines(file: Path, count: int) -> str:
    end = time.monotonic() + 60
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < end, f"{file} has not got {count} lines"
        time.sleep(0.05)
    return file.read_text().splitlines()[-1]


def _node_of(line: str) -> str:
    """The node that the process of a log line belongs to, by the command line of the raylet that is its parent."""
    parent = psutil.Process(int(line.split()[2])).parent()
    words = parent.cmdline()
    return next(word.partition("=")[2] for word in words if word.startswith("--node_id="))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
