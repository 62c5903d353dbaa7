"""`rayzyme checkpoints`: list, fetch and validate model weights; list, verify and show saved states of pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayzyme.errors import CheckpointError, NotFound
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.storage import CheckpointManager
from rayzyme_serve.cli.context import Context, OutputOption
from rayzyme_serve.cli.output import Output

app = typer.Typer(
    help="Checkpoints: model weights by name, and states that pipelines saved in a folder.", no_args_is_help=True
)

CheckpointArgument = Annotated[str, typer.Argument(help="Checkpoint: a name, or for validate also a file.")]


@app.command("list")
def list_command(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of saved states; without it, the model weights known by name.", show_default=False),
    ] = None,
    output: OutputOption = None,
) -> None:
    """List the checkpoints known by name, or those saved in a folder."""
    printer = context.obj.output(output)
    if folder is None:
        _list_weights(context.obj, printer)
    else:
        _list_states(folder, printer)


def _list_states(folder: Path, printer: Output) -> None:
    found = _manager(folder).list_checkpoints()
    printer.document({"schema": "rayzyme.checkpoints.states/1", "folder": str(folder), "checkpoints": found})
    printer.rows(
        f"Saved states in {folder}",
        ["checkpoint", "saved", "components", "bytes"],
        [[item["checkpoint_id"], item["timestamp"], ", ".join(item["components"]), sum(item["sizes"].values())]
         for item in found],
    )  # fmt: skip
    for item in found:
        printer.value(item["path"])


def _list_weights(own: Context, printer: Output) -> None:
    infos = _registry(own).list()
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


@app.command("verify")
def verify_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A saved checkpoint, or a folder of them.")],
    output: OutputOption = None,
) -> None:
    """Read every byte of saved states. Ends with 4 if anything is missing or altered."""
    printer = context.obj.output(output)
    chosen = [path] if _is_state(path) else [Path(item["path"]) for item in _manager(path).list_checkpoints()]
    verdicts = {str(item): _manager(item.parent).verify_checkpoint(item) for item in chosen}
    bad = [name for name, ok in verdicts.items() if not ok]
    printer.document({"schema": "rayzyme.checkpoints.verify/1", "checkpoints": verdicts})
    printer.rows(
        "Verified", ["checkpoint", "result"], [[name, "ok" if ok else "DAMAGED"] for name, ok in verdicts.items()]
    )
    for name, ok in verdicts.items():
        printer.value(f"{name}\t{'ok' if ok else 'damaged'}")
    if bad:
        raise CheckpointError(f"{len(bad)} of {len(verdicts)} checkpoint(s) are damaged: {', '.join(bad)}")


@app.command("show")
def show_command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A saved checkpoint.")],
    output: OutputOption = None,
) -> None:
    """Show what a saved checkpoint holds."""
    printer = context.obj.output(output)
    if not _is_state(path):
        raise NotFound(f"{path} is no saved checkpoint; `rayzyme checkpoints list {path.parent}` shows those beside it")
    found = next(item for item in _manager(path.parent).list_checkpoints() if Path(item["path"]) == path.absolute())
    printer.document({"schema": "rayzyme.checkpoints.show/1", **found})
    printer.rows(
        f"{found['checkpoint_id']}, saved {found['timestamp']} by Rayzyme {found['rayzyme_version']}",
        ["file", "bytes", "sha256"],
        [[name, found["sizes"][name], digest[:16]] for name, digest in found["digests"].items()],
    )
    for component in found["components"]:
        printer.value(component)


def _is_state(path: Path) -> bool:
    return (path / "metadata.json").is_file()


def _manager(folder: Path) -> CheckpointManager:
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    return CheckpointManager(str(folder), auto_cleanup=False)


def _registry(own: Context) -> CheckpointRegistry:
    return CheckpointRegistry(own.settings.home, own.settings.checkpoints.sources)
