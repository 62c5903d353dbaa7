"""A program of its own: tasks that ask for GPUs, on a Ray that counts two simulated ones. Prints what each was given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="120")

import ray

sys.path.append(str(Path(__file__).parent / "importable"))
import sample_tasks
from sqlalchemy import select

from rayzyme.database.tables import Lease
from rayzyme.errors import RayzymeError
from rayzyme.workflows import FunctionTask, TaskConfig, WorkflowBuilder
from rayzyme_actors import DispatcherAPI


def main(folder: Path) -> None:
    """Three jobs: whole GPUs, none, and memory of one."""
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, namespace="rayzyme",
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    told: dict[str, object] = {}
    with DispatcherAPI() as dispatcher:

        def given(name: str, **config: object) -> object:
            task = FunctionTask(name, sample_tasks.granted_gpus, TaskConfig(name, **config))
            result = dispatcher.wait_for_job(dispatcher.submit_task(task), timeout=120)
            return result.get_task_result(name).output if result.success else result.error

        told["two"] = given("two", min_gpus=2, max_gpus=2)
        told["none"] = given("none")
        params = {"log": str(folder / "log"), "until": str(folder / "until")}
        holder = FunctionTask(
            "holder",
            sample_tasks.wait_for_file,
            TaskConfig("holder", gpu_required=True, gpu_memory_mb=9000, task_params=params),
        )
        job_id = dispatcher.submit_workflow(WorkflowBuilder("memory").add_task(holder).build())
        while not (folder / "log").exists():
            assert dispatcher.get_job_status(job_id) != "failed", dispatcher.get_job_result(job_id).error
        with dispatcher._store.database.read() as connection:
            rows = connection.execute(select(Lease.resource, Lease.amount).where(Lease.resource.startswith("gpu:")))
            told["leased_mb"] = [row.amount for row in rows]
        told["allocations"] = dispatcher.get_stats()["resources"]["gpu"]["allocated_tasks"]
        (folder / "until").touch()
        told["holder"] = dispatcher.wait_for_job(job_id, timeout=60).status
        try:
            given("three", min_gpus=3, max_gpus=3)
        except RayzymeError as error:
            told["three"] = str(error)
    sys.stdout.write(json.dumps(told) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
