"""From a workflow to a job request: its spec, what it needs, and whether the cluster has that at all."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ray import cloudpickle

from rayzyme.errors import ValidationError
from rayzyme.jobs.job import JobRequest, Resources, TaskPriority
from rayzyme.settings import Settings
from rayzyme.workflows import Workflow, WorkflowBuilder
from rayzyme.workflows.plan import check_possible, plan_needs, plan_seconds
from rayzyme.workflows.specs import plan_from_spec, to_spec

TRANSIENT_KEY: Final = "_transient_key"
"""Where a spec names the tasks that were handed to the scheduler because the spec cannot hold them."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One workflow of `Dispatcher.submit_many`; attributes as the arguments of `Dispatcher.submit_workflow`."""

    workflow: Workflow
    name: str | None = None
    priority: TaskPriority = TaskPriority.NORMAL
    metadata: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, and what must be handed to the scheduler before it is made."""

    request: JobRequest
    transient_key: str
    transient: Mapping[str, Any]


def prepare(
    submission: Submission, settings: Settings, cluster: Resources | None, node: Resources | None = None
) -> Prepared:
    """Check a submission and write it down.

    Args:
        submission: What was asked for.
        settings: In force.
        cluster: What the cluster has; None where nobody knows, and then the scheduler refuses what can never run.

        node: What its largest node has.

    Raises:
        DeviceUnavailable: A task needs a GPU, the cluster has none.
        ResourceError: A task needs more of something than the cluster has.
        TaskNotSendable: A task can be neither stored nor sent.
    """
    workflow = submission.workflow
    if not isinstance(workflow, Workflow):
        hint = "call its build()" if isinstance(workflow, WorkflowBuilder) else "use submit_task for a single task"
        raise ValidationError(f"only a Workflow can be submitted, not {workflow!r}; {hint}")
    spec = to_spec(workflow, pickle_check=cloudpickle.dumps)
    document = dict(spec.document)
    key = ""
    if spec.transient:
        # By what they are, so that the same request again is known as the same.
        key = document[TRANSIENT_KEY] = hashlib.sha256(cloudpickle.dumps(dict(spec.transient))).hexdigest()
    plan = plan_from_spec(document, spec.transient, {task.name: task.config for task in workflow.tasks})
    if cluster is not None:
        check_possible(plan, cluster, settings.resources.gpu.on_missing)
    if node is not None:
        check_possible(plan, node, settings.resources.gpu.on_missing, place="its largest node")
    request = JobRequest(
        name=workflow.name if submission.name is None else submission.name,
        owner=getpass.getuser() if submission.owner is None else submission.owner,
        spec=document,
        job_type=workflow.name,
        priority=submission.priority,
        metadata=submission.metadata,
        task_count=workflow.get_task_count(),
        needs=plan_needs(plan),
        is_durable=spec.is_durable,
        idempotency_key=submission.idempotency_key,
        estimated_seconds=plan_seconds(plan, settings.scheduler.max_workers_per_job),
    )
    return Prepared(request, key, spec.transient)
