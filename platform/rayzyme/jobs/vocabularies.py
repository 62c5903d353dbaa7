"""The words that others use for a job's state, as total tables: every state has a word and every word a state.

There is no default branch. A word that no table has raises `UnknownWord`; the adaptor that read it records `unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from rayzyme.errors import UnknownWord
from rayzyme.jobs.states import JobState


class JobStatus(StrEnum):
    """What the dispatcher calls the state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class TaskStatus(StrEnum):
    """What the dispatcher calls the state of a task."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"


class WorkflowStatus(StrEnum):
    """What the dispatcher calls the state of a workflow."""

    PENDING = "pending"
    PAUSED = "paused"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ProcessingStatus(StrEnum):
    """What data processing calls the state of a job; `unknown` is `running` with a detail, see `state_detail`."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BatchStatus(StrEnum):
    """What the batch managers call the state of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    PREEMPTED = "PREEMPTED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


class JobColumnStatus(StrEnum):
    """What stands in the column `job.status`."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class RaceStatus(StrEnum):
    """What the submission race calls the state of a submission that is a job; a cancelled one is `F` with a reason."""

    PENDING = "PD"
    RUNNING = "R"
    DONE = "D"
    FAILED = "F"
    UNKNOWN = "U"


Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Vocabulary(Generic[Word]):
    """One table, read in both directions.

    Attributes:
        name: Whose words these are.
        words: The word of each state.
        states: The state of each word. Where several states share a word, the one that the word means by itself.
    """

    name: str
    words: Mapping[JobState, Word]
    states: Mapping[Word, JobState]

    def state(self, word: str) -> JobState:
        """The state that `word` means.

        Raises:
            UnknownWord: The table does not have it; the message lists those that it has.
        """
        for known, state in self.states.items():
            if known == word:
                return state
        raise UnknownWord(f"{word!r} is no state of {self.name}; its words are {', '.join(self.states)}")


def _vocabulary(
    name: str, words: Mapping[JobState, Word], further: Mapping[Word, JobState] = MappingProxyType({})
) -> Vocabulary[Word]:
    states: dict[Word, JobState] = {}
    for state, word in words.items():
        states.setdefault(word, state)
    return Vocabulary(name, MappingProxyType(dict(words)), MappingProxyType(states | dict(further)))


