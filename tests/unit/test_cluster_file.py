"""cluster.yaml: accepted by Ray's own validator, and safe by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayzyme


@pytest.fixture
def cluster(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((repository / "cluster.yaml").read_text())
    return loaded


def test_ray_accepts_it(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("HOME", str(tmp_path))
    validate_config(prepare_config(cluster))


def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_loopback(cluster: dict[str, Any]) -> None:
    starts = [
        command
        for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in str(cluster)


def test_it_installs_this_version(cluster: dict[str, Any]) -> None:
    versions = set(re.findall(r"rayzyme-([\d.]+)-py3", str(cluster)))
    assert versions == {rayzyme.__version__}
