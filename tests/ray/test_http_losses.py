"""The endpoint while what it stands on is killed: an answer is right or asks to be asked again, and service comes back."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from tests.ray.dispatching import until
from tests.support.http_load import Load

from rayzyme_serve.app import APPLICATION

_ASK_AGAIN = {429, 503}


@pytest.mark.parametrize(
    "part", ["shard:", "model-host:", f"SERVE_REPLICA::{APPLICATION}#online", "SERVE_CONTROLLER", "scheduler:"]
)
def test_what_is_killed_under_load_gives_no_wrong_answer_and_comes_back(endpoint: str, part: str) -> None:
    with Load(f"{endpoint}/v1/screen") as load:
        load.wait_for(10, status=200)
        pids = _kill(part)
        until(lambda: pids.isdisjoint(_processes(part)) and _processes(part), seconds=60)
        load.wait_for(30, status=200)
    assert load.statuses <= {200, *_ASK_AGAIN}, [
        answer for answer in load.answers if answer[0] not in (200, *_ASK_AGAIN)
    ]
    right = next(hits for status, hits in load.answers if status == 200)
    assert all(hits == right for status, hits in load.answers if status == 200)


def _kill(part: str) -> set[int]:
    """SIGKILL the processes of actors whose names begin so."""
    pids = _processes(part)
    assert pids, f"there is no {part}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def _processes(part: str) -> set[int]:
    from ray._private.state import actors

    live: list[dict[str, Any]] = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    return {actor["Pid"] for actor in live if actor["Name"].startswith(part)}
