"""What the ready-made tasks have in common: what they ask the workflow for, and how they tell how far they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args

from rayzyme.errors import (
    DatabaseError,
    DownloadFailed,
    InvalidInput,
    NotFound,
    RayzymeError,
    ResourceError,
    WorkerLost,
)
from rayzyme.models.checkpoints import default_registry
from rayzyme.screening import ScreeningSet
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import get_settings
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.result import ModelRef, TaskResult, TaskStatus
from rayzyme.workflows.services import Progress, ScreeningServices
from rayzyme.workflows.task import Task
from rayzyme.workflows.task_config import TaskConfig

Release = Literal["never", "on failure", "always"]
"""When a task takes the set that it used out of memory: a set made for one job is of no use to another."""

DEVICES: Final = ("auto", "cpu", "cuda")

Tell = Callable[[float, str], None]
"""Called with a percentage and a message."""

Word = TypeVar("Word", bound=str)


WORTH_A_RETRY: Final = (WorkerLost, DownloadFailed, DatabaseError, OSError)
"""What may not come again. A missing file or a bad checkpoint is there at the next attempt too."""


class ScreeningTask(Task):
    """A task that can do without a GPU, and says what went wrong in its result.

    A constructor keeps each argument as the attribute of its name, brought into a form that means the same in another process
    (paths in full, reactions as JSON); what is stored of the task is that form.
    """

    cpu_capable: ClassVar[bool] = True

    def __init__(self, config: TaskConfig) -> None:
        """Take the config; where it has the default of `retry_on_errors`, only errors of `WORTH_A_RETRY` are tried again."""
        super().__init__(config)
        if list(config.retry_on_errors) == [Exception]:
            self.config = replace(config, retry_on_errors=WORTH_A_RETRY)

    def execute(self, context: TaskContext) -> TaskResult:
        """Do the work; an error that Rayzyme knows becomes a failed result."""
        try:
            return self.run(context)
        except RayzymeError as error:
            return TaskResult(TaskStatus.FAILED, exception=error)

    @abstractmethod
    def run(self, context: TaskContext) -> TaskResult:
        """Do the work."""

    def recorded_arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, in the form that they are kept in."""
        return {name: getattr(self, name) for name in super().recorded_arguments()}


class SetTask(ScreeningTask):
    """A task that brings a screening set into the memory of actors, and may take it out again."""

    uses_actors: ClassVar[bool] = True

    def __init__(self, config: TaskConfig, release: Release) -> None:
        super().__init__(config)
        self.release: Release = checked_word("release", release, get_args(Release))
        self._set_digest: str | None = None
        self._has_completed = False

    def execute(self, context: TaskContext) -> TaskResult:
        """As `ScreeningTask.execute`."""
        result = super().execute(context)
        self._has_completed = result.success
        return result

    def uses(self, screening_set: str) -> ScreeningSet:
        """Open a set, name or file, and note that it will be in memory."""
        opened = ScreeningSetLibrary(get_settings().screening_sets).open(screening_set)
        self._set_digest = opened.digest
        return opened

    def cleanup(self, context: TaskContext) -> None:
        """Take the set out of memory, where that was asked for."""
        is_due = self.release == "always" or (self.release == "on failure" and not self._has_completed)
        if is_due and self._set_digest is not None:
            services_of(context).release(self._set_digest)


class Percentages:
    """Tells percentages that never fall and end at 100, to everybody who wants to know."""

    def __init__(self, *listeners: Tell | None) -> None:
        self._listeners = [listener for listener in listeners if listener is not None]
        self._highest = 0.0

    def tell(self, percentage: float, message: str) -> None:
        """Say how far the task is, 0 to 100."""
        self._highest = max(self._highest, min(100.0, percentage))
        for listener in self._listeners:
            listener(self._highest, message)

    def part(self, first: float, last: float, what: str) -> Progress:
        """A counter of (done, in all) that runs from one percentage to another."""

        def tick(done: int, total: int) -> None:
            share = done / total if total else 1.0
            self.tell(first + (last - first) * share, f"{done} of {total} {what}")

        return tick


def services_of(context: TaskContext) -> ScreeningServices:
    """Who holds models and sets.

    Raises:
        ResourceError: Nobody does where this task runs.
    """
    if isinstance(context.services, ScreeningServices):
        return context.services
    raise ResourceError(
        f"task {context.task_name} needs models and screening sets in memory, and nothing here holds them: submit its workflow "
        f"with rayzyme_actors.DispatcherAPI"
    )


def shared_model(context: TaskContext) -> ModelRef:
    """The model that an earlier task loaded.

    Raises:
        NotFound: None did.
    """
    model = context.shared_state.get("model")
    if isinstance(model, ModelRef):
        return model
    raise NotFound(
        f"task {context.task_name} has no model: there is no 'model' in the shared state; let it depend on a LoadCheckpointTask"
    )


def checked_word(name: str, value: Word, words: Collection[str]) -> Word:
    """One of some words.

    Raises:
        InvalidInput: It is none; names those that there are.
    """
    if value not in words:
        raise InvalidInput(f"{name} {value!r} is unknown; use {' or '.join(words)}")
    return value


def full_path(path: str | Path) -> str:
    """A path that means the same in every process."""
    return str(Path(path).expanduser().absolute())


def full_path_unless_name(given: str | Path, names: Collection[str]) -> str:
    """What names something: one of `names` as it is, a path in full."""
    text = str(given)
    is_path = isinstance(given, Path) or "/" in text or text.startswith("~") or Path(text).exists()
    return full_path(text) if is_path and text not in names else text


def checkpoint_address(checkpoint: str | Path) -> str:
    """A checkpoint by its name, or by its path in full."""
    return full_path_unless_name(checkpoint, default_registry().names())


def set_address(screening_set: str | Path) -> str:
    """A screening set by its name, or by its path in full."""
    return full_path_unless_name(screening_set, ScreeningSetLibrary(get_settings().screening_sets).names())
