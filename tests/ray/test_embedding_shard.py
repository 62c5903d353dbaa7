"""Shards: exact for any number of them, two lanes, back after a kill, refusing what does not fit."""

from __future__ import annotations

import datetime
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from numpy.typing import NDArray

from rayzyme.errors import DeviceUnavailable, InsufficientSpace, InvalidInput, WorkerLost
from rayzyme.screening import CheckpointRef, ExactIndex, ScreeningSet
from rayzyme.screening.answer import merge_hits
from rayzyme_actors.embedding_shard import EmbeddingShard
from rayzyme_actors.long_lived import LongLivedActor

N, D = 3_000, 64


def unit_rows(n: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = unit_rows(N, 0)
    rows[1_500:] = rows[:1_500]  # every protein has a twin in the other half: ties across shards
    ids = [f"P{number:04d}" for number in np.random.default_rng(1).permutation(N)]
    # Columns that a careless merge would take for its own, and values that JSON does not know.
    metadata = {
        "ec": [f"1.1.1.{number % 7}" for number in range(N)], "length": list(range(N)), "score": ["mine"] * N,
        "query": [b"mine"] * N, "seen": [datetime.date(2026, 11, 23)] * N, "plddt": [float("nan")] * N,
    }  # fmt: skip
    made = ScreeningSet.from_arrays(ids, rows, metadata, CheckpointRef("toy", "ab" * 32))
    return made.save(tmp_path_factory.mktemp("sets") / "toy.arrow")


@pytest.fixture(scope="module")
def whole(toy_set: Path) -> LongLivedActor:
    """One shard with the whole set, for the tests that only ask."""
    return start([], toy_set, (0, N))


@pytest.fixture
def started() -> Iterator[list[LongLivedActor]]:
    actors: list[LongLivedActor] = []
    yield actors
    for actor in actors:
        with suppress(ValueError):  # some are gone by then
            ray.kill(ray.get_actor(actor.name, "rayzyme"))


def start(actors: list[LongLivedActor], path: Path, bounds: tuple[int, int], **arguments: Any) -> LongLivedActor:
    given = {"device": "cpu", "threads": 1, "reserve_ratio": 0.2} | arguments
    actor = LongLivedActor(
        f"test-shard-{uuid.uuid4()}",
        EmbeddingShard,
        (str(path), ScreeningSet.open(path).digest, *bounds, *given.values()),
        {"num_cpus": 0.1},
        "rayzyme",
    )
    actors.append(actor)
    actor.start()
    return actor


def expected(path: Path, queries: NDArray[np.float32], k: int, rows: Any = None) -> list[list[tuple[str, float]]]:
    opened = ScreeningSet.open(path)
    scores, found = ExactIndex(opened.embeddings, opened.protein_ids).search(queries, k, rows)
    ids = opened.protein_ids
    return [
        [(ids[row], float(score)) for row, score in zip(*pair, strict=True)] for pair in zip(found, scores, strict=True)
    ]


def ranking(parts: list[pa.Table], queries: int, k: int) -> list[list[tuple[str, float]]]:
    return [[(hit["protein_id"], hit["score"]) for hit in hits] for hits in merge_hits(parts, queries, k)]


@pytest.mark.parametrize("shards", [1, 3])
def test_any_number_of_shards_gives_the_same_ranking_in_both_lanes(
    toy_set: Path, started: list[LongLivedActor], shards: int
) -> None:
    bounds = [N * number // shards for number in range(shards + 1)]
    actors = [start(started, toy_set, (bounds[number], bounds[number + 1])) for number in range(shards)]
    queries = unit_rows(6, 5)
    for lane in ("online", "batch"):
        parts = [call.result() for call in [actor.submit("search", queries, 40, None, lane) for actor in actors]]
        assert ranking(parts, 6, 40) == expected(toy_set, queries, 40)


def test_metadata_of_any_name_and_kind_comes_through_as_json(toy_set: Path, whole: LongLivedActor) -> None:
    hits = merge_hits([whole.submit("search", unit_rows(1, 5), 2).result()], 1, 2)[0]
    own = hits[0]["metadata"]
    assert (own["score"], own["query"], own["seen"], own["plddt"]) == ("mine", b"mine".hex(), "2026-11-23", None)
    json.dumps(hits, allow_nan=False)


def test_a_caller_who_hangs_up_takes_nobody_with_him(toy_set: Path, whole: LongLivedActor) -> None:
    calls = [whole.submit("search", unit_rows(8, seed), 5) for seed in range(30)]
    for call in calls[::2]:
        ray.cancel(call.reference)
    for seed, call in list(enumerate(calls))[1::2]:
        assert ranking([call.result()], 8, 5) == expected(toy_set, unit_rows(8, seed), 5)


def test_a_set_rewritten_under_its_path_is_refused_not_served(tmp_path: Path, started: list[LongLivedActor]) -> None:
    def write(seed: int) -> ScreeningSet:
        made = ScreeningSet.from_arrays(
            [f"P{i}" for i in range(9)], unit_rows(9, seed), None, CheckpointRef("toy", "ab" * 32)
        )
        made.save(tmp_path / "s.arrow")
        return made

    first = write(1)
    write(2)
    actor = LongLivedActor(
        f"test-shard-{uuid.uuid4()}", EmbeddingShard, (str(tmp_path / "s.arrow"), first.digest, 0, 9, "cpu", 1, 0.2),
        {"num_cpus": 0.1}, "rayzyme",
    )  # fmt: skip
    started.append(actor)
    actor.start()
    with pytest.raises(InvalidInput, match="is not the screening set that this shard was started for any more"):
        actor.wait_until_ready()


def test_a_filter_narrows_the_search_and_its_fault_reaches_the_caller(
    toy_set: Path, started: list[LongLivedActor]
) -> None:
    actor = start(started, toy_set, (0, N))
    queries = unit_rows(2, 6)
    found = actor.submit("search", queries, 10, {"ec": "1.1.1.3", "length": {"<": 1000}}).result()
    rows = np.array([row for row in range(1000) if row % 7 == 3])
    assert ranking([found], 2, 10) == expected(toy_set, queries, 10, rows)
    with pytest.raises(InvalidInput, match="names column 'organ', which the screening set lacks"):
        actor.submit("search", queries, 10, {"organ": "x"}).result()


def test_online_requests_that_wait_together_get_their_own_answers(toy_set: Path, whole: LongLivedActor) -> None:
    actor = whole
    queries = unit_rows(60, 7)
    calls = [actor.submit("search", queries[i : i + 1], 1 + i % 9, {"ec": f"1.1.1.{i % 3}"}) for i in range(60)]
    for i, call in enumerate(calls):
        rows = np.array([row for row in range(N) if row % 7 == i % 3])
        assert ranking([call.result()], 1, 1 + i % 9) == expected(toy_set, queries[i : i + 1], 1 + i % 9, rows)


def test_an_online_request_overtakes_batch_work(toy_set: Path, whole: LongLivedActor) -> None:
    actor = whole
    actor.wait_until_ready()
    batch = [actor.submit("search", unit_rows(256, seed), 500, None, "batch").reference for seed in range(40)]
    online = actor.submit("search", unit_rows(1, 99), 5, None, "online").reference
    done, _ = ray.wait([*batch, online], num_returns=len(batch) // 2)
    assert online in done or ray.wait([online], timeout=0)[0], "the online request waited behind the batch queue"
    assert len(ray.wait(batch, num_returns=len(batch), timeout=0)[0]) < len(batch), (
        "the batch was over too soon to tell"
    )
    ray.get(batch)


def test_a_killed_shard_comes_back_and_answers_the_request_in_flight(
    toy_set: Path, started: list[LongLivedActor]
) -> None:
    actor = start(started, toy_set, (0, N))
    first = actor.wait_until_ready()["pid"]
    queries = unit_rows(200, 8)
    calls = [actor.submit("search", queries, 50, None, "batch") for _ in range(5)]
    os.kill(first, signal.SIGKILL)
    for call in calls:
        assert ranking([call.result()], 200, 50) == expected(toy_set, queries, 50)
    assert actor.wait_until_ready()["pid"] != first


def test_a_shard_that_was_removed_is_started_anew(toy_set: Path, started: list[LongLivedActor]) -> None:
    actor = start(started, toy_set, (0, N))
    actor.wait_until_ready()
    ray.kill(ray.get_actor(actor.name, "rayzyme"), no_restart=True)
    queries = unit_rows(1, 9)
    assert ranking([actor.submit("search", queries, 3).result()], 1, 3) == expected(toy_set, queries, 3)


def test_an_actor_lost_twice_is_named(started: list[LongLivedActor]) -> None:
    class DiesWhenAsked:
        async def describe(self) -> dict[str, Any]:
            return {"pid": os.getpid()}

        async def work(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    actor = LongLivedActor(f"fragile-{uuid.uuid4()}", DiesWhenAsked, (), {"num_cpus": 0.1}, "rayzyme")
    started.append(actor)
    actor.start()
    with pytest.raises(WorkerLost, match=rf"actor {actor.name} was lost twice during work"):
        actor.submit("work").result()


def test_an_actor_that_cannot_be_made_says_why_at_once(started: list[LongLivedActor]) -> None:
    class Unmakeable:
        def __init__(self) -> None:
            raise RuntimeError("no such library")

        async def describe(self) -> dict[str, Any]:
            return {}

    actor = LongLivedActor(f"unmakeable-{uuid.uuid4()}", Unmakeable, (), {"num_cpus": 0.1}, "rayzyme")
    actor.start()
    with pytest.raises(WorkerLost, match="could not be made: RuntimeError: no such library"):
        actor.wait_until_ready()


def test_a_shard_that_does_not_fit_refuses_with_the_figures(toy_set: Path, started: list[LongLivedActor]) -> None:
    actor = start(started, toy_set, (0, N), reserve_ratio=1.0)
    with pytest.raises(
        InsufficientSpace, match=r"rows 0 to 3000 of toy\.arrow need 1 MB; this node has 0 MB to give .*100% kept"
    ):
        actor.wait_until_ready()
    with pytest.raises(InsufficientSpace):
        actor.submit("search", unit_rows(1, 0), 1).result()


def test_cuda_without_a_gpu_is_an_error_not_a_fallback(toy_set: Path, started: list[LongLivedActor]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailable, match="cuda"):
        start(started, toy_set, (0, N), device="cuda").wait_until_ready()


def test_an_actor_that_finds_no_place_says_what_it_asked_for(toy_set: Path, started: list[LongLivedActor]) -> None:
    actor = LongLivedActor(
        f"test-shard-{uuid.uuid4()}",
        EmbeddingShard,
        (str(toy_set), "any", 0, N, "cpu", 1, 0.2),
        {"num_cpus": 50},
        "rayzyme",
    )
    started.append(actor)
    actor.start()
    with pytest.raises(
        WorkerLost, match=r"not ready within 1 s; it asks for {'num_cpus': 50}, the cluster has .* of 4 CPUs"
    ):
        actor.wait_until_ready(1)


def test_counts_over_shards_give_ranks_in_the_whole_set(toy_set: Path, started: list[LongLivedActor]) -> None:
    actors = [start(started, toy_set, (0, 1_000)), start(started, toy_set, (1_000, N))]
    query = unit_rows(1, 3)
    full = [protein_id for protein_id, _ in expected(toy_set, query, N)[0]]
    wanted = [full[0], full[1], full[777], full[-1], "absent"]
    scores: dict[str, float] = {}
    for actor in actors:
        scores |= actor.submit("scores_of", query, [wanted]).result()[0]
    assert set(scores) == set(wanted) - {"absent"}
    own = [np.array(list(scores.values()), np.float32)]
    before = sum(actor.submit("count_better", query, own, [list(scores)]).result()[0] for actor in actors)
    assert dict(zip(scores, before + 1, strict=True)) == {full[0]: 1, full[1]: 2, full[777]: 778, full[-1]: N}


def test_the_standard_library_platform_is_found_in_a_worker() -> None:
    @ray.remote(num_cpus=0.1)
    def system() -> str:
        import platform

        return platform.system()

    assert ray.get(system.remote())
