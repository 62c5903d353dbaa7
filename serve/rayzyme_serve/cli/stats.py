"""`rayzyme stats`: what the machine, the stores and the metrics look like now."""

from __future__ import annotations

import typer

from rayzyme.monitoring.status import StatusReporter, status_rows
from rayzyme.resources import GPUManager
from rayzyme.storage import DataHandler
from rayzyme_serve.cli.context import Context, OutputOption


def stats_command(context: typer.Context, output: OutputOption = None) -> None:
    """Show memory, GPUs, the data store and Rayzyme's metrics; with a Ray cluster named, also those of its actors."""
    own: Context = context.obj
    printer = own.output(output)
    with GPUManager.from_settings() as gpus, DataHandler(own.settings.home / "data") as data:
        # SQLAlchemy and Ray take their time to load, and most commands need neither.
        from rayzyme.database.leases import leases_now
        from rayzyme_actors.cluster_metrics import cluster_metrics

        reporter = StatusReporter(gpus=gpus, data=data)
        reporter.register("leases", lambda: leases_now(own.settings))
        reporter.register("cluster_metrics", lambda: cluster_metrics(own.settings))
        report = reporter.report()
    printer.document(report)
    printer.rows("Status", ["section", "what", "value"], status_rows(report))
