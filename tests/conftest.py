"""Shared fixtures: an empty RAYZYME_HOME for every test, one Ray session for all, and the optional real data."""

from __future__ import annotations

import os

# Ray reads these when it is imported, so they come before anything that may import it.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="120", RAY_DEDUP_LOGS="0")

import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.postgresql import ABSENT, postgresql_server, server_binaries

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; tests that read it are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} does not exist")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh RAYZYME_HOME, so that no test reads or writes the user's own."""
    from rayzyme.settings import use_settings

    folder = tmp_path / "rayzyme-home"
    monkeypatch.setenv("RAYZYME_HOME", str(folder))
    monkeypatch.delenv("RAYZYME_CONFIG", raising=False)
    use_settings(None)
    yield folder
    use_settings(None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with four logical CPUs, no dashboard."""
    import ray

    from rayzyme_actors.connection import OF_OUR_RAYS

    os.environ.update(OF_OUR_RAYS)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        namespace="rayzyme",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def endpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The HTTP endpoint on a real Ray Serve, in a home of its own; its URL. Serve cannot be started twice in one session."""
    from ray import serve

    from rayzyme.settings import load_settings, use_settings
    from rayzyme_serve.app import APPLICATION, build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    use_settings(load_settings(overrides={"home": str(tmp_path_factory.mktemp("endpoint-home"))}))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(), name=APPLICATION)
    use_settings(None)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server of our own."""
    binaries = server_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    with postgresql_server(binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, once on each engine; other processes may open it too."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'rayzyme.db'}"
        return
    from sqlalchemy import create_engine, text

    server: str = request.getfixturevalue("postgresql")
    name = f"test_{uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield f"{server.rpartition('/')[0]}/{name}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
