"""A workflow from the command line: given to the scheduler where one lives, else carried out here and now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayzyme_serve.cli.context import Context
from rayzyme_serve.cli.job_selection import job_store
from rayzyme_serve.cli.jobs import SCHEMA_VERSION
from rayzyme_serve.cli.output import Output

if TYPE_CHECKING:
    from rayzyme.workflows import Workflow, WorkflowResult


def carry_out(
    own: Context, printer: Output, workflow: Workflow, name: str, wait: bool
) -> tuple[str, WorkflowResult | None]:
    """Submit a workflow.

    Args:
        own: Settings.
        printer: Shows progress, and prints the id of a job that is left to the scheduler.
        workflow: What to run.
        name: Of the job.
        wait: Where a scheduler has it, wait for its end.

    Returns:
        The job's id, and its result; None where the scheduler goes on with it.
    """
    # Ray takes its time to load; mistakes in the input are told before.
    from rayzyme.jobs.role import is_provably_gone

    with job_store() as store:
        holder = store.role()
    if holder is None or is_provably_gone(holder.identity):
        from rayzyme_actors.serving_jobs import run_here

        with printer.progress("screening") as tick:
            return run_here(own.settings, workflow, name, tick)
    from rayzyme_actors.dispatcher import Dispatcher

    dispatcher = Dispatcher(auto_start=False)
    job_id = dispatcher.submit_workflow(workflow, name=name)
    if wait:
        printer.note(f"waiting for {job_id}")
        return job_id, dispatcher.wait_for_job(job_id)
    printer.line(job_id)
    printer.value(job_id)
    printer.document({"schema_version": SCHEMA_VERSION, "job_id": job_id, "name": name})
    return job_id, None
