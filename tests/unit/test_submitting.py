"""From a workflow to the request of a job."""

from __future__ import annotations

from pathlib import Path

from tests.support.workflow_tasks import Join

from rayzyme.settings import get_settings
from rayzyme.workflows import TaskConfig, WorkflowBuilder
from rayzyme_actors.submitting import Submission, prepare


def test_what_tasks_estimate_travels_with_the_job() -> None:
    """D22"""
    # A second for each of their texts.
    builder = WorkflowBuilder("w")
    for name in ("first", "second"):
        builder.add_task(
            Join(TaskConfig(name), ["a", "b"], Path("x")), depends_on=["first"] if name == "second" else []
        )
    assert prepare(Submission(builder.build()), get_settings(), None).request.estimated_seconds == 4.0
