"""Screening for many callers from one event loop: as Python does it, remembered, and without work for those who have left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayzyme.errors import InvalidInput, InvalidReaction, NotFound, WorkerLost
from rayzyme.monitoring.logs import log_fields
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.settings import get_settings, load_settings
from rayzyme_actors.embedding_shard import EmbeddingShard
from rayzyme_actors.online import OnlineScreening
from rayzyme_actors.screening import screen

PEROXIDE, ACETATE = "OO.OO>>O=O.O.O", "CC(=O)OCC.O>>CC(=O)O.CCO"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of actors that were called."""
    methods: list[str] = []
    call = OnlineScreening._call

    async def noting(self: OnlineScreening, actor: Any, method: str, *arguments: Any) -> Any:
        methods.append(method)
        return await call(self, actor, method, *arguments)

    monkeypatch.setattr(OnlineScreening, "_call", noting)
    return methods


def test_the_answer_is_that_of_the_command_line() -> None:
    answer = asyncio.run(
        OnlineScreening(get_settings()).screen([PEROXIDE, ACETATE], top_k=7, filters={"ec": ["1", "3"]})
    )
    expected = screen([PEROXIDE, ACETATE], 7, filters={"ec": ["1", "3"]})
    assert {**answer, "timing": None} == {**expected, "timing": None}
    assert sum(answer["timing"][part] for part in ("queue_s", "encode_s", "search_s")) <= answer["timing"]["total_s"]


