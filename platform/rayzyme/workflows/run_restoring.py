"""Where a run begins: the plan with every change that finished tasks made to it, and the state in which each task was left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayzyme.jobs.states import JobState
from rayzyme.workflows.plan import Plan
from rayzyme.workflows.run_events import TaskMemory, TaskRun

NEEDED_AGAIN = "its output could not be stored and went with the runner; a task that has not completed needs it"

PlanChanges = dict[str, Mapping[str, Any]]


def restored(
    plan: Plan, memories: Mapping[str, TaskMemory], workflow_retries: int
) -> tuple[Plan, dict[str, TaskRun], PlanChanges]:
    """The plan as it is now, where each of its tasks stands, and the changes that were made to it, by task.

    A task that was running is left as running: whoever begins has lost it.

    Args:
        plan: As it was submitted.
        memories: What is known of its tasks, by name.
        workflow_retries: How many of the workflow's retries are used, this one included.
    """
    if not plan.config.retry_failed_tasks:
        memories = {name: _as_of_this_try(memory, workflow_retries) for name, memory in memories.items()}
    plan, changes = _with_changes(plan, memories)
    tasks = {task.name: _left(memories.get(task.name)) for task in plan.tasks}
    waiting: dict[str, list[str]] = {}
    for planned in reversed(plan.tasks):
        memory, task = memories.get(planned.name), tasks[planned.name]
        if memory is None or task.state is not JobState.COMPLETED:
            continue
        in_need = _who_needs_again(planned.name, plan, tasks, memory)
        if in_need:
            task.state, task.why_again, task.retries = JobState.QUEUED, NEEDED_AGAIN, 0
            for name in in_need:
                waiting.setdefault(name, []).append(planned.name)
    return plan.with_dependencies(waiting), tasks, changes


def _as_of_this_try(memory: TaskMemory, workflow_retries: int) -> TaskMemory:
    """Where a retried workflow does everything again, what completed in an earlier try has not."""
    is_of_before = memory.state is JobState.COMPLETED and memory.workflow_retries < workflow_retries
    return replace(memory, state=JobState.QUEUED) if is_of_before else memory


def _with_changes(plan: Plan, memories: Mapping[str, TaskMemory]) -> tuple[Plan, PlanChanges]:
    changes: PlanChanges = {}
    while True:
        # A task that one change added may have made another.
        found = next(
            (
                (name, change)
                for name in plan.tasks_by_name
                if name not in changes and (change := _change_of(memories.get(name))) is not None
            ),
            None,
        )
        if found is None:
            return plan, changes
        plan = plan.with_change(*found)
        changes[found[0]] = found[1]


def _change_of(memory: TaskMemory | None) -> Mapping[str, Any] | None:
    return memory.plan_change if memory is not None and memory.state is JobState.COMPLETED else None


def _left(memory: TaskMemory | None) -> TaskRun:
    if memory is None:
        return TaskRun()
    return TaskRun(
        # A cancelled one is so because of another task, which says so again.
        state={JobState.UNKNOWN: JobState.RUNNING, JobState.CANCELLED: JobState.QUEUED}.get(memory.state, memory.state),
        attempt=memory.attempt, retries=memory.retries, site_faults=memory.site_faults, not_before=memory.not_before,
        shared_keys=memory.shared_keys, error_class=memory.error_class, error=memory.error,
    )  # fmt: skip


def _who_needs_again(name: str, plan: Plan, tasks: Mapping[str, TaskRun], memory: TaskMemory) -> list[str]:
    """Unfinished tasks that need what a completed one gave and is gone."""
    reached = [] if memory.output_is_durable else plan.dependents[name]
    if not memory.shared_is_durable:
        # Those in between may have completed, so that nobody else would make these wait.
        reached = plan.descendants(name)
    return [one for one in reached if tasks[one].state in (JobState.QUEUED, JobState.RUNNING)]
