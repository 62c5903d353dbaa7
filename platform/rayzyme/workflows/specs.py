"""A workflow as a JSON document, and back: what the store keeps of it.

A document names code by import path and holds the constructors' arguments; nothing in it is a pickle. A task that another
process could not import is transient: it travels beside the document, in memory only, and the document says why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, MappingProxyType
from typing import Any

from rayzyme.errors import InvalidInput, TaskNotSendable
from rayzyme.workflows.importable import NotImportable, import_path, load, search_path
from rayzyme.workflows.plan import Plan, PlannedTask
from rayzyme.workflows.plan_change import PlanChange
from rayzyme.workflows.task import FunctionTask, Task, constructor_signature
from rayzyme.workflows.task_config import Document, TaskConfig, as_plain, from_plain
from rayzyme.workflows.workflow import Workflow, WorkflowConfig

FORMAT = 1
PickleCheck = Callable[[Any], None]
"""Raises where something cannot be sent to another process."""


@dataclass(frozen=True, slots=True)
class WorkflowSpec:
    """A workflow taken apart.

    Attributes:
        document: JSON.
        transient: Tasks that the document cannot hold, by name.
    """

    document: Document
    transient: Mapping[str, Task]

    @property
    def is_durable(self) -> bool:
        """Whether the document suffices to run it in another process."""
        return not self.transient


def to_spec(workflow: Workflow, *, pickle_check: PickleCheck | None = None) -> WorkflowSpec:
    """Take a workflow apart.

    Args:
        workflow: The workflow.
        pickle_check: Asked about each transient task.

    Raises:
        ValueError: The workflow is not valid.
        TaskNotSendable: A transient task cannot be sent either; names the attribute at fault.
    """
    workflow.validate()
    transient: dict[str, Task] = {}
    documents = []
    for task in workflow.tasks:
        try:
            document = task_document(task)
        except (ValueError, TypeError) as error:
            travelling = without_local_arguments(task)
            if pickle_check is not None:
                check_sendable(travelling, pickle_check)
            transient[task.name] = travelling
            document = _transient_document(task, str(error))
        documents.append(document | {"depends_on": list(workflow.dependencies[task.name])})
    document = {"format": FORMAT, "config": workflow.config.to_document(), "tasks": documents}
    return WorkflowSpec(document, transient)


def plan_from_spec(
    document: Mapping[str, Any],
    transient: Mapping[str, Task] | None = None,
    configs: Mapping[str, TaskConfig] = MappingProxyType({}),
) -> Plan:
    """The plan of a document; imports nothing of the user's.

    Args:
        document: Of `to_spec`.
        transient: Its transient tasks, as far as they are still in memory; the others fail when they are run, and say why.
        configs: Of its tasks, by name, as far as they are at hand; the others are read from the document.

    Raises:
        InvalidInput: It is of another format, or does not hold.
    """
    if document.get("format") != FORMAT:
        raise InvalidInput(
            f"a workflow of format {document.get('format')!r}; this version of Rayzyme runs format {FORMAT}"
        )
    tasks = [planned_task(task, transient, configs.get(task["name"])) for task in document["tasks"]]
    return Plan.of(WorkflowConfig(**document["config"]), tasks)


def task_document(task: Task) -> Document:
    """A task as JSON.

    Raises:
        NotImportable: Another process could not import it.
        TypeError: An argument of its constructor cannot be JSON; names it.
    """
    code: Any = task.func if type(task) is FunctionTask else type(task)
    if not isinstance(code, (type, FunctionType)):
        raise NotImportable(f"{code!r} is neither a class nor a function of a module")
    document: Document = {"name": task.name, "type": import_path(code)}
    path = search_path(code.__module__)
    if path is not None:
        document["path"] = path
    if isinstance(code, type):
        arguments = document["arguments"] = {}
        for name, value in task.recorded_arguments().items():
            if isinstance(value, TaskConfig):
                document["config_argument"] = name
            elif name not in task.local_arguments:
                arguments[name] = as_plain(value, f"the argument {name!r} of task {task.name!r}")
    return document | _described(task, task.config.to_document())


def load_task(source: Document | Task) -> Task:
    """The task of a document, or a transient one itself.

    Raises:
        NotFound: Its code is not there.
        TaskNotSendable: It was transient, and the process that held it is gone.
        InvalidInput: What its path leads to is neither a task's class nor a function.
    """
    if isinstance(source, Task):
        return source
    name, path = source["name"], source["type"]
    if path == "transient":
        raise TaskNotSendable(
            f"task {name!r} is not durable ({source['why']}), and the scheduler that held it in memory is gone; submit it again"
        )
    config = TaskConfig.from_document({"name": name, **source.get("config", {})})
    if ":" not in path:
        from rayzyme.workflows.registry import get_registry

        return get_registry().create_task(path, config, **_arguments(source))
    code = load(path, source.get("path"))
    if isinstance(code, FunctionType):
        return FunctionTask(name, code, config)
    if not (isinstance(code, type) and issubclass(code, Task)):
        raise InvalidInput(f"task {name!r} cannot run: {path} is neither a class derived from Task nor a function")
    return _constructed(code, _arguments(source) | {source.get("config_argument", "config"): config}, config)


def planned_task(
    document: Document, transient: Mapping[str, Task] | None = None, config: TaskConfig | None = None
) -> PlannedTask:
    """A task's document in its place in the plan."""
    name = document["name"]
    held = (transient or {}).get(name)
    return PlannedTask(
        name=name,
        config=config or TaskConfig.from_document({"name": name, **document.get("config", {})}),
        source=document if held is None else held,
        depends_on=tuple(document.get("depends_on", ())),
        is_durable=document["type"] != "transient",
        uses_actors=document.get("uses_actors", False),
        cpu_capable=document.get("cpu_capable", False),
        estimated_seconds=document.get("estimated_seconds"),
        estimated_mb=document.get("estimated_mb"),
    )


