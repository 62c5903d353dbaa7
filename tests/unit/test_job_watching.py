"""Looking at jobs again and again: pages of them, how far they are, and many watchers for one question to the database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support.job_samples import ROOM, change, finish, request, settled, start

from rayzyme.errors import DatabaseError, NotFound, UnknownJob
from rayzyme.jobs.look import JobLook
from rayzyme.jobs.states import JobState
from rayzyme.jobs.store import JobStore
from rayzyme.jobs.watching import JobWatcher
from rayzyme.monitoring import ProgressTracker
from rayzyme.workflows.result_files import result_file, results_folder
from rayzyme_serve import job_events

Result = TypeVar("Result")


def running(store: JobStore, name: str = "job") -> str:
    (job_id,) = store.submit([request(name)])
    assert store.apply([start(job_id)], capacity=ROOM)[0].accepted
    return job_id


def test_pages_follow_each_other_by_row_number_and_names_are_taken_literally(store: JobStore) -> None:
    ids = store.submit([request(name) for name in ("a_1", "ab1", "a%1", "a_2")])[::-1]
    first = store.records(limit=3)
    assert [record.job.job_id for record in first] == ids[:3]
    assert [record.job.job_id for record in store.records(before=first[-1].job.sequence)] == ids[3:]
    assert [record.job.name for record in store.records(name="a_")] == ["a_2", "a_1"]
    assert [record.job.name for record in store.records(name="a%")] == ["a%1"]


def test_a_look_tells_state_and_progress(store: JobStore) -> None:
    waits, runs, ended = store.submit([request("waits")])[0], running(store), running(store)
    with ProgressTracker() as tracker:
        tracker.start_task("t", "t", 4)
        tracker.update_task("t", 1, "counting")
        tracker.publish(runs, database=store.database)
    store.apply([finish(ended)])
    looks = store.looks([waits, runs, ended, "job_nobody"])
    assert set(looks) == {waits, runs, ended}
    assert looks[waits] == JobLook(waits, JobState.QUEUED, 1)
    assert (looks[runs].percent, looks[runs].message, looks[runs].stalled) == (25.0, "counting", True)
    assert (looks[ended].state, looks[ended].percent, looks[ended].eta) == (JobState.COMPLETED, 100.0, None)


def test_moves_are_told_from_a_line_of_the_story_on(store: JobStore) -> None:
    job_id = running(store)
    store.apply([change(job_id, None, tasks=(settled(),))])
    version = store.looks([job_id])[job_id].version
    store.apply([finish(job_id)])
    assert [move.to_state for move in store.moves(job_id, 0)] == ["queued", "running", "completed"]
    assert [(move.to_state, move.seq) for move in store.moves(job_id, version)] == [("completed", version + 1)]
    assert store.moves(job_id, version + 1) == []


def test_who_submitted_and_cancelled_stands_in_the_story(store: JobStore) -> None:
    """D12"""
    (named,), (unnamed,) = store.submit([request()], actor="anna over HTTP"), store.submit([request()])
    store.request_cancel(named, "ben over HTTP")
    assert [line.actor for line in store.events(named)] == ["anna over HTTP", "ben over HTTP"]
    assert "@" in store.events(unnamed)[0].actor


def in_time(play: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, which must come within half a minute."""
    return asyncio.run(asyncio.wait_for(play, 30))


class CountingStore:
    """Jobs that are where they are told to be; every question is counted."""

    def __init__(self, *job_ids: str) -> None:
        self.states = dict.fromkeys(job_ids, JobState.RUNNING)
        self.questions: list[list[str]] = []
        self.is_down = False

    def looks(self, job_ids: Sequence[str]) -> dict[str, JobLook]:
        self.questions.append(sorted(job_ids))
        if self.is_down:
            raise DatabaseError("down")
        return {job_id: JobLook(job_id, self.states[job_id], 1) for job_id in job_ids if job_id in self.states}


async def watch_to_the_end(watcher: JobWatcher, job_id: str, seen: list[JobState]) -> None:
    async for look in watcher.watch(job_id):
        seen.append(look.state)


