"""A workflow as it is run: its tasks in order, as documents that need no import of the user's code, and what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from rayzyme.checks import number_from_zero
from rayzyme.errors import DeviceUnavailable, InvalidInput, ResourceError
from rayzyme.jobs.durations import SECONDS_PER_TASK
from rayzyme.jobs.job import Resources
from rayzyme.workflows.ordering import Node, dependents_of, levels
from rayzyme.workflows.task_config import Document, TaskConfig
from rayzyme.workflows.workflow import WorkflowConfig

if TYPE_CHECKING:
    from rayzyme.workflows.task import Task

SLOT = "slot:workflow"


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task in its place.

    Attributes:
        name: Its name.
        config: How it runs.
        source: Its document, or the task itself where it is transient.
        depends_on: Whose completion it waits for.
        is_durable: Whether `source` is a document that every process can run.
        uses_actors: See `Task.uses_actors`.
        cpu_capable: See `Task.cpu_capable`.
        estimated_seconds: How long it says that it takes; None where it does not say.
        estimated_mb: How much memory it says that it takes.
        added_by: The task whose plan change added it; "" where it was there from the start.
    """

    name: str
    config: TaskConfig
    source: Document | Task
    depends_on: tuple[str, ...] = ()
    is_durable: bool = True
    uses_actors: bool = False
    cpu_capable: bool = False
    estimated_seconds: float | None = None
    estimated_mb: int | None = None
    added_by: str = ""

    @property
    def memory_mb(self) -> int | None:
        """MB (2^20 bytes) to reserve for it."""
        return self.estimated_mb if self.config.memory_mb is None else self.config.memory_mb

    @property
    def own_gpus(self) -> int:
        """GPUs that its own process must have."""
        return 0 if self.uses_actors else self.config.gpus_needed


@dataclass(frozen=True)
class Plan:
    """All tasks, in plan order: by level, within a level by priority, then as they were added.

    Attributes:
        config: Of the workflow, without callbacks.
        tasks: In plan order.
        stand_ins: Tasks that were replaced, and the one of their replacements whose output counts as theirs.
    """

    config: WorkflowConfig
    tasks: tuple[PlannedTask, ...]
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: WorkflowConfig, tasks: list[PlannedTask], stand_ins: Mapping[str, str] | None = None) -> Plan:
        """Put tasks in order.

        Args:
            config: Of the workflow.
            tasks: In the order in which they were added.
            stand_ins: See the attribute.

        Raises:
            InvalidInput: A name is there twice, a dependency not at all, or a circle.
        """
        by_name = {task.name: task for task in tasks}
        if len(by_name) < len(tasks):
            names = [task.name for task in tasks]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInput(f"workflow {config.name!r} has two tasks named {twice[0]!r}; rename one")
        order = levels({task.name: Node(task.depends_on, task.config.priority) for task in tasks})
        return cls(config, tuple(by_name[name] for level in order for name in level), stand_ins or {})

    @cached_property
    def tasks_by_name(self) -> Mapping[str, PlannedTask]:
        """The tasks, in plan order."""
        return {task.name: task for task in self.tasks}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Where each task stands in plan order."""
        return {task.name: number for number, task in enumerate(self.tasks)}

    @cached_property
    def dependents(self) -> Mapping[str, list[str]]:
        """Who depends directly on each."""
        return dependents_of({task.name: Node(task.depends_on, 0) for task in self.tasks})

    def ancestors(self, name: str) -> list[str]:
        """Everything that a task depends on, directly or not, in plan order."""
        found: set[str] = set()
        waiting = list(self.tasks_by_name[name].depends_on)
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting.extend(self.tasks_by_name[one].depends_on)
        return sorted(found, key=self.positions.__getitem__)

    def descendants(self, name: str) -> list[str]:
        """Everything that depends on a task, directly or not, in plan order."""
        found: set[str] = set()
        waiting = list(self.dependents[name])
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting.extend(self.dependents[one])
        return sorted(found, key=self.positions.__getitem__)

    def inputs_of(self, name: str) -> dict[str, str]:
        """Whose output a task finds under the name of each that it depends on: where one was replaced, its stand-in's."""
        inputs = {}
        for dependency in self.tasks_by_name[name].depends_on:
            source = dependency
            while source in self.stand_ins:
                source = self.stand_ins[source]
            inputs[dependency] = source
        return inputs

    def with_change(self, name: str, change: Mapping[str, Any]) -> Plan:
        """The plan after a task's plan change, as `rayzyme.workflows.specs.change_document` writes it.

        Raises:
            InvalidInput: A new task has a name that is taken, or depends on one that there is not, or a circle would be made.
        """
        from rayzyme.workflows.specs import planned_task

        tasks = list(self.tasks)
        stand_ins = dict(self.stand_ins)
        waited_for: list[str] = []
        for kind in ("replace", "detour", "addition"):
            group = [planned_task(document) for document in change.get(kind, ())]
            tasks += [replace(one, depends_on=one.depends_on or (name,), added_by=name) for one in group]
            if kind != "addition":
                named = {dependency for one in group for dependency in one.depends_on}
                waited_for += [one.name for one in group if one.name not in named]
            if kind == "replace" and group:
                stand_ins[name] = group[-1].name
                if group[-1].name not in waited_for:
                    waited_for.append(group[-1].name)
        changed = Plan.of(self.config, tasks, stand_ins)
        return changed.with_dependencies(dict.fromkeys(self.dependents[name], waited_for))

    def with_dependencies(self, more: Mapping[str, Sequence[str]]) -> Plan:
        """The plan in which some tasks wait for more than before.

        Raises:
            InvalidInput: A circle would be made.
        """
        if not any(more.values()):
            return self
        tasks = [
            replace(task, depends_on=tuple(dict.fromkeys([*task.depends_on, *more.get(task.name, ())])))
            for task in self.tasks
        ]
        return Plan.of(self.config, tasks, self.stand_ins)


