"""`rayzyme sets`: build, import, list, inspect and remove screening sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayzyme.errors import InvalidInput
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.proteins import read_proteins
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.screening.building import BuildReport, build_screening_set
from rayzyme.screening.importing import read_embeddings
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.screening.screening_set import EmbeddingType
from rayzyme_serve.cli.audit import audited
from rayzyme_serve.cli.context import Context, DeviceOption, OutputOption
from rayzyme_serve.cli.output import Output

app = typer.Typer(help="Screening sets: proteins with their embeddings.", no_args_is_help=True)

CheckpointOption = Annotated[str, typer.Option("--checkpoint", "-m", help="Checkpoint: a name or a file.")]
TypeOption = Annotated[str, typer.Option("--type", help="How to store embeddings: float32, float16 or bfloat16.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the set.")]


@app.command("build")
def build_command(
    context: typer.Context,
    name: NameArgument,
    proteins: Annotated[
        Path, typer.Argument(help="CSV (protein_id,sequence[,cif,...]), FASTA, or a folder of structures.")
    ],
    checkpoint: CheckpointOption = "baseline",
    type_: TypeOption = "float32",
    device: DeviceOption = None,
    output: OutputOption = None,
) -> None:
    """Embed proteins and keep them as a set. A build that was interrupted goes on when run again."""
    own: Context = context.obj
    printer = own.output(output)
    destination = ScreeningSetLibrary(own.settings.screening_sets).path(name)
    report = build(own, printer, proteins, destination, checkpoint, device=device, embedding_type=type_)
    printer.document({"schema": "rayzyme.sets.build/1", "name": name, "path": str(report.path), "proteins": report.proteins,
                      "embedded": report.embedded, "reused": report.reused, "rejected": len(report.rejected)})  # fmt: skip
    printer.value(name)
    printer.note(f"set {name!r}: {report.proteins} proteins ({report.reused} from an earlier run), {report.path}")


@app.command("import")
def import_command(
    context: typer.Context,
    name: NameArgument,
    embeddings: Annotated[Path, typer.Argument(help="clipzyme_screening_set.p, .npy, .npz or .parquet.")],
    checkpoint: CheckpointOption,
    ids: Annotated[
        Path | None, typer.Option(help="Protein ids for .npy: one a line, or a CSV.", show_default=False)
    ] = None,
    type_: TypeOption = "float32",
    output: OutputOption = None,
) -> None:
    """Keep embeddings made elsewhere as a set. `--checkpoint` says what made them."""
    own: Context = context.obj
    printer = own.output(output)
    destination = ScreeningSetLibrary(own.settings.screening_sets).path(name)
    reference = checkpoint_ref(own, checkpoint)
    read = read_embeddings(embeddings, ids)
    made = ScreeningSet.from_arrays(
        read.protein_ids, read.embeddings, read.metadata, reference, embedding_type=_embedding_type(type_)
    )
    made.save(destination)
    if read.was_normalised:
        printer.warning("the rows were not of unit length; they were scaled to it")
    printer.document({"schema": "rayzyme.sets.import/1", "name": name, "path": str(destination), "proteins": len(made)})
    printer.value(name)
    printer.note(f"set {name!r}: {len(made)} proteins of checkpoint {reference}, {destination}")


@app.command("list")
def list_command(context: typer.Context, output: OutputOption = None) -> None:
    """List the sets known by name."""
    own: Context = context.obj
    printer = own.output(output)
    library = ScreeningSetLibrary(own.settings.screening_sets)
    infos: list[dict[str, Any]] = []
    for name in library.names():
        try:
            infos.append({"name": name, **library.open(name).info()})
        except InvalidInput as error:
            printer.warning(str(error))
    printer.document({"schema": "rayzyme.sets.list/1", "sets": infos})
    columns = ["name", "proteins", "dimension", "checkpoint", "embedding_type", "created"]
    printer.rows("Screening sets", columns, [[info[column] for column in columns] for info in infos])
    for info in infos:
        printer.value(info["name"])


@app.command("info")
def info_command(context: typer.Context, name: NameArgument, output: OutputOption = None) -> None:
    """Show what a set holds (a name or a file)."""
    own: Context = context.obj
    printer = own.output(output)
    info = ScreeningSetLibrary(own.settings.screening_sets).open(name).info()
    printer.document({"schema": "rayzyme.sets.info/1", "name": name, **info})
    rows: list[list[Any]] = [
        [key, ", ".join(value) if isinstance(value, list) else str(value)] for key, value in info.items()
    ]
    printer.rows(f"Screening set {name}", ["field", "value"], rows)
    printer.value(str(info["path"]))


@app.command("remove")
def remove_command(context: typer.Context, name: NameArgument, output: OutputOption = None) -> None:
    """Delete a set."""
    own: Context = context.obj
    printer = own.output(output)
    with audited() as record:
        path = ScreeningSetLibrary(own.settings.screening_sets).remove(name)
        record(f"screening_set:{name}", "sets remove", {"path": str(path)})
    printer.document({"schema": "rayzyme.sets.remove/1", "name": name, "path": str(path)})
    printer.value(name)
    printer.note(f"set {name!r} removed: {path}")


def build(
    own: Context,
    printer: Output,
    proteins: Path,
    destination: Path,
    checkpoint: str,
    *,
    device: str | None,
    embedding_type: str = "float32",
) -> BuildReport:
    """Build a set with a model host on Ray, with a progress bar; rejected rows are warned about."""
    rows = list(read_proteins(proteins))
    stored = _embedding_type(embedding_type)
    from rayzyme_actors.starting import ProteinEncoder

    encoder = ProteinEncoder(checkpoint, device=device, settings=own.settings)
    with printer.progress("embedding proteins") as tick:
        report = build_screening_set(
            rows,
            destination,
            encoder,
            encoder.checkpoint,
            dimension=encoder.dimension,
            embedding_type=stored,
            progress=tick,
        )
    if report.rejected:
        printer.warning(f"{len(report.rejected)} protein(s) left out; the reasons are in {report.rejected_path}")
    return report


def checkpoint_ref(own: Context, checkpoint: str) -> CheckpointRef:
    """Name and digest of a checkpoint without loading it; a file need not be present on this machine for its name."""
    registry = CheckpointRegistry(own.settings.home, own.settings.checkpoints.sources)
    return CheckpointRef(*registry.identify(checkpoint))


def _embedding_type(text: str) -> EmbeddingType:
    match text:
        case "float32" | "float16" | "bfloat16":
            return text
    raise InvalidInput(f"--type {text!r} is unknown; use float32, float16 or bfloat16")
