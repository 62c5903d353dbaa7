"""The HTTP endpoint on a real Ray Serve."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from rayzyme_actors.screening import screen

PEROXIDE = "OO.OO>>O=O.O.O"


@pytest.fixture(scope="module")
def client(ray_session: None) -> Iterator[httpx.Client]:
    from ray import serve

    from rayzyme_serve.app import build

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(), name="rayzyme")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as opened:
        yield opened
    serve.shutdown()


def test_it_answers_as_python_does(client: httpx.Client) -> None:
    answer = client.post("/v1/screen", json={"reactions": [PEROXIDE], "top_k": 5, "filters": {"ec": "1.11"}})
    assert answer.status_code == 200, answer.text
    expected = screen([PEROXIDE], 5, filters={"ec": "1.11"})
    assert answer.json()["results"] == expected["results"]
    assert answer.json()["schema"] == "rayzyme.screen/1"


def test_it_is_healthy_and_lists_what_it_has(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert [row["name"] for row in client.get("/v1/screening-sets").json()["screening_sets"]] == ["reference"]
    assert "baseline" in [row["name"] for row in client.get("/v1/checkpoints").json()["checkpoints"]]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"reactions": ["CCX>>CCO"]}, 400, "CCX"),
        ({"reactions": []}, 422, "reactions"),
        ({"reactions": [PEROXIDE], "top_k": 0}, 422, "top_k"),
        ({"reactions": [PEROXIDE], "topk": 5}, 422, "topk"),
        ({"reactions": [PEROXIDE], "screening_set": "nowhere"}, 404, "unknown screening set 'nowhere'"),
        ({"reactions": [PEROXIDE], "screening_set": "/etc/passwd"}, 404, "unknown screening set"),
        ({"reactions": [PEROXIDE], "checkpoint": "nothing"}, 404, "unknown checkpoint 'nothing'"),
        ({"reactions": [PEROXIDE], "filters": {"organ": "x"}}, 400, "column 'organ'"),
    ],
)
def test_mistakes_have_their_status_and_say_what_is_wrong(
    client: httpx.Client, body: dict[str, object], status: int, message: str
) -> None:
    answer = client.post("/v1/screen", json=body)
    assert answer.status_code == status
    assert message in answer.text