def plan_needs(plan: Plan) -> Resources:
    """What must be free for a job to begin: a slot, and the largest amount that a single task asks for explicitly."""
    needs: dict[str, float] = {SLOT: 1.0}
    for task in plan.tasks:
        asked = {
            "gpu": task.own_gpus, "cpu": task.config.num_cpus, "memory_mb": task.memory_mb,
            "gpu_memory_mb": task.config.gpu_memory_mb,
        }  # fmt: skip
        for resource, amount in asked.items():
            if amount:
                needs[resource] = max(needs.get(resource, 0.0), float(amount))
    return needs


def plan_seconds(plan: Plan, most_at_once: int) -> float | None:
    """How long a workflow is likely to take, in seconds, by what its tasks estimate; None where none of them does.

    At least as long as its longest chain of tasks, and as all of them shared out among those that run at once. A task that does
    not say counts as when nothing is known of a job, a minute.

    Args:
        plan: The workflow.
        most_at_once: How many of its tasks run at once, whatever the workflow says.

    Raises:
        ValidationError: An estimate is no number of seconds; names the task.
    """
    if all(task.estimated_seconds is None for task in plan.tasks):
        return None
    ends: dict[str, float] = {}
    total = 0.0
    for task in plan.tasks:
        estimate = SECONDS_PER_TASK if task.estimated_seconds is None else task.estimated_seconds
        seconds = number_from_zero(f"estimate_duration() of task {task.name!r}", estimate)
        ends[task.name] = max((ends[name] for name in task.depends_on), default=0.0) + seconds
        total += seconds
    return max(*ends.values(), total / min(plan.config.max_parallel_tasks, most_at_once))


def check_possible(
    plan: Plan, cluster: Resources, on_missing_gpu: Literal["fail", "cpu"] = "fail", *, place: str = "the cluster"
) -> None:
    """Refuse what would wait for ever.

    Args:
        plan: The workflow.
        cluster: What the cluster has in all, by resource; without "gpu" it has none, other resources without a figure are
            taken to suffice.
        on_missing_gpu: What a task that needs a GPU does where there is none and it can do without; see
            `resources.gpu.on_missing`.
        place: What has that, for messages; a task runs in one process, so its largest node must suffice too.

    Raises:
        DeviceUnavailable: A task needs more GPUs than there are.
        ResourceError: It needs more of something else.
    """
    gpus = int(cluster.get("gpu", 0))
    for task in plan.tasks:
        needed = min(1, task.config.gpus_needed) if task.uses_actors else task.config.gpus_needed
        if needed > gpus and not (gpus == 0 and on_missing_gpu == "cpu" and task.cpu_capable):
            hint = "; resources.gpu.on_missing=cpu would run it on the CPU" if task.cpu_capable and gpus == 0 else ""
            raise DeviceUnavailable(f"task {task.name} needs {_count(needed)}; {place} has {gpus}{hint}")
        asked = {"cpu": task.config.num_cpus, "memory_mb": task.memory_mb, "gpu_memory_mb": task.config.gpu_memory_mb}
        for resource, amount in asked.items():
            if amount is not None and amount > cluster.get(resource, float("inf")):
                raise ResourceError(f"task {task.name} needs {amount:g} {resource}; {place} has {cluster[resource]:g}")


def _count(gpus: int) -> str:
    return f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"
