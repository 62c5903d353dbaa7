"""A workflow: tasks, what depends on what, and what happens when one fails. `WorkflowBuilder` makes one step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rayzyme import checks
from rayzyme.errors import InvalidInput, ValidationError
from rayzyme.workflows.ordering import Node, levels
from rayzyme.workflows.result import TaskResult
from rayzyme.workflows.task import Task
from rayzyme.workflows.task_config import LONGEST_NAME, Document

if TYPE_CHECKING:
    from rayzyme.workflows.workflow_result import WorkflowResult

TaskCallback = Callable[[str, TaskResult], Any]
_CALLBACKS = ("on_task_complete", "on_task_failed", "on_workflow_complete")


@dataclass(frozen=True)
class WorkflowConfig:
    """How a workflow runs.

    Attributes:
        name: For people; durations are recorded by it.
        description: For people.
        max_parallel_tasks: Most tasks that run at once.
        fail_fast: With the first failed task everything else is cancelled; otherwise only what depends on it is.
        continue_on_error: Without `fail_fast`: the workflow counts as completed even where tasks failed.
        max_workflow_retries: How often a failed workflow is run again.
        retry_failed_tasks: A retry runs only what has not completed; False runs everything again.
        timeout: Seconds after which it is stopped and has failed; each attempt has them anew. None never.
        on_task_complete: Called in the program that submitted with a task's name and result.
        on_task_failed: Likewise.
        on_workflow_complete: Called there with the workflow's result, however it ended.
    """

    name: str = "workflow"
    description: str = ""
    max_parallel_tasks: int = 4
    fail_fast: bool = True
    continue_on_error: bool = False
    max_workflow_retries: int = 0
    retry_failed_tasks: bool = True
    timeout: float | None = None
    on_task_complete: TaskCallback | None = None
    on_task_failed: TaskCallback | None = None
    on_workflow_complete: Callable[[WorkflowResult], Any] | None = None

    def __post_init__(self) -> None:
        """Check everything.

        Raises:
            ValidationError: Names what cannot hold.
        """
        checks.printable_text("the name of a workflow", self.name, at_most=LONGEST_NAME)
        checks.whole_number("max_parallel_tasks", self.max_parallel_tasks, at_least=1)
        checks.whole_number("max_workflow_retries", self.max_workflow_retries, at_least=0)
        for name in ("fail_fast", "continue_on_error", "retry_failed_tasks"):
            checks.truth_value(name, getattr(self, name))
        if self.timeout is not None:
            checks.positive_number("timeout", self.timeout)
        for name in _CALLBACKS:
            callback = getattr(self, name)
            if callback is not None and not callable(callback):
                raise ValidationError(f"{name} must be a function, not {callback!r}")

    def to_document(self) -> Document:
        """As JSON, without callbacks, which stay in the program, and without what has its default."""
        kept = [item for item in fields(self) if item.name not in _CALLBACKS]
        return {item.name: value for item in kept if (value := getattr(self, item.name)) != item.default}


class Workflow:
    """Tasks and their dependencies; checked as a whole by `validate`, so tasks may be added in any order."""

    def __init__(self, config: WorkflowConfig | None = None) -> None:
        """Make an empty one."""
        self.config = config or WorkflowConfig()
        self._tasks: list[tuple[Task, tuple[str, ...]]] = []

    @property
    def name(self) -> str:
        """The name of its config."""
        return self.config.name

    @property
    def tasks(self) -> list[Task]:
        """In the order in which they were added."""
        return [task for task, _ in self._tasks]

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """What each task depends on, by name."""
        return {task.name: depends_on for task, depends_on in self._tasks}

    def add_task(self, task: Task, depends_on: Sequence[str] | None = None) -> None:
        """Add a task.

        Args:
            task: The task.
            depends_on: Names of tasks that must have completed, known or not yet; None takes `task.config.depends_on`.

        Raises:
            ValidationError: It is no task, or `depends_on` no list of names.
        """
        if not isinstance(task, Task):
            raise ValidationError(
                f"only a Task can be added to a workflow, not {task!r}; wrap a function in a FunctionTask"
            )
        given = task.config.depends_on if depends_on is None else depends_on
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise ValidationError(f"depends_on of task {task.name!r} must be a list of names, not {given!r}")
        self._tasks.append((task, tuple(dict.fromkeys(given))))

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Add several, each with its own `depends_on`."""
        for task in tasks:
            self.add_task(task)

    def validate(self) -> None:
        """Check the whole.

        Raises:
            ValueError: There is no task, a name is there twice, a dependency not at all, or a circle, which is named.
        """
        self.get_execution_plan()

    def get_execution_plan(self) -> list[list[str]]:
        """Names by level, within a level by priority and then in the order in which they were added.

        Raises:
            ValueError: As `validate`.
        """
        if not self._tasks:
            raise InvalidInput(f"workflow {self.name!r} has no task; add one")
        nodes: dict[str, Node] = {}
        for task, depends_on in self._tasks:
            if task.name in nodes:
                raise InvalidInput(f"workflow {self.name!r} has two tasks named {task.name!r}; rename one")
            nodes[task.name] = Node(depends_on, task.config.priority)
        return levels(nodes)

    def get_task(self, name: str) -> Task | None:
        """The task of that name; None where there is none."""
        return next((task for task, _ in self._tasks if task.name == name), None)

    def get_task_count(self) -> int:
        """How many tasks there are."""
        return len(self._tasks)

    def has_callbacks(self) -> bool:
        """Whether the program that submits wants to be told anything."""
        return any(getattr(self.config, name) is not None for name in _CALLBACKS) or bool(self.progress_callbacks())

    def progress_callbacks(self) -> dict[str, Callable[[float, str], Any]]:
        """The `progress_callback`s that tasks were constructed with and that stay in this program, by task."""
        wanted = {}
        for task in self.tasks:
            if "progress_callback" in task.local_arguments:
                callback = task.recorded_arguments().get("progress_callback")
                if callback is not None:
                    wanted[task.name] = callback
        return wanted
