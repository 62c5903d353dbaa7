"""A job at a glance: where it stands and how far it is, as somebody sees it who looks again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rayzyme.jobs.states import JobState
from rayzyme.jobs.vocabularies import JOB

_FIGURES = ("percent", "eta", "eta_low", "eta_high", "stalled", "message")


@dataclass(frozen=True, slots=True)
class JobLook:
    """A job at one moment.

    Attributes:
        job_id: Which one.
        state: Its state.
        version: Grows with every line of its story.
        error: What went wrong.
        percent: How far it is; None where nothing tells it, as of a job that waits.
        eta: Seconds until its end, as far as that can be told.
        eta_low: The true figure lies four times in five between this and `eta_high`.
        eta_high: See there.
        stalled: Whether it runs and no news come.
        message: What it is doing.
    """

    job_id: str
    state: JobState
    version: int
    error: str | None = None
    percent: float | None = None
    eta: float | None = None
    eta_low: float | None = None
    eta_high: float | None = None
    stalled: bool = False
    message: str | None = None

    @classmethod
    def of(cls, job_id: str, state: str, version: int, error: str | None, progress: Mapping[str, Any] | None) -> Self:
        """From a job's columns, and of a running one what its tracker published."""
        if progress is None:
            percent = 100.0 if state == JobState.COMPLETED.value else None
            return cls(job_id, JobState(state), version, error, percent)
        left, low, high = (progress[name] for name in ("estimated_remaining", "eta_low", "eta_high"))
        stalled, message = progress["stalled"], progress["message"]
        return cls(job_id, JobState(state), version, error, progress["percent"], left, low, high, stalled, message)

    def figures(self) -> dict[str, Any]:
        """How far it is, as JSON."""
        return {"job_id": self.job_id, "state": JOB.words[self.state].value} | {
            name: getattr(self, name) for name in _FIGURES
        }