def test_a_hundred_watchers_ask_one_question_at_a_time() -> None:
    store: Any = CountingStore("a", "b")

    async def play() -> None:
        watcher = JobWatcher(store, interval_s=0.01)
        seen: list[list[JobState]] = [[] for _ in range(100)]
        watching = [
            asyncio.create_task(watch_to_the_end(watcher, "ab"[number % 2], seen[number])) for number in range(100)
        ]
        while watcher.watchers < 100 or not all(len(states) > 2 for states in seen):
            await asyncio.sleep(0.001)
        before = len(store.questions)
        rounds = len(seen[0])
        while len(seen[0]) < rounds + 5:
            await asyncio.sleep(0.001)
        asked = store.questions[before:]
        assert len(asked) <= 6
        assert all(question == ["a", "b"] for question in asked)
        store.states = dict.fromkeys("ab", JobState.COMPLETED)
        await asyncio.gather(*watching)
        assert {states[-1] for states in seen} == {JobState.COMPLETED}
        assert watcher.watchers == 0
        told = len(store.questions)
        await asyncio.sleep(0.05)
        assert len(store.questions) == told

    in_time(play())


def test_one_who_leaves_does_not_take_the_look_from_the_others() -> None:
    store: Any = CountingStore("a")

    async def play() -> None:
        watcher = JobWatcher(store, interval_s=0.01)
        stays: list[JobState] = []
        leaving = asyncio.create_task(watch_to_the_end(watcher, "a", []))
        staying = asyncio.create_task(watch_to_the_end(watcher, "a", stays))
        while not stays:
            await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert watcher.watchers == 1
        store.states["a"] = JobState.FAILED
        await staying
        assert stays[-1] is JobState.FAILED

    in_time(play())


def test_a_database_that_is_away_for_a_while_ends_no_watch() -> None:
    store: Any = CountingStore("a")

    async def play() -> None:
        seen: list[JobState] = []
        watching = asyncio.create_task(watch_to_the_end(JobWatcher(store, interval_s=0.01), "a", seen))
        while not seen:
            await asyncio.sleep(0.001)
        store.is_down = True
        asked = len(store.questions)
        while len(store.questions) < asked + 3:
            await asyncio.sleep(0.001)
        store.states["a"], store.is_down = JobState.COMPLETED, False
        await watching
        assert seen[-1] is JobState.COMPLETED
        with pytest.raises(UnknownJob, match="b"):
            await watch_to_the_end(JobWatcher(store), "b", [])

    in_time(play())


def test_a_stream_that_has_nothing_to_tell_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = CountingStore("a")
    monkeypatch.setattr(job_events, "HEARTBEAT_S", 0.02)

    async def play() -> list[str]:
        told = job_events.job_events(store, JobWatcher(store, interval_s=0.01), "a", None, 60)
        parts = []
        async with aclosing(told) as stream:
            async for part in stream:
                parts.append(part)
                if part.startswith(":"):
                    return parts
        return parts

    hint, state, silence = in_time(play())
    assert (hint, silence) == ("retry: 1000\n\n", ": nothing new\n\n")
    number, event, data, *_ = state.split("\n")
    assert (number, event) == ("id: 1", "event: state")
    assert json.loads(data.removeprefix("data: "))["state"] == "running"


def test_a_key_has_one_folder_and_a_request_without_one_has_a_new_one(tmp_path: Path) -> None:
    """D13"""
    assert results_folder(tmp_path, "ada", "k") == results_folder(tmp_path, "ada", "k")
    others = {
        results_folder(tmp_path, "ada", "k"),
        results_folder(tmp_path, "bob", "k"),
        results_folder(tmp_path, "ada", "l"),
    }
    assert len(others) == 3
    assert results_folder(tmp_path, "ada", None) != results_folder(tmp_path, "ada", None)
    assert results_folder(tmp_path, "../..", "../../etc").parent == tmp_path


def test_only_files_that_were_written_under_the_folder_of_results_are_found(tmp_path: Path, store: JobStore) -> None:
    results = tmp_path / "results"
    (results / "x").mkdir(parents=True)
    for path in (results / "x" / "here.json", tmp_path / "outside.json", tmp_path / "secret"):
        path.touch()
    (results / "x" / "link.json").symlink_to(tmp_path / "secret")
    written = [results / "x" / "here.json", results / "x" / "gone.json", results / "x" / "link.json"]
    written += [tmp_path / "outside.json", results / ".." / "outside.json"]
    manifest = [{"path": str(path), "source": "", "size": 0, "sha256": ""} for path in written]
    job_id = running(store)
    store.apply([finish(job_id, tasks=(settled(manifest=manifest),))])
    tasks = store.tasks(job_id)
    assert result_file(results, tasks, ["none.json", "here.json"]) == (results / "x" / "here.json").resolve()
    for name in ("gone.json", "outside.json", "link.json", "secret"):
        with pytest.raises(NotFound, match=name):
            result_file(results, tasks, [name])
