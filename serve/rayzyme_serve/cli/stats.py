"""`rayzyme stats` and `rayzyme status`: what the scheduler, the queue, the machine, the stores and the metrics look like now."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rayzyme.monitoring.status import StatusReporter, status_rows
from rayzyme.resources import GPUManager
from rayzyme.storage import DataHandler
from rayzyme_serve.cli.context import Context, JsonOption, OutputOption
from rayzyme_serve.cli.job_selection import complete_jobs, job_store
from rayzyme_serve.cli.jobs import SCHEMA_VERSION, status_of
from rayzyme_serve.cli.output import Output
from rayzyme_serve.cli.up import platform_rows


def stats_command(context: typer.Context, as_json: JsonOption = False, output: OutputOption = None) -> None:
    """Show scheduler, queue, memory, GPUs, stores and metrics; with a Ray cluster named, also those of its actors."""
    own: Context = context.obj
    printer = own.output(output, as_json)
    with GPUManager.from_settings() as gpus, DataHandler(own.settings.home / "data") as data:
        # SQLAlchemy and Ray take their time to load, and most commands need neither.
        from rayzyme.database.leases import leases_now
        from rayzyme_actors.cluster_metrics import cluster_metrics

        reporter = StatusReporter(gpus=gpus, data=data)
        reporter.register("leases", lambda: leases_now(own.settings))
        reporter.register("cluster_metrics", lambda: cluster_metrics(own.settings))
        report = reporter.report()
    figures = _figures(own)
    printer.document({"schema_version": SCHEMA_VERSION, **report, **figures})
    printer.rows("DISPATCHER STATUS", ["section", "what", "value"], status_rows(_with_head(report, figures)))


def status_command(
    context: typer.Context,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="A job; without it the platform.", autocompletion=complete_jobs),
    ] = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Show where a job stands, or without one the scheduler and the queue."""
    own: Context = context.obj
    printer = own.output(output, as_json)
    if job is not None:
        status_of(printer, job)
    else:
        _print_platform(own, printer)


def _print_platform(own: Context, printer: Output) -> None:
    from rayzyme_actors.dispatcher_stats import scheduler_and_queue

    with job_store() as store:
        figures = scheduler_and_queue(store, own.settings, {})
    scheduler, queue = figures["scheduler"], figures["queue"]
    platform, of_platform = platform_rows(own.settings)
    printer.document({"schema_version": SCHEMA_VERSION, **figures, "platform": platform})
    lives = f"on {scheduler['host']} as process {scheduler['pid']}" if scheduler["running"] else "not running"
    rows = [
        ["scheduler", lives],
        *of_platform,
        *([state, queue[state]] for state in ("queued", "running", "completed", "failed", "cancelled")),
    ]
    printer.rows("Rayzyme", ["what", "value"], rows)
    printer.value("running" if scheduler["running"] else "stopped")


def _figures(own: Context) -> dict[str, Any]:
    from rayzyme_actors.dispatcher_stats import dispatcher_stats

    with job_store() as store:
        return dispatcher_stats(store, own.settings, {})


def _with_head(report: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The report, the dispatcher's own figures first."""
    head = {name: report[name] for name in ("schema", "time")}
    rest = {name: section for name, section in report.items() if name not in head}
    return {**head, "scheduler": figures["scheduler"], "queue": figures["queue"], **rest}