def change_document(change: PlanChange) -> Document:
    """A plan change as JSON.

    Raises:
        TaskNotSendable: One of its tasks cannot be stored; says why.
    """
    document: Document = {"stop_children": True} if change.stop_children else {}
    for kind in ("replace", "detour", "addition"):
        tasks = []
        for task in getattr(change, kind):
            try:
                tasks.append(task_document(task) | {"depends_on": list(task.config.depends_on)})
            except (ValueError, TypeError) as error:
                raise TaskNotSendable(f"task {task.name!r} of a plan change cannot be stored: {error}") from error
        if tasks:
            document[kind] = tasks
    return document


def without_local_arguments(task: Task) -> Task:
    """A copy that leaves behind what stays in the program."""
    arguments = task.recorded_arguments()
    kept_here = [arguments[name] for name in task.local_arguments if arguments.get(name) is not None]
    travelling = copy.copy(task)
    travelling._called_with = ((), {})
    for name, value in vars(task).items():
        if any(value is local for local in kept_here):
            setattr(travelling, name, None)
    return travelling


def check_sendable(task: Task, pickle_check: PickleCheck) -> None:
    """Refuse a task that no other process can be given.

    Raises:
        TaskNotSendable: Names what is at fault: an attribute, a variable of a function, or a place inside of these, such as
            `task_params['screen']['lock']`.
    """
    try:
        pickle_check(task)
    except Exception as error:
        found = _at_fault(task, pickle_check)
        if found is None:
            raise TaskNotSendable(f"task {task.name!r} cannot be sent to a worker: {error}") from error
        name, value, fault = found
        raise TaskNotSendable(
            f"task {task.name!r} cannot be sent to a worker: its {name} of type {type(value).__module__}."
            f"{type(value).__qualname__} cannot be pickled ({fault}); make it inside of execute, or pass a path"
        ) from error


def _at_fault(task: Task, pickle_check: PickleCheck) -> tuple[str, Any, Exception] | None:
    """The innermost part that cannot be sent, and why: whatever holds it is at fault only through that."""
    found: tuple[str, Any, Exception] | None = None
    parts = [(f"attribute {name!r}", value) for name, value in vars(task).items()]
    entered: set[int] = set()
    while parts:
        name, value = parts.pop(0)
        if id(value) in entered:  # what contains itself
            continue
        try:
            pickle_check(value)
        except Exception as fault:
            found = (name, value, fault)
            entered.add(id(value))
            parts = _inside(name, value)
    return found


def _inside(name: str, value: Any) -> list[tuple[str, Any]]:
    """What something holds, by name."""
    match value:
        case TaskConfig():
            return list(vars(value).items())
        case Mapping():
            return [(f"{name}[{key!r}]", item) for key, item in value.items()]
        case list() | tuple():
            return [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        case FunctionType():
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
            used = [used for used in value.__code__.co_names if used in value.__globals__]
            return [(f"{name}, variable {variable!r}", cell.cell_contents) for variable, cell in cells] + [
                (f"{name}, global {variable!r}", value.__globals__[variable]) for variable in used
            ]
    return []


def _described(task: Task, config: Document) -> Document:
    config.pop("name", None)
    # Those of the workflow count, which stand beside the config.
    config.pop("depends_on", None)
    described: Document = {"config": config} if config else {}
    for name in ("uses_actors", "cpu_capable"):
        if getattr(task, name):
            described[name] = True
    estimates = {"estimated_seconds": task.estimate_duration(), "estimated_mb": task.estimate_memory()}
    return described | {name: value for name, value in estimates.items() if value is not None}


def _transient_document(task: Task, why: str) -> Document:
    config = task.config
    if callable(config.cache_key_fn):
        config = replace(config, cache_key_fn=None)
    try:
        document = config.to_document()
    except TypeError:
        document = replace(config, task_params={}).to_document()
    return {"name": task.name, "type": "transient", "why": why} | _described(task, document)


def _arguments(source: Document) -> dict[str, Any]:
    return {name: from_plain(value) for name, value in source.get("arguments", {}).items()}


def _constructed(code: type[Task], arguments: dict[str, Any], config: TaskConfig) -> Task:
    signature = constructor_signature(code)
    bound = signature.bind_partial()
    bound.arguments.update({name: arguments[name] for name in signature.parameters if name in arguments})
    try:
        task = code(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise InvalidInput(f"task {config.name!r} cannot be made again from its arguments: {error}") from error
    # Whatever its constructor makes of it, it runs as it was submitted.
    task.config = config
    return task
