"""A program of its own: one scripted job again and again, each time with a process killed at another of its commits.

`python commit_points.py FOLDER` writes FOLDER/facts.json: of each case what was planned and what became of the job and its file.
`python commit_points.py CASE_FOLDER ADDRESS` is the driver of one case: it submits the job and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="120")

import ray

sys.path.append(str(Path(__file__).resolve().parent / "importable"))
import chain_tasks

from rayzyme.database.leases import live_leases
from rayzyme.jobs.applying import LATE_RESULT
from rayzyme.jobs.states import FINAL
from rayzyme.workflows import FunctionTask, TaskConfig, Workflow, WorkflowBuilder
from rayzyme_actors import DispatcherAPI
from rayzyme_actors.scheduler import stop_scheduler

KILLING = str(Path(__file__).resolve().parent / "killed_at_commit")
SCHEDULER, RUNNER, DRIVER = "scheduler", "workflow-runner", "driver"
# Cases wait for most of their time: for a lease, for the pause after a lost runner.
AT_ONCE = 5
LONGEST_CASE_S = 90.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is killed, at which of its commits, and whether just `before` or just `after` it; commit 0 never comes."""

    who: str
    number: int
    when: str

    @property
    def name(self) -> str:
        """Of the case."""
        return f"{self.who}-{self.number}-{self.when}"


def chain(folder: Path) -> Workflow:
    """The scripted job."""
    params = {"log": str(folder / "log"), "path": str(folder / "out" / "file.txt")}
    builder = WorkflowBuilder("chain")
    before: list[str] = []
    for function in (chain_tasks.first, chain_tasks.write, chain_tasks.read):
        name = function.__name__
        builder.add_task(
            FunctionTask(name, function, TaskConfig(name, depends_on=before, task_params=params, max_retries=0))
        )
        before = [name]
    return builder.build()


def dispatcher_of(folder: Path, address: str) -> DispatcherAPI:
    """A dispatcher with a home and a scheduler of its own."""
    config = {
        "home": str(folder / "home"), "ray": {"address": address}, "leases": {"ttl": 3, "renew": 0.5}, "cancel": {"grace": 1},
    }  # fmt: skip
    return DispatcherAPI(config=config)


class Case:
    """One run of the job."""

    def __init__(self, plan: Plan, folder: Path, address: str) -> None:
        """Submit it; where the plan is that its driver is killed, by such a driver and then once more."""
        self.plan, self._folder = plan, folder / plan.name
        self._folder.mkdir()
        (self._folder / "plan.json").write_text(json.dumps(asdict(plan)))
        if plan.who == DRIVER:
            self._drive(address)
        self._dispatcher = dispatcher_of(self._folder, address)
        self._accepted_of_driver = len(self._dispatcher.list_jobs())
        self._job_id = submit(self._dispatcher, self._folder)

    def _drive(self, address: str) -> None:
        named = {"PYTHONPATH": KILLING, "RAYZYME_TEST_PROGRAM": DRIVER}
        command = [sys.executable, __file__, str(self._folder), address]
        subprocess.run(command, env=os.environ | named, check=False)

    def facts(self) -> dict[str, Any]:
        """Wait for the job's end, end everything, and tell what came of it."""
        store, plan = self._dispatcher._store, self.plan
        result = self._dispatcher.wait_for_job(self._job_id, LONGEST_CASE_S)
        events = store.events(self._job_id)
        committed = [
            [task["name"], task["attempt"], event.at.timestamp()]
            for event in events
            if event.reason != LATE_RESULT
            for task in event.data.get("tasks", ())
            if task["state"] == "completed"
        ]
        read = result.get_task_result("read")
        place = self._folder / "out" / "file.txt"
        leases = [lease["resource"] for lease in live_leases(store.database) if lease["purpose"] == self._job_id]
        self._dispatcher.stop(wait=False)
        stop_scheduler(self._dispatcher.settings)
        return {
            "case": plan.name, **asdict(plan), "is_killed": (self._folder / "killed").exists(), "commits": self.commits(plan.who),
            "accepted_of_driver": self._accepted_of_driver, "jobs": len(store.records()),
            "status": result.status, "ends": sum(event.to_state in FINAL for event in events), "committed": committed,
            "runs": [json.loads(line) for line in (self._folder / "log").read_text().splitlines()],
            "output": read and read.output, "content": place.read_text() if place.exists() else None,
            "inode": place.stat().st_ino if place.exists() else None,
            "leases": leases, "story": [event.to_text() for event in events],
        }  # fmt: skip

    def commits(self, who: str) -> int:
        """How many there were."""
        file = self._folder / f"{who}.commits"
        return len(file.read_text().splitlines()) if file.exists() else 0


def submit(dispatcher: DispatcherAPI, folder: Path) -> str:
    """The job is one, however often it is submitted."""
    return dispatcher.submit_workflow(chain(folder), idempotency_key="once")


def main(folder: Path) -> None:
    """First nobody is killed, which tells how many commits there are; then each of them is one case before, one after it."""
    ray.init(
        address="local", num_cpus=4 * AT_ONCE, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": KILLING}},
    )  # fmt: skip
    address = ray.get_runtime_context().gcs_address
    undisturbed = Case(Plan("nobody", 0, "never"), folder, address)
    facts = [undisturbed.facts()]
    commits = {who: undisturbed.commits(who) for who in (SCHEDULER, RUNNER)} | {DRIVER: 1}
    running: deque[Case] = deque()
    for who, most in commits.items():
        for number, when in product(range(1, most + 1), ("before", "after")):
            if len(running) == AT_ONCE:
                facts.append(running.popleft().facts())
            running.append(Case(Plan(who, number, when), folder, address))
    facts += [case.facts() for case in running]
    (folder / "facts.json").write_text(json.dumps(facts))
    ray.shutdown()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        submit(dispatcher_of(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[1]))
