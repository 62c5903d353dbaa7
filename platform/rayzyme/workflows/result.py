"""What a task gives back, and references to models in place of their weights."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from rayzyme.errors import NotFound
from rayzyme.jobs.vocabularies import TaskStatus
from rayzyme.workflows.plan_change import PlanChange

__all__ = ["ModelRef", "TaskResult", "TaskStatus", "as_json"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A loaded model, for tasks to share: who holds it, never its weights.

    Attributes:
        digest: SHA-256 of the checkpoint, hexadecimal.
        actor: Name of the actor that holds it.
        checkpoint: Name or path that it was loaded by.
        device: Where it computes.
        dimension: Length of its embeddings.
    """

    digest: str
    actor: str
    checkpoint: str = ""
    device: str = ""
    dimension: int = 0


@dataclass
class TaskResult:
    """How a task ended.

    Attributes:
        status: In which state.
        output: What it gave.
        metadata: What else is worth knowing.
        error: What went wrong; an exception given here is kept as `exception`.
        error_traceback: Where.
        start_time: When its last attempt began, UTC; None where it never did.
        end_time: When that ended.
        metrics: Figures, by name.
        plan_change: What is to become of the rest of the workflow.
        exception: The error itself, by whose class it is decided whether to try again.
    """

    status: TaskStatus = TaskStatus.COMPLETED
    # A factory, so that the class has no attribute of this name: a stored output is loaded when it is first asked for.
    output: Any = field(default_factory=lambda: None)
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    error_traceback: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    plan_change: PlanChange | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Take words for states, and exceptions for errors."""
        self.status = TaskStatus(self.status)
        if isinstance(self.error, BaseException):
            self.exception = self.error
        if self.exception is not None:
            self.error = str(self.exception)
            if self.error_traceback is None and self.exception.__traceback__ is not None:
                self.error_traceback = "".join(traceback.format_exception(self.exception))

    @classmethod
    def with_stored_output(cls, load: Callable[[], Any], **more: Any) -> TaskResult:
        """A result whose output is loaded when it is first asked for."""
        result = cls(**more)
        del result.output
        result.__dict__["_load_output"] = load
        return result

    def __getattr__(self, name: str) -> Any:
        if name == "output" and "_load_output" in self.__dict__:
            self.output = self.__dict__["_load_output"]()
            return self.output
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def duration(self) -> float:
        """Seconds of its last attempt; 0.0 where it never began or has not ended."""
        if self.start_time is None or self.end_time is None:
            return 0.0
        return max(0.0, (self.end_time - self.start_time).total_seconds())

    @property
    def success(self) -> bool:
        """Whether it completed."""
        return self.status is TaskStatus.COMPLETED

    def _told(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except NotFound as error:
            return f"not kept: {error}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what JSON does not know appears as its text."""
        hidden = {"exception", "plan_change"}
        document = {item.name: as_json(self._told(item.name)) for item in fields(self) if item.name not in hidden}
        return document | {"duration": self.duration, "success": self.success}


def as_json(value: Any) -> Any:
    """A value as people see it in JSON: times as text, numbers of NumPy as numbers, anything else unknown as its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if hasattr(value, "to_dict"):
        return as_json(value.to_dict())
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    return str(value)
