"""What the store tells of jobs, tasks, attempts and events, for people and programs that look back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rayzyme.jobs.job import Job
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.vocabularies import JOB, state_detail, task_status


def time_text(moment: datetime | None) -> str | None:
    """A time as everybody prints it: `YYYY-MM-DDTHH:MM:SS.mmmZ`, UTC."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job with what people want to know of it.

    Attributes:
        job: As the scheduler sees it.
        metadata: The user's own.
        parameters: Of an operation or command.
        result: What is known of its outcome.
        progress: Percent, where something tells it.
        error_class: Name of the class of what went wrong.
        error_message: In words.
        fault: Whose: `site` or `job`.
        created_at: When it was accepted.
        started_at: When its first attempt began; what later ones had still to do is less than the job.
        completed_at: When it came to its end.
        read_at: When this was read; times of what goes on count up to here.
        retry_of: The job that it repeats.
        is_durable: Whether it can be run without the program that submitted it.
    """

    job: Job
    created_at: datetime
    read_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    progress: float | None = None
    error_class: str | None = None
    error_message: str | None = None
    fault: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    retry_of: str | None = None
    is_durable: bool = True

    @property
    def state_detail(self) -> str | None:
        """What more there is to say of its state."""
        return state_detail(self.job.state)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: times are UTC, the three durations in seconds up to now where they go on; None where they never began."""
        # Cancelled while it waited: no attempt ran.
        started = self.started_at
        end = self.completed_at or (None if self.job.state in FINAL else self.read_at)
        return {
            "job_id": self.job.job_id,
            "name": self.job.name,
            "priority": int(self.job.priority),
            "status": JOB.words[self.job.state].value,
            "created_at": time_text(self.created_at),
            "started_at": time_text(started),
            "completed_at": time_text(self.completed_at),
            "wait_time": _seconds(self.created_at, started or end),
            "execution_time": _seconds(started, end),
            "total_time": _seconds(self.created_at, end),
            "metadata": dict(self.metadata),
            "owner": self.job.owner,
        }


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task of a job, as last committed.

    Attributes:
        name: Its name in the workflow.
        state: Its state.
        attempt: Number of its newest attempt.
        site_faults: How often it lost its process.
        not_before: Earliest time of its next attempt, in seconds since 1970.
        output: What it gave, as stored.
        shared_writes: What it wrote to the shared state, as stored.
        plan_change: What it made of the plan.
        manifest: The files that it wrote.
        published: Whether they are in place.
        error_class: Name of the class of what went wrong.
        error_message: In words.
        error_traceback: Where.
        metrics: Figures, by name.
        metadata: What else is worth knowing.
        durable: Whether it can be run without the program that submitted it.
        started_at: When its newest attempt began.
        computed_at: When that was done.
        committed_at: When that was written down.
    """

    name: str
    state: JobState
    attempt: int
    site_faults: int = 0
    not_before: float | None = None
    output: Mapping[str, Any] | None = None
    shared_writes: Mapping[str, Any] | None = None
    plan_change: Mapping[str, Any] | None = None
    manifest: list[Mapping[str, Any]] | None = None
    published: bool = False
    error_class: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    metrics: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    durable: bool = True
    started_at: datetime | None = None
    computed_at: datetime | None = None
    committed_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without what it gave."""
        return {
            "name": self.name,
            "status": task_status(self.state, self.attempt + 1 if self.attempt else 1).value,
            "attempt": self.attempt,
            "error": self.error_message,
            "error_class": self.error_class,
            "site_faults": self.site_faults,
            "not_before": None if self.not_before is None else time_text(datetime.fromtimestamp(self.not_before, UTC)),
            "started_at": time_text(self.started_at),
            "completed_at": time_text(self.committed_at) if self.state in FINAL else None,
            "metrics": dict(self.metrics or {}),
            "metadata": dict(self.metadata or {}),
            "durable": self.durable,
        }


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One try at a job or at one of its tasks, with the time of each hop.

    Attributes:
        task: Name of the task; empty for the job's own.
        number: Its number, growing for the job or task.
        job_attempt: Number of the job's attempt that it belongs to.
        state: How far it came.
        runner: Who carried it out.
        node: On which machine.
        lease_token: Newest lease that it was begun with.
        error_class: Name of the class of what went wrong.
        queued_at: When it could have begun.
        leased_at: When it was given what it needs.
        started_at: When it began.
        computed_at: When it was done.
        committed_at: When that was written down.
    """

    task: str
    number: int
    job_attempt: int
    state: JobState
    runner: str = ""
    node: str = ""
    lease_token: int | None = None
    error_class: str | None = None
    queued_at: datetime | None = None
    leased_at: datetime | None = None
    started_at: datetime | None = None
    computed_at: datetime | None = None
    committed_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the job's own attempts have no task."""
        times = ("queued_at", "leased_at", "started_at", "computed_at", "committed_at")
        return {
            "task": self.task or None,
            "number": self.number,
            "job_attempt": self.job_attempt,
            "status": task_status(self.state, 1).value,
            "runner": self.runner,
            "node": self.node,
            "error_class": self.error_class,
            **{name: time_text(getattr(self, name)) for name in times},
        }


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One line of a job's story.

    Attributes:
        id: Grows along the story.
        seq: Number within the story, from 1.
        at: When.
        actor: User or process that did it.
        from_state: State before, where the line tells of a move.
        to_state: State after.
        reason: Why, in words.
        data: Anything more; `tasks` lists `{name, state, attempt}` of the tasks that changed.
    """

    id: int
    seq: int
    at: datetime
    actor: str
    from_state: JobState | None
    to_state: JobState | None
    reason: str
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "seq": self.seq,
            "at": time_text(self.at),
            "actor": self.actor,
            "from_state": self.from_state and self.from_state.value,
            "to_state": self.to_state and self.to_state.value,
            "reason": self.reason,
            "data": dict(self.data),
        }

    def to_text(self) -> str:
        """As one line for people."""
        move = f" {self.from_state or 'new'} -> {self.to_state}" if self.to_state is not None else ""
        tasks = ", ".join(f"{task['name']} {task['state']}" for task in self.data.get("tasks", ()))
        return f"{time_text(self.at)}{move}: {self.reason}{f' ({tasks})' if tasks else ''} by {self.actor}"


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None or end is None else max(0.0, (end - begin).total_seconds())
