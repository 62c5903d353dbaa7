"""The HTTP endpoint on a real Ray Serve."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from tests.ray.dispatching import until
from tests.support.http_load import PEROXIDE, Load

from rayzyme.settings import load_settings, use_settings
from rayzyme_actors.screening import Screener, screen
from rayzyme_serve.app import APPLICATION, build


@pytest.fixture(scope="module")
def client(endpoint: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint, timeout=120) as opened:
        yield opened


def test_it_answers_as_python_does(client: httpx.Client) -> None:
    answer = client.post("/v1/screen", json={"reactions": [PEROXIDE], "top_k": 5, "filters": {"ec": "1.11"}})
    assert answer.status_code == 200, answer.text
    expected = screen([PEROXIDE], 5, filters={"ec": "1.11"})
    assert answer.json()["results"] == expected["results"]
    assert answer.json()["schema"] == "rayzyme.screen/1"
    assert answer.json()["timing"].keys() == {"total_s", "queue_s", "encode_s", "search_s"}
    assert [part.split(";")[0] for part in answer.headers["Server-Timing"].split(", ")] == [
        "total", "queue", "encode", "search",
    ]  # fmt: skip


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
        ({"reactions": ["C" * 500 + ">>" + "C" * 500]}, 422, "500 atoms on one side"),
        ({"reactions": [PEROXIDE] * 200, "top_k": 1_000}, 422, "200000 hits"),
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
    assert message in answer.json()["detail"]
    assert answer.json().keys() == {"detail", "code"}


def test_half_of_a_character_goes_no_further_than_the_door(client: httpx.Client) -> None:
    body = b'{"reactions": ["OO.OO>>O=O.O.O"], "filters": {"ec": "\\ud800"}}'
    answer = client.post("/v1/screen", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "half of a character" in answer.json()["detail"]


def test_whoever_would_wait_for_too_long_is_told_to_come_again(endpoint: str) -> None:
    """P56"""
    settings = load_settings(overrides={"serve": {"max_running": 1, "max_queued": 1}})
    use_settings(settings)
    serve.run(build(), name="narrow", route_prefix="/narrow")
    try:
        answers = asyncio.run(_all_at_once(f"{endpoint}/narrow/v1/screen", 40))
    finally:
        serve.delete("narrow")
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert {answer.json()["code"] for answer in refused} == {"TooManyRequests"}
    assert len(answers) - len(refused) >= 2


def test_callers_who_ask_at_once_are_searched_for_together(endpoint: str) -> None:
    answers = asyncio.run(_all_at_once(f"{endpoint}/v1/screen", 40))
    assert all(answer.json()["results"] == answers[0].json()["results"] for answer in answers)
    shards = [shard for screener in [Screener()] for shard in screener.shards]
    assert max(shard.wait_until_ready()["most_together"] for shard in shards) > 1


def test_a_new_version_takes_over_without_losing_a_request(endpoint: str) -> None:
    before = _replicas()
    use_settings(load_settings(overrides={"serve": {"embeddings_kept": 5_000}}))
    with Load(f"{endpoint}/v1/screen") as load:
        load.wait_for(20)
        serve.run(build(), name=APPLICATION)
        until(lambda: not before & _replicas(), seconds=60)
        load.wait_for(20)
    assert load.statuses == {200}


def _replicas() -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if f"{APPLICATION}#online" in actor["name"]}


async def _all_at_once(url: str, count: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=120) as client:
        body = {"reactions": [PEROXIDE], "top_k": 3}
        await client.post(url, json=body)
        return await asyncio.gather(*(client.post(url, json=body) for _ in range(count)))


@pytest.mark.parametrize("number", [0, 1])
def test_the_programs_of_the_guide_run(endpoint: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "online.md").read_text()
    program = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[number]
    exec(program.replace("http://127.0.0.1:8000", endpoint), {})
    printed = capsys.readouterr().out
    assert ("search_s" if number == 0 else "reaction_id,reaction,rank,protein_id,score,ec") in printed.replace('"', "")
