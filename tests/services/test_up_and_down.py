"""`rayzyme up` and `rayzyme down` for real, each command a process of its own; and `ray job submit` to what runs between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from rayzyme.settings import load_settings
from rayzyme_actors.own_ray import end_own_ray, start_own_ray
from rayzyme_actors.platform_record import PlatformRecord, read_record

PEROXIDE = "OO.OO>>O=O.O.O"
LONGEST_S = 300
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One RAYZYME_HOME for what runs through this file."""
    return tmp_path_factory.mktemp("up") / "home"


@pytest.fixture(scope="module")
def environment(own_home: Path) -> dict[str, str]:
    """Of a user who has set nothing about Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYZYME_"))}
    return {**kept, "RAYZYME_HOME": str(own_home), "RAY_raylet_start_wait_time_s": "120"}


@pytest.fixture(scope="module")
def rayzyme(environment: dict[str, str]) -> Command:
    """Run the command; gives what it printed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rayzyme_serve.cli", *arguments],
            capture_output=True, text=True, check=False, timeout=LONGEST_S, env=environment,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Free ones, for the endpoint and the dashboard."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return {"port": first.getsockname()[1], "dashboard-port": second.getsockname()[1]}


@pytest.fixture(scope="module")
def platform(rayzyme: Command, own_home: Path, ports: dict[str, int]) -> Iterator[PlatformRecord]:
    """What runs after `rayzyme up`."""
    options = [f"--{name}={port}" for name, port in ports.items()]
    done = rayzyme("--output", "json", "up", "--num-cpus=2", *options)
    try:
        assert done.returncode == 0, done.stderr
        record = read_record(own_home)
        assert record is not None
        assert json.loads(done.stdout)["endpoint"] == record.endpoint == f"http://127.0.0.1:{ports['port']}"
        yield record
    finally:
        rayzyme("down", "--timeout=0")


def token_of(record: PlatformRecord) -> str:
    return Path(record.authentication["RAY_AUTH_TOKEN_PATH"]).read_text()


