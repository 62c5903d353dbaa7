"""The command's root: global options, and the one table from errors to exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import rayzyme
from rayzyme import errors
from rayzyme.monitoring import configure_logging
from rayzyme.settings import load_settings, use_settings
from rayzyme_serve.cli import (
    checkpoints,
    data,
    database,
    demo,
    evaluating,
    gpus,
    jobs,
    scheduling,
    screening,
    sets,
    stats,
    tokens,
    up,
)
from rayzyme_serve.cli.context import Context
from rayzyme_serve.cli.output import OutputFormat

# Usage errors end with 2 (Typer's own), Ctrl-C with 130, anything unforeseen with 1 and its traceback.
EXIT_CODES: dict[type[Exception], int] = {
    errors.InvalidInput: 2,
    errors.UnknownJob: 1,
    TimeoutError: 1,
    errors.UnknownWord: 2,
    errors.QuotaExceeded: 5,
    errors.NotFound: 3,
    FileNotFoundError: 3,
    errors.CheckpointError: 4,
    errors.DamagedFile: 4,
    errors.CheckpointMismatch: 4,
    errors.DeviceUnavailable: 5,
    errors.InsufficientSpace: 5,
    errors.ResourceError: 5,
    errors.CacheTooSmall: 5,
    errors.MissingExtra: 5,
    errors.DownloadFailed: 6,
    errors.WorkerLost: 7,
    errors.DatabaseError: 7,
    ConnectionError: 7,
}

app = typer.Typer(
    name="rayzyme",
    help="Find the enzymes that may catalyse a reaction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 a job failed or is unknown, "
    "2 bad input or usage, 3 not found, 4 unusable checkpoint or damaged file, 5 "
    "device, memory, disk or an optional package is lacking, 6 download failed, 7 a worker, the cluster or the database was "
    "lost, 130 interrupted.",
)
app.command("up")(up.up_command)
app.command("down")(up.down_command)
app.command("screen")(screening.screen_command)
app.command("evaluate")(evaluating.evaluate_command)
app.command("gpus")(gpus.gpus_command)
app.command("start")(scheduling.start_command)
app.command("stop")(scheduling.stop_command)
app.command("status")(stats.status_command)
app.command("stats")(stats.stats_command)
app.command("list-jobs")(jobs.list_jobs_command)
app.command("cancel")(jobs.cancel_command)
app.add_typer(jobs.app, name="jobs")
app.add_typer(database.app, name="db")
app.add_typer(tokens.app, name="token")
app.add_typer(demo.app, name="demo")
app.add_typer(sets.app, name="sets")
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rayzyme {rayzyme.__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings file (YAML).", show_default=False)
    ] = None,
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="How to print results.")] = OutputFormat.TABLE,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING, ERROR.", show_default=False)] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the settings and set up logging before any command runs."""
    overrides: dict[str, Any] = {"logging": {"level": log_level.upper()}} if log_level else {}
    settings = load_settings(config, overrides)
    use_settings(settings)
    configured = settings.logging
    # A person at a terminal wants results; lines below WARNING are for those who ask for them.
    quiet_console = not (log_level or "level" in configured.model_fields_set)
    configure_logging(
        "WARNING" if quiet_console else configured.level,
        configured.console,
        configured.file,
        configured.structured,
        settings.home / "logs",
    )
    context.obj = Context(settings, output)


def main() -> None:
    """Run the command; errors that Rayzyme knows end in one message and the exit code of their class."""
    try:
        app()
    except tuple(EXIT_CODES) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except KeyboardInterrupt:
        sys.exit(130)
