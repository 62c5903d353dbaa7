"""GPU memory on Ray: shares of a GPU by megabytes, leases that bind, and reasons for those who wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SETTINGS = {
    "resources": {"gpu": {"simulated_mb": [40_000], "model_memory_mb": 12_000}},
    "leases": {"ttl": 4, "renew": 1},
}

SCRIPT = """
import json
import ray
from sqlalchemy import select
from rayzyme.database import open_database
from rayzyme.database.tables import Lease
from rayzyme.errors import RayzymeError
from rayzyme.resources import GPUManager
from rayzyme.settings import get_settings, load_settings
from rayzyme_actors.starting import start_host

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, namespace="rayzyme",
         object_store_memory=100 * 2**20)
settings, told = get_settings(), {}

def refusal(act):
    try:
        act()
    except RayzymeError as error:
        return f"{type(error).__name__}: {error}"

def host(number, settings=settings):
    return start_host("baseline", f"host-{number}", "auto", settings)

told["unlisted"] = refusal(lambda: host(0, load_settings(overrides={"resources": {"gpu": {"simulated_mb": []}}})))

with GPUManager.from_settings({"simulation": 30_000}) as manager:
    manager.allocate_gpus("simulation")
    told["taken"] = refusal(lambda: host(0).wait_until_ready())

hosts = [host(number) for number in range(1, 4)]
told["pids"] = [actor.wait_until_ready()["pid"] for actor in hosts]
told["asked"] = hosts[0].options["num_gpus"]
fourth = host(4)
told["waiting"] = refusal(lambda: fourth.wait_until_ready(2))
with open_database().read() as connection:
    told["leases"] = [list(row) for row in connection.execute(select(Lease.amount, Lease.purpose, Lease.pid))]
hosts[0].release()
told["fourth"] = fourth.wait_until_ready(60)["pid"]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in a process with a Ray of its own, which counts one GPU."""
    home = tmp_path_factory.mktemp("home")
    (home / "config.yaml").write_text(json.dumps(SETTINGS))
    environment = {**os.environ, "RAYZYME_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_three_of_12000_mb_start_on_40000_and_the_fourth_waits_with_a_reason(told: dict[str, Any]) -> None:
    """C19"""
    assert told["asked"] == 0.3078, (
        "0.3077 are 12,000 of the 39,000 MB that are given out, and Ray would count that as 0.3076"
    )
    assert sorted(told["leases"]) == sorted([12_000.0, "model", pid] for pid in told["pids"])
    assert "actor host-4 was not ready" in told["waiting"]
    assert "'num_gpus': 0.3078" in told["waiting"]
    assert "0.0766 GPUs" in told["waiting"]


def test_the_fourth_starts_when_one_of_the_others_has_gone(told: dict[str, Any]) -> None:
    """C14, C19"""
    assert told["fourth"] not in told["pids"]


def test_memory_that_another_program_leases_is_refused_with_the_figures(told: dict[str, Any]) -> None:
    """C13, C19"""
    assert told["taken"].startswith("ResourceError: ")
    assert "12,000 MB" in told["taken"]


def test_gpus_that_ray_counts_and_no_driver_lists_are_told(told: dict[str, Any]) -> None:
    assert told["unlisted"].startswith("DeviceUnavailable: Ray counts GPUs on node")
    assert "set resources.gpu.simulated_mb to try a placement without GPUs" in told["unlisted"]
