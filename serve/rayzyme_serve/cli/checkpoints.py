"""`rayzyme checkpoints`: list, fetch and validate model weights."""

from __future__ import annotations

from typing import Annotated

import typer

from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme_serve.cli.context import Context, OutputOption

app = typer.Typer(help="Checkpoints: model weights by name.", no_args_is_help=True)

CheckpointArgument = Annotated[str, typer.Argument(help="Checkpoint: a name, or for validate also a file.")]


@app.command("list")
def list_command(context: typer.Context, output: OutputOption = None) -> None:
    """List the checkpoints known by name."""
    printer = context.obj.output(output)
    infos = _registry(context.obj).list()
    documents = [
        {"name": info.name, "source": info.source, "present": info.present, "path": str(info.path) if info.path else None,
         "size": info.size, "sha256": info.sha256, "format": info.format, "description": info.description}
        for info in infos
    ]  # fmt: skip
    printer.document({"schema": "rayzyme.checkpoints.list/1", "checkpoints": documents})
    rows = [[info.name, "yes" if info.present else "no", info.source, info.description] for info in infos]
    printer.rows("Checkpoints", ["name", "present", "source", "description"], rows)
    for info in infos:
        printer.value(info.name)


@app.command("fetch")
def fetch_command(
    context: typer.Context,
    name: CheckpointArgument,
    force: Annotated[bool, typer.Option("--force", help="Fetch again although it is present.")] = False,
    output: OutputOption = None,
) -> None:
    """Download a checkpoint. A download that was cut off goes on where it stopped, if the server allows it."""
    printer = context.obj.output(output)
    with printer.progress(f"fetching {name}") as tick:
        path = _registry(context.obj).fetch(name, progress=lambda done, total: tick(done, total or done), force=force)
    printer.document({"schema": "rayzyme.checkpoints.fetch/1", "name": name, "path": str(path)})
    printer.value(str(path))
    printer.note(f"checkpoint {name!r}: {path}")


@app.command("validate")
def validate_command(context: typer.Context, name: CheckpointArgument, output: OutputOption = None) -> None:
    """Check a checkpoint: digest, format, every parameter, a forward pass. Ends with 4 if anything is wrong."""
    printer = context.obj.output(output)
    report = _registry(context.obj).validate(name)
    checks = [{"check": check.name, "ok": check.ok, "reason": check.reason} for check in report.checks]
    printer.document({"schema": "rayzyme.checkpoints.validate/1", "name": name, "path": str(report.path), "ok": report.ok,
                      "checks": checks})  # fmt: skip
    rows = [[check.name, "ok" if check.ok else "FAILED", check.reason] for check in report.checks]
    printer.rows(f"Checkpoint {name}: {report.path}", ["check", "result", "found"], rows)
    printer.value("ok" if report.ok else "failed")
    report.raise_for_failure()


def _registry(own: Context) -> CheckpointRegistry:
    return CheckpointRegistry(own.settings.home, own.settings.checkpoints.sources)
