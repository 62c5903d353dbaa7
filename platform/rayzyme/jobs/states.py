"""The states of a job and the moves between them. Every other vocabulary is a table beside this one.

A state in `FINAL` is left by nothing; `unknown` is for remote work whose state cannot be proven, and is never an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rayzyme.errors import IllegalTransition


class JobState(StrEnum):
    """Where a job, or one task of it, stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


FINAL: Final = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

MOVES: Final[Mapping[JobState, frozenset[JobState]]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
        JobState.RUNNING: FINAL | {JobState.QUEUED, JobState.UNKNOWN},
        JobState.UNKNOWN: FINAL | {JobState.QUEUED, JobState.RUNNING},
        JobState.COMPLETED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)


def check_move(state: JobState, to: JobState, story: Sequence[str]) -> None:
    """Refuse a move that is not in `MOVES`.

    Args:
        state: The present state.
        to: The state that something asks for.
        story: What happened to the job so far, one line an event, oldest first.

    Raises:
        IllegalTransition: The move is not allowed; its text is the story, then the refused move.
    """
    if to in MOVES[state]:
        return
    allowed = ", ".join(sorted(MOVES[state])) or "nothing, it is final"
    raise IllegalTransition("\n".join([*story, f"refused: {state} -> {to}; {state} leads to {allowed}"]))
