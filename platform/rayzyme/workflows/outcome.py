"""How one attempt of a task ended, as plain data that crosses from its process to the runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayzyme.jobs.states import JobState
from rayzyme.workflows.outputs import StoredValue


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """Nothing of it counts before the runner has committed it.

    Attributes:
        state: completed, failed or cancelled.
        output: What it gave.
        shared_writes: What it wrote to the shared state, by key.
        plan_change: What it asks to become of the workflow, as `rayzyme.workflows.specs.change_document` writes it.
        error_class: Name of the error's class.
        error: Its message.
        error_traceback: Where it was raised.
        metrics: Figures, as JSON.
        metadata: What else is worth knowing, as JSON.
        manifest: The files that it wrote: `{path, source, size, sha256}`, published from `source` to `path` after the commit.
        started_at: When it began, seconds since 1970.
        computed_at: When it was done.
        is_final: Trying again is of no use.
    """

    state: JobState
    output: StoredValue | None = None
    shared_writes: Mapping[str, StoredValue] = field(default_factory=dict)
    plan_change: Mapping[str, Any] | None = None
    error_class: str | None = None
    error: str | None = None
    error_traceback: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    manifest: Sequence[Mapping[str, Any]] = ()
    started_at: float = 0.0
    computed_at: float = 0.0
    is_final: bool = False

    @classmethod
    def failed(cls, error_class: str, error: str, **more: Any) -> TaskOutcome:
        """An attempt that failed."""
        return cls(JobState.FAILED, error_class=error_class, error=error, **more)

    @classmethod
    def cancelled(cls, reason: str, **more: Any) -> TaskOutcome:
        """An attempt that was stopped from outside."""
        return cls(JobState.CANCELLED, error=reason, **more)
