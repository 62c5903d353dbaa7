"""Workflows: tasks, what depends on what, and the machine that decides what one attempt of a workflow does next.

Nothing heavy is imported with this package; the ready-made workflows and tasks come with their first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rayzyme.jobs.job import TaskPriority
from rayzyme.workflows.builder import WorkflowBuilder
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.plan_change import PlanChange
from rayzyme.workflows.registry import TaskRegistry, get_registry, task
from rayzyme.workflows.result import ModelRef, TaskResult, TaskStatus
from rayzyme.workflows.task import FunctionTask, Task
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.workflow import Workflow, WorkflowConfig
from rayzyme.workflows.workflow_result import WorkflowResult

_WORKFLOWS = (
    "create_evaluation_workflow",
    "create_full_pipeline",
    "create_screening_workflow",
    "create_set_evaluation_workflow",
    "create_simple_screening_workflow",
)
_TASKS = (
    "BuildScreeningSetTask",
    "DownloadCheckpointTask",
    "EvaluateScreeningTask",
    "GenerateReportTask",
    "LoadCheckpointTask",
    "RunScreeningTask",
    "ValidateCheckpointTask",
)
_LAZY = dict.fromkeys(_WORKFLOWS, "rayzyme.workflows.ready_made") | dict.fromkeys(_TASKS, "rayzyme.workflows.tasks")

__all__ = [
    "FunctionTask",
    "ModelRef",
    "PlanChange",
    "Task",
    "TaskConfig",
    "TaskContext",
    "TaskPriority",
    "TaskRegistry",
    "TaskResult",
    "TaskStatus",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowConfig",
    "WorkflowResult",
    "get_registry",
    "task",
    *_WORKFLOWS,
    *_TASKS,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
