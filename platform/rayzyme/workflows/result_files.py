"""The files of jobs whose user cannot choose where they are written: each job has a folder of its own, and no other is opened."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from rayzyme.errors import NotFound
from rayzyme.jobs.records import TaskRecord


def results_folder(results: Path, owner: str, idempotency_key: str | None) -> Path:
    """Where a new job writes: with a key always the same place, so that the same request is known as the same.

    Args:
        results: Folder of all of them.
        owner: Whose job it is.
        idempotency_key: Of its request; None gives a place that there was never before.
    """
    if idempotency_key is None:
        return results / secrets.token_hex(12)
    return results / hashlib.sha256(f"{owner}\0{idempotency_key}".encode("utf-8", "replace")).hexdigest()[:24]


def result_file(results: Path, tasks: Sequence[TaskRecord], names: Sequence[str]) -> Path:
    """A file that tasks have written.

    Args:
        results: The folder that it must be in.
        tasks: Of one job.
        names: What it may be called; the first that there is counts.

    Raises:
        NotFound: They wrote none of that name there, or it is gone.
    """
    inside = results.resolve()
    written = {
        path.name: path
        for task in tasks
        for entry in task.manifest or ()
        if (path := Path(entry["path"]).resolve()).is_relative_to(inside)
    }
    for name in names:
        if name in written and written[name].is_file():
            return written[name]
    there = f"; it has {', '.join(sorted(written))}" if written else ""
    raise NotFound(f"the job has no {' or '.join(names)} that can be fetched{there}")
