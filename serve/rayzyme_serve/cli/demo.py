"""`rayzyme demo`: two example programs, on the bundled model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayzyme_serve.cli.context import Context, OutputOption
from rayzyme_serve.cli.output import Output

if TYPE_CHECKING:
    from rayzyme.workflows import WorkflowResult

app = typer.Typer(no_args_is_help=True, help="Run an example program with the bundled model.")
FolderOption = Annotated[Path, typer.Option("--output-dir", help="Folder of the results.")]


@app.command("simple")
def simple_command(
    context: typer.Context, output_dir: FolderOption = Path("results/demo_simple"), output: OutputOption = None
) -> None:
    """Screen two reactions as one job."""
    own: Context = context.obj
    printer = own.output(output)
    # Ray takes its time to load.
    from rayzyme_actors.demos import demo_simple

    _finish(printer, {"demo_simple": demo_simple(output_dir, printer.note)})


@app.command("advanced")
def advanced_command(
    context: typer.Context, output_dir: FolderOption = Path("results/demo_advanced"), output: OutputOption = None
) -> None:
    """Run two jobs at once, an urgent one and another, with live figures."""
    own: Context = context.obj
    printer = own.output(output)
    from rayzyme_actors.demos import demo_advanced

    _finish(printer, demo_advanced(output_dir, printer.note))


def _finish(printer: Output, results: Mapping[str, WorkflowResult]) -> None:
    """Print how the jobs ended; the exit code is 1 unless all of them completed."""
    jobs = [
        {"name": name, "status": result.status.value, "duration": result.duration, "error": result.error}
        for name, result in results.items()
    ]
    printer.document({"schema_version": "rayzyme.demo/1", "jobs": jobs})
    for job in jobs:
        printer.value(f"{job['name']}\t{job['status']}")
    if not all(result.success for result in results.values()):
        raise typer.Exit(1)
