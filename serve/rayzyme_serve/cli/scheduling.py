"""`rayzyme start` and `rayzyme stop`: the scheduler in the foreground, and its orderly end from anywhere."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from rayzyme.errors import InvalidInput
from rayzyme.settings import Settings, use_settings
from rayzyme_serve.cli.context import Context, OutputOption
from rayzyme_serve.cli.job_selection import job_store

_LOOK_S = 0.5


def start_command(
    context: typer.Context,
    max_jobs: Annotated[
        int | None,
        typer.Option("--max-jobs", "-j", min=1, help="Jobs that run at once.  [default: 2]", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, help="Tasks of one job at once.  [default: 4]", show_default=False),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Run the scheduler until Ctrl-C: jobs that run then come to their end, those that wait stay queued.

    It may be stopped, killed and started again at any time.
    """
    own: Context = context.obj
    printer = own.output(output)
    settings = _with(own.settings, max_jobs, workers)
    use_settings(settings)
    from rayzyme.jobs.role import is_provably_gone

    with job_store() as store:
        holder = store.role()
        if holder is not None and not is_provably_gone(holder.identity):
            raise InvalidInput(
                f"a scheduler runs already, on {holder.info.get('host')} as process {holder.info.get('pid')}; "
                "`rayzyme stop` ends it"
            )
        from rayzyme_actors.serving_jobs import SchedulerInForeground

        with SchedulerInForeground(settings) as scheduler:
            printer.note(f"scheduler ready (Ray {scheduler.address}); Ctrl-C lets running jobs end and stops it")
            try:
                scheduler.wait_until_stopped()
            except KeyboardInterrupt:
                printer.note("starting nothing more; waiting for the running jobs (Ctrl-C again leaves them)")
                scheduler.drain()
                scheduler.wait_until_stopped()


def stop_command(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the running jobs.", min=0)] = 60.0,
    output: OutputOption = None,
) -> None:
    """Let the scheduler end, on whichever machine it is: it starts nothing more, and stops when nothing runs."""
    own: Context = context.obj
    printer = own.output(output)
    with job_store() as store:
        holder = store.role()
        if holder is None:
            printer.note("no scheduler is running")
            return
        store.request_stop()
        end = time.monotonic() + timeout
        while store.role() is not None:
            if time.monotonic() > end:
                printer.warning(
                    f"the scheduler on {holder.info.get('host')} still waits for running jobs; it stops after them"
                )
                raise typer.Exit(1)
            time.sleep(_LOOK_S)
    printer.note("the scheduler has stopped")


def _with(settings: Settings, max_jobs: int | None, workers: int | None) -> Settings:
    changes: dict[str, Any] = {"max_concurrent_jobs": max_jobs, "max_workers_per_job": workers}
    given = {name: value for name, value in changes.items() if value is not None}
    return settings.model_copy(update={"scheduler": settings.scheduler.model_copy(update=given)})
