"""How far a job is, told by its tasks one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

from rayzyme.jobs.store import JobStore
from rayzyme_actors.job_progress import JobProgress


def test_a_job_whose_first_tasks_were_short_is_not_done_before_its_last(home: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("rayzyme_actors.job_progress._PUBLISHED_AFTER_S", 0.0)
    told: list[float] = []

    async def story() -> None:
        store = JobStore()
        progress = JobProgress("job_1", 1, store)
        progress.begin(["fetch", "load", "screen", "report"], {"fetch"})
        progress.told("load", 100, "")
        progress.told("screen", 20, "256 of 5000")
        progress.began()
        await asyncio.sleep(0.01)
        assert progress._tracker is not None
        told.append(progress._tracker.get_progress()["percent"])
        progress.told("screen", 60, "512 of 5000")
        told.append(progress._tracker.get_progress()["percent"])
        progress.close()

    asyncio.run(story())
    assert told == [55.0, 65.0]