# The order within a table matters where two states share a word: the first is what the word means.
JOB: Final = _vocabulary(
    "jobs",
    {
        JobState.QUEUED: JobStatus.QUEUED,
        JobState.RUNNING: JobStatus.RUNNING,
        JobState.COMPLETED: JobStatus.COMPLETED,
        JobState.FAILED: JobStatus.FAILED,
        JobState.CANCELLED: JobStatus.CANCELLED,
        JobState.UNKNOWN: JobStatus.UNKNOWN,
    },
)
TASK: Final = _vocabulary(
    "tasks",
    {
        JobState.QUEUED: TaskStatus.PENDING,
        JobState.RUNNING: TaskStatus.RUNNING,
        JobState.COMPLETED: TaskStatus.COMPLETED,
        JobState.FAILED: TaskStatus.FAILED,
        JobState.CANCELLED: TaskStatus.CANCELLED,
        JobState.UNKNOWN: TaskStatus.RUNNING,
    },
    {TaskStatus.RETRYING: JobState.QUEUED},
)
WORKFLOW: Final = _vocabulary(
    "workflows",
    {
        JobState.QUEUED: WorkflowStatus.PENDING,
        JobState.RUNNING: WorkflowStatus.RUNNING,
        JobState.COMPLETED: WorkflowStatus.COMPLETED,
        JobState.FAILED: WorkflowStatus.FAILED,
        JobState.CANCELLED: WorkflowStatus.CANCELLED,
        JobState.UNKNOWN: WorkflowStatus.RUNNING,
    },
    {WorkflowStatus.PAUSED: JobState.QUEUED},
)
PROCESSING: Final = _vocabulary(
    "data processing",
    {
        JobState.QUEUED: ProcessingStatus.PENDING,
        JobState.RUNNING: ProcessingStatus.RUNNING,
        JobState.COMPLETED: ProcessingStatus.COMPLETED,
        JobState.FAILED: ProcessingStatus.FAILED,
        JobState.CANCELLED: ProcessingStatus.CANCELLED,
        JobState.UNKNOWN: ProcessingStatus.RUNNING,
    },
)
_BATCH_FAILURES: Final = (
    BatchStatus.TIMEOUT,
    BatchStatus.DEADLINE,
    BatchStatus.OUT_OF_MEMORY,
    BatchStatus.NODE_FAIL,
    BatchStatus.BOOT_FAIL,
    BatchStatus.PREEMPTED,
)
BATCH: Final = _vocabulary(
    "the batch managers",
    {
        JobState.QUEUED: BatchStatus.PENDING,
        JobState.RUNNING: BatchStatus.RUNNING,
        JobState.COMPLETED: BatchStatus.COMPLETED,
        JobState.FAILED: BatchStatus.FAILED,
        JobState.CANCELLED: BatchStatus.CANCELLED,
        JobState.UNKNOWN: BatchStatus.UNKNOWN,
    },
    dict.fromkeys(_BATCH_FAILURES, JobState.FAILED),
)
JOB_COLUMN: Final = _vocabulary(
    "the column job.status",
    {
        JobState.QUEUED: JobColumnStatus.SUBMITTED,
        JobState.RUNNING: JobColumnStatus.RUNNING,
        JobState.COMPLETED: JobColumnStatus.COMPLETED,
        JobState.FAILED: JobColumnStatus.FAILED,
        JobState.CANCELLED: JobColumnStatus.CANCELLED,
        JobState.UNKNOWN: JobColumnStatus.UNKNOWN,
    },
)
RACE: Final = _vocabulary(
    "the submission race",
    {
        JobState.QUEUED: RaceStatus.PENDING,
        JobState.RUNNING: RaceStatus.RUNNING,
        JobState.COMPLETED: RaceStatus.DONE,
        JobState.FAILED: RaceStatus.FAILED,
        JobState.CANCELLED: RaceStatus.FAILED,
        JobState.UNKNOWN: RaceStatus.UNKNOWN,
    },
)
VOCABULARIES: Final[tuple[Vocabulary[StrEnum], ...]] = (
    JOB,
    TASK,
    WORKFLOW,
    PROCESSING,
    BATCH,
    JOB_COLUMN,
    RACE,
)  # type: ignore[assignment]  # a read-only table of words is a table of the words' base, which mypy cannot know of a Mapping

_FAILURE_BY_ERROR: Final[Mapping[str, BatchStatus]] = MappingProxyType(
    {word.value: word for word in _BATCH_FAILURES}
    | {
        "TaskTimeout": BatchStatus.TIMEOUT,
        "MemoryLimitExceeded": BatchStatus.OUT_OF_MEMORY,
        "NodeLost": BatchStatus.NODE_FAIL,
    }
)


def job_status(state: JobState) -> str:
    """What the column `job.status` says of a state: `submitted` for a queued job."""
    return JOB_COLUMN.words[state].value


def task_status(state: JobState, attempt: int) -> TaskStatus:
    """What the dispatcher calls a task's state; a queued one that was tried before (`attempt` > 1) is retrying."""
    return TaskStatus.RETRYING if state is JobState.QUEUED and attempt > 1 else TASK.words[state]


def workflow_status(state: JobState, *, is_held: bool = False) -> WorkflowStatus:
    """What the dispatcher calls a workflow's state; a queued one that its user holds is paused."""
    return WorkflowStatus.PAUSED if state is JobState.QUEUED and is_held else WORKFLOW.words[state]


def batch_status(state: JobState, error_class: str | None = None) -> BatchStatus:
    """What the batch managers call a job's state; how a failed one failed is told by its error where they have a word for it."""
    failure = _FAILURE_BY_ERROR.get(error_class or "") if state is JobState.FAILED else None
    return failure or BATCH.words[state]


def state_detail(state: JobState) -> str | None:
    """What stands beside `running` in data processing where that cannot be proven now."""
    return "unknown" if state is JobState.UNKNOWN else None


def race_reason(state: JobState) -> str | None:
    """What stands beside `F` in the submission race where the submission did not fail by itself."""
    return "cancelled" if state is JobState.CANCELLED else None