def test_a_reaction_that_was_seen_before_is_not_encoded_again(asked: list[str]) -> None:
    async def story() -> None:
        online = OnlineScreening(load_settings(overrides={"serve": {"embeddings_kept": 1}}))
        first = await online.screen([PEROXIDE], top_k=3)
        again = await online.screen([PEROXIDE], top_k=3)
        assert first["results"] == again["results"]
        await online.screen([ACETATE], top_k=3)
        await online.screen([PEROXIDE], top_k=3)

    asyncio.run(story())
    assert asked.count("encode_reactions") == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reactions": [PEROXIDE, "CCX>>C"]}, InvalidReaction, "reaction 2"),
        ({"reactions": []}, InvalidInput, "no reactions"),
        ({"reactions": [PEROXIDE], "screening_set": "/etc/passwd"}, NotFound, "unknown screening set"),
        ({"reactions": [PEROXIDE], "checkpoint": "nothing"}, NotFound, "unknown checkpoint 'nothing'"),
        ({"reactions": [PEROXIDE], "filters": {"organ": "x"}}, InvalidInput, "column 'organ'"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asyncio.run(OnlineScreening(get_settings()).screen(**{"top_k": 3, **arguments}))


def test_an_actor_that_dies_is_asked_again_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        online = OnlineScreening(get_settings())
        expected = await online.screen([PEROXIDE], top_k=3)
        screener = await online._screener("baseline", "reference")
        shard = screener.shards[0]
        pid = (await asyncio.to_thread(shard.wait_until_ready))["pid"]
        # Its calls arrive and are lost with it.
        os.kill(pid, signal.SIGSTOP)
        asking = [asyncio.create_task(online.screen([PEROXIDE], top_k=3)) for _ in range(5)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        assert all(answer["results"] == expected["results"] for answer in await asyncio.gather(*asking))

    asyncio.run(story())


def test_one_that_dies_twice_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        online = OnlineScreening(get_settings())
        await online.screen([PEROXIDE], top_k=3)

        async def not_mended(_: Any) -> None:
            """The actor is dead still."""

        monkeypatch.setattr(online, "_mend", not_mended)
        shard = (await online._screener("baseline", "reference")).shards[0]
        ray.kill(shard._handle, no_restart=True)
        with pytest.raises(WorkerLost, match="lost twice during search"):
            await online.screen([PEROXIDE], top_k=3)

    asyncio.run(story())


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[EmbeddingShard]:
    """A shard in this process."""
    rows = np.eye(16, dtype=np.float32)
    made = ScreeningSet.from_arrays([f"P{n:02d}" for n in range(16)], rows, None, CheckpointRef("toy", "ab" * 32))
    path = made.save(tmp_path / "toy.arrow")
    return EmbeddingShard(str(path), made.digest, 0, 16, "cpu", 1, 0.0)


def test_nobody_is_searched_for_who_has_hung_up(shard: EmbeddingShard) -> None:
    query = np.eye(16, dtype=np.float32)[:1]

    async def story() -> None:
        await shard.search(query, 3)
        before = (await shard.describe())["dropped"]
        gate = threading.Event()

        def busy() -> Any:
            gate.wait(30)
            yield

        shard._executor.submit(busy, "online")
        asking = [asyncio.create_task(shard.search(query, 3)) for _ in range(3)]
        while len(shard._pending) < 3:
            await asyncio.sleep(0.001)
        asking[0].cancel()
        asking[2].cancel()
        await asyncio.sleep(0)
        gate.set()
        assert (await asking[1]).num_rows == 3
        assert (await shard.describe())["dropped"] == before + 2

    asyncio.run(story())


def test_the_lines_of_a_shard_tell_whose_request_it_is(shard: EmbeddingShard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rayzyme_actors")
    seen = []
    caplog.handler.addFilter(lambda record: seen.append((record.getMessage(), log_fields())) or True)
    asyncio.run(shard.search(np.eye(16, dtype=np.float32)[:1], 3, log_fields={"request_id": "r1"}))
    assert ("1 queries for 3 hits, online", {"request_id": "r1"}) in seen


def test_another_way_to_write_a_reaction_is_not_encoded_again(asked: list[str]) -> None:
    async def story() -> None:
        online = OnlineScreening(get_settings())
        first = await online.screen(["CC(=O)OCC.O>>CC(=O)O.CCO"], top_k=3)
        other = await online.screen(["O.C(C)OC(C)=O>>OCC.OC(C)=O"], top_k=3)
        assert first["results"][0]["hits"] == other["results"][0]["hits"]
        assert other["results"][0]["reaction"] == "O.C(C)OC(C)=O>>OCC.OC(C)=O"

    asyncio.run(story())
    assert asked.count("encode_reactions") == 1


def test_actors_that_could_not_be_had_once_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise InvalidInput("not now")

    async def story() -> None:
        online = OnlineScreening(get_settings())
        with monkeypatch.context() as once:
            once.setattr("rayzyme_actors.online.Screener", fails)
            with pytest.raises(InvalidInput, match="not now"):
                await online.screen([PEROXIDE], top_k=3)
        assert (await online.screen([PEROXIDE], top_k=3))["results"]

    asyncio.run(story())


def test_a_set_that_is_damaged_hides_no_other(home: Path) -> None:
    (home / "screening_sets").mkdir(parents=True)
    (home / "screening_sets" / "torn.arrow").write_bytes(b"torn")
    listed = {told["name"]: told for told in OnlineScreening(get_settings()).screening_sets()}
    assert "checkpoint" in listed["reference"]
    assert "cannot be opened" in listed["torn"]["damaged"]


def test_filters_that_python_takes_for_equal_are_not_searched_for_together(tmp_path: Path) -> None:
    rows = np.eye(4, dtype=np.float32)
    columns = {"batch": ["1", "1.0", "true", "x"]}
    made = ScreeningSet.from_arrays([f"P{n}" for n in range(4)], rows, columns, CheckpointRef("toy", "ab" * 32))
    shard = EmbeddingShard(str(made.save(tmp_path / "toy.arrow")), made.digest, 0, 4, "cpu", 1, 0.0)

    async def story() -> list[list[str]]:
        await shard.search(rows[:1], 1)
        asking = [shard.search(rows[:1], 4, {"batch": value}) for value in (1, 1.0, True)]
        return [hits["protein_id"].to_pylist() for hits in await asyncio.gather(*asking)]

    assert asyncio.run(story()) == [["P0"], ["P1"], ["P2"]]