def processes_of(record: PlatformRecord) -> list[psutil.Process]:
    """Everything that is alive and was started by it: all of it inherits the name of its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == str(record.folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.5)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_what_runs_answers_after_the_command_has_ended(platform: PlatformRecord) -> None:
    answer = httpx.post(f"{platform.endpoint}/v1/screen", json={"reactions": [PEROXIDE], "top_k": 3}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"][0]["hits"]) == 3
    assert httpx.get(f"{platform.endpoint}/health", timeout=60).json()["status"] == "ok"


def test_nobody_gets_in_without_rays_token(platform: PlatformRecord) -> None:
    token_file = Path(platform.authentication["RAY_AUTH_TOKEN_PATH"])
    assert platform.authentication["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    jobs = f"{platform.dashboard}/api/jobs/"
    assert httpx.get(jobs).status_code == 401
    assert httpx.get(jobs, headers={"Authorization": f"Bearer {token_of(platform)}"}).status_code == 200


def test_the_endpoint_and_the_dashboard_listen_on_loopback_only(
    platform: PlatformRecord, ports: dict[str, int]
) -> None:
    listening = [place.laddr for place in psutil.net_connections("tcp") if place.status == psutil.CONN_LISTEN]
    for port in ports.values():
        assert {place.ip for place in listening if place.port == port} == {"127.0.0.1"}


def test_only_the_owner_reads_what_ray_writes(platform: PlatformRecord) -> None:
    assert platform.folder is not None
    assert stat.S_IMODE(platform.folder.stat().st_mode) == 0o700


def test_a_second_up_says_what_runs_and_starts_nothing(
    platform: PlatformRecord, rayzyme: Command, own_home: Path
) -> None:
    before = {process.pid for process in processes_of(platform) if "ray::" not in process.name()}
    done = rayzyme("--output", "json", "up")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["endpoint"] == platform.endpoint
    assert read_record(own_home) == platform
    assert {process.pid for process in processes_of(platform)} >= before


def test_another_port_than_the_one_that_is_listened_on_is_refused(platform: PlatformRecord, rayzyme: Command) -> None:
    done = rayzyme("up", "--port=1")
    assert done.returncode == 2
    assert platform.endpoint in done.stderr
    assert "rayzyme down" in done.stderr


def test_the_status_shows_both_ray_and_the_endpoint(platform: PlatformRecord, rayzyme: Command) -> None:
    document = json.loads(rayzyme("status", "--json").stdout)
    assert document["scheduler"]["running"]
    assert document["platform"]["ray"] == platform.address
    assert document["platform"]["endpoint_answers"]


def test_commands_in_other_processes_find_the_scheduler(
    platform: PlatformRecord, rayzyme: Command, tmp_path: Path
) -> None:
    done = rayzyme(
        "--output", "json", "screen", "baseline", "--reaction", PEROXIDE, "--top-k=2", "--wait", f"--output-dir={tmp_path}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["results"][0]["hits"]) == 2
    jobs = json.loads(rayzyme("list-jobs", "--json").stdout)["jobs"]
    assert jobs[0]["status"] == "completed"


def test_ray_job_submit_runs_the_example_on_it(
    platform: PlatformRecord, environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    """As the README says: with the token, from any folder, no matter what is installed where the command is given."""
    folder = shutil.copytree(repository / "examples", tmp_path / "examples")
    command = ["ray", "job", "submit", "--working-dir", str(folder), "--submission-id", "first", "--"]
    program = ["python", "screen_on_cluster.py", "well_known_reactions.csv"]
    settings = {**environment, **platform.authentication, "RAY_API_SERVER_ADDRESS": platform.dashboard}
    settings["PATH"] = f"{Path(sys.executable).parent}:{settings['PATH']}"
    done = subprocess.run(
        [*command, *program], capture_output=True, text=True, check=False, timeout=LONGEST_S, env=settings, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lactate dehydrogenase, EC 1.1.1.27: P13774" in done.stdout
    again = subprocess.run(
        [*command, *program], capture_output=True, text=True, check=False, timeout=LONGEST_S, env=settings, cwd=tmp_path
    )
    assert again.returncode != 0
    assert "first" in again.stderr + again.stdout


def test_prometheus_finds_the_metrics_as_the_file_that_is_shipped_says(
    platform: PlatformRecord, repository: Path, ports: dict[str, int]
) -> None:
    """The list of nodes takes Ray's token; what the nodes say has Rayzyme's own metrics in it."""
    shipped = yaml.safe_load((repository / "serve/rayzyme_serve/deploy/prometheus.yaml").read_text())
    (discovery,) = shipped["scrape_configs"][0]["http_sd_configs"]
    assert Path(discovery["authorization"]["credentials_file"]).parts[-2:] == ("ray", "auth_token")
    url = discovery["url"].replace("8265", str(ports["dashboard-port"]))
    assert httpx.get(url).status_code == 401
    scheme = discovery["authorization"]["type"]
    listed = httpx.get(url, headers={"Authorization": f"{scheme} {token_of(platform)}"}).json()
    places = [place for group in listed for place in group["targets"]]

    def told() -> str:
        return "".join(httpx.get(f"http://{place}/metrics", timeout=30).text for place in places)

    # Ray hands metrics on every ten seconds.
    wait_until(lambda: "ray_rayzyme_search_seconds_bucket" in told())


def test_the_serve_configuration_that_is_shipped_replaces_the_running_application(
    platform: PlatformRecord, environment: dict[str, str], repository: Path, tmp_path: Path, ports: dict[str, int]
) -> None:
    shipped = (repository / "serve/rayzyme_serve/deploy/serve.yaml").read_text()
    config = tmp_path / "serve.yaml"
    config.write_text(shipped.replace("port: 8000", f"port: {ports['port']}"))
    done = subprocess.run(
        [Path(sys.executable).parent / "serve", "deploy", config, "--address", platform.dashboard],
        capture_output=True, text=True, check=False, timeout=LONGEST_S, env={**environment, **platform.authentication},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    token = {"Authorization": f"Bearer {token_of(platform)}"}

    def state() -> dict[str, Any]:
        answer = httpx.get(f"{platform.dashboard}/api/serve/applications/", headers=token, timeout=30).json()
        found: dict[str, Any] = answer["applications"]["rayzyme"]
        return found

    wait_until(lambda: state()["source"] == "declarative" and state()["status"] == "RUNNING")
    assert state()["deployments"]["online"]["deployment_config"]["autoscaling_config"]["max_replicas"] == 4
    assert httpx.get(f"{platform.endpoint}/health", timeout=60).status_code == 200


def test_ctrl_c_in_the_foreground_ends_everything_and_leaves_nothing(
    platform: PlatformRecord, rayzyme: Command, environment: dict[str, str], own_home: Path, ports: dict[str, int]
) -> None:
    """The last one of those that share what runs."""
    in_foreground = subprocess.Popen(
        [sys.executable, "-m", "rayzyme_serve.cli", "--output", "quiet", "up", "--foreground", "--timeout=0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert in_foreground.stdout is not None
    assert in_foreground.stdout.readline().strip() == platform.endpoint
    in_foreground.send_signal(signal.SIGINT)
    _, errors = in_foreground.communicate(timeout=LONGEST_S)
    assert in_foreground.returncode == 0, errors
    assert processes_of(platform) == []
    assert all(is_free(port) for port in (*ports.values(), int(platform.address.rpartition(":")[2])))
    assert platform.folder is not None
    assert not platform.folder.exists()
    assert read_record(own_home) is None
    with closing(sqlite3.connect(own_home / "rayzyme.db")) as database:
        told = database.execute("SELECT reason FROM job_event WHERE subject = 'platform' ORDER BY seq").fetchall()
    assert told == [("started",), ("ended",)]
    down = rayzyme("down")
    assert down.returncode == 0
    assert "nothing runs" in down.stderr
    assert not json.loads(rayzyme("status", "--json").stdout)["platform"]["running"]


def test_a_ray_that_was_joined_is_left_running_and_what_a_kill_leaves_of_ours_is_ended(
    home: Path, tmp_path: Path, ports: dict[str, int]
) -> None:
    """One Ray serves both: a stranger's for the platform that joins it, and ours for the one that started it."""
    (home / "ray").mkdir(parents=True)
    settings = load_settings()
    joining = {**os.environ, "RAYZYME_HOME": str(tmp_path / "joining")}
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rayzyme_serve.cli", "--output", "json", *arguments],
            capture_output=True, text=True, check=False, timeout=LONGEST_S, env=joining,
        )  # fmt: skip

    record = start_own_ray(settings, num_cpus=2)
    try:
        assert read_record(home) == record
        assert record.process is not None
        assert record.folder is not None
        up = command("up", "--address", record.address, f"--port={ports['port']}")
        assert up.returncode == 0, up.stderr
        assert json.loads(up.stdout)["ray"] == record.address
        assert not json.loads(up.stdout)["ray_is_own"]
        assert command("down").returncode == 0
        assert record.is_running()
        assert is_free(ports["port"])
        assert not any(process.name().startswith("ray::ModelHost") for process in processes_of(record))
        os.kill(record.process.pid, signal.SIGKILL)
        os.waitpid(record.process.pid, 0)
        assert not record.is_running()
    finally:
        end_own_ray(settings, record)
        is_untouched = stranger.poll() is None
        stranger.kill()
        stranger.wait()
    assert is_untouched
    assert processes_of(record) == []
    assert not record.folder.exists()
    assert read_record(home) is None
