"""`rayzyme screen`: reactions in, ranked proteins out, on the screen and as files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rayzyme.chemistry import ReactionRecord, parse_reaction, read_reactions
from rayzyme.errors import InvalidInput
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.screening.answer import ReactionResult, Rejection, ScreeningAnswer
from rayzyme.screening.filters import parse_filter, shared_levels
from rayzyme.screening.library import REFERENCE, ScreeningSetLibrary
from rayzyme.screening.report import write_screening_report
from rayzyme_serve.cli.context import Context, DeviceOption, OutputOption
from rayzyme_serve.cli.output import Output
from rayzyme_serve.cli.running import carry_out

if TYPE_CHECKING:
    from rayzyme.workflows import WorkflowResult

_SHOWN_COLUMNS = ("ec", "name", "organism")


class Mode(StrEnum):
    """The values of `--mode`."""

    INTERACTIVE = "interactive"
    BATCHED = "batched"


def screen_command(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: a name (`rayzyme checkpoints list`) or a file.")],
    reactions_file: Annotated[
        Path | None,
        typer.Argument(
            help="Reactions: one SMILES a line, or CSV with reaction_id,reaction_smiles.", show_default=False
        ),
    ] = None,
    reaction: Annotated[
        list[str] | None, typer.Option("--reaction", "-r", help="A reaction SMILES; may be repeated.")
    ] = None,
    proteins_csv: Annotated[
        Path | None,
        typer.Option(help="Screen these proteins: CSV, FASTA or a folder of structures.", show_default=False),
    ] = None,
    screening_set: Annotated[
        str | None, typer.Option("--screening-set", "-s", help="Name or file of a screening set.  [default: reference]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Hits per reaction.  [default: 100]", show_default=False)
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Which proteins may be hits: ec=1.1.1, organism=..., length>=100."),
    ] = None,
    device: DeviceOption = None,
    mode: Annotated[Mode | None, typer.Option(help="One by one, or grouped for throughput; same rankings.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for JSON, CSV, Parquet and the HTML report.")] = Path(
        "results"
    ),
    show: Annotated[int, typer.Option(help="Hits per reaction to print.", min=0)] = 10,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first reaction that cannot be screened.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="With a scheduler: wait for the results and print them.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Rank proteins for each reaction: with a scheduler (`rayzyme start`) as a job of its, else here and now.

    Example: rayzyme screen baseline --reaction "CCO.O>>CC=O" --top-k 5
    """
    own: Context = context.obj
    printer = own.output(output)
    records, rejected = _read(reactions_file, reaction or [], strict)
    if proteins_csv is not None and screening_set is not None:
        raise InvalidInput("give --proteins-csv or --screening-set, not both")
    # A name that there is not is told at once, and not by a job that has failed.
    CheckpointRegistry(own.settings.home, own.settings.checkpoints.sources).identify(checkpoint)
    if proteins_csv is None:
        ScreeningSetLibrary(own.settings.screening_sets).open(screening_set or REFERENCE)
    from rayzyme.workflows import create_screening_workflow

    workflow = create_screening_workflow(
        checkpoint,
        # A file as it is, so that the job's answer lists its bad rows too.
        reactions_file if reactions_file is not None and not reaction else records,
        proteins_csv,
        own.settings.tasks.screening.top_k if top_k is None else top_k,
        output_dir,
        device or own.settings.device,
        own.settings.tasks.screening.mode if mode is None else mode.value,
        build_screening_set=proteins_csv is not None,
        screening_set=screening_set or REFERENCE,
        filters=parse_filter(filter_ or []) or None,
        strict=strict,
    )
    job_id, result = carry_out(own, printer, workflow, f"screening-{checkpoint}", wait)
    for rejection in rejected:
        printer.warning(rejection["reason"])
    if result is None:
        printer.note(f"submitted as {job_id}; `rayzyme jobs watch {job_id}` follows it")
        return
    if not result.success:
        Console(stderr=True).print(f"error: {result.error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    answer = dict(result.get_task_result("run_screening").output)
    files = answer.pop("files")
    del answer["counts"]
    _tell_left_out(printer, result, output_dir)
    told = {row["line"] for row in rejected}
    _print(printer, answer, show, told)
    report = write_screening_report(answer, output_dir / "report.html")
    written = [Path(name).name for name in (*files, report)]
    printer.note(f"{len(answer['results'])} reaction(s) screened; written to {output_dir}: {', '.join(written)}")
    printer.note(f"report: {report.resolve()}")


def _tell_left_out(printer: Output, result: WorkflowResult, output_dir: Path) -> None:
    built = result.get_task_result("build_screening_set")
    if built is not None and built.output["rejected"]:
        printer.warning(
            f"{built.output['rejected']} protein(s) left out; the reasons are in {output_dir / 'screening_set.rejected.csv'}"
        )


def _read(
    reactions_file: Path | None, reactions: list[str], strict: bool
) -> tuple[list[ReactionRecord], list[Rejection]]:
    """The reactions asked for, those of the file first, and the rows of the file that cannot be read."""
    records: list[ReactionRecord] = []
    rejected: list[Rejection] = []
    if reactions_file is not None:
        file = read_reactions(reactions_file)
        records += file.records
        rejected = [
            {"reaction_id": "", "reaction": row.text, "line": row.line, "reason": f"{reactions_file}: {row.reason}"}
            for row in file.rejected
        ]
        if rejected and (strict or not records):
            raise InvalidInput("\n".join(row["reason"] for row in rejected[:20]))
    for number, text in enumerate(reactions, start=1):
        parse_reaction(text, called=f"reaction {number}")
        records.append(
            ReactionRecord(f"reaction {number}" if records or len(reactions) > 1 else "reaction", text, (), number)
        )
    if not records:
        raise InvalidInput(
            "no reaction given: name a REACTIONS_FILE, or give one with --reaction 'reactants>>products'"
        )
    return records, rejected


def _print(printer: Output, answer: ScreeningAnswer, show: int, told_lines: set[int]) -> None:
    printer.document(dict(answer))
    for note in answer["notes"]:
        printer.warning(note)
    for rejection in answer["rejected"]:
        if rejection["line"] not in told_lines:
            printer.warning(rejection["reason"])
    for result in answer["results"]:
        _print_result(printer, result, answer, show)


def _print_result(printer: Output, result: ReactionResult, answer: ScreeningAnswer, show: int) -> None:
    hits = result["hits"][:show]
    columns = [name for name in _SHOWN_COLUMNS if any(hit["metadata"].get(name) for hit in hits)]
    rows: list[list[Any]] = [
        [hit["rank"], hit["protein_id"], hit["score"], *(hit["metadata"].get(name) for name in columns)] for hit in hits
    ]
    if "ec" in result:
        columns.append("same EC levels")
        for row, hit in zip(rows, hits, strict=True):
            row.append(f"{shared_levels(result['ec'], hit['metadata'].get('ec'))} of 4")
    title = f"{result['reaction_id']} (checkpoint {answer['checkpoint']}, {answer['screening_set_size']} proteins)"
    printer.rows(title, ["rank", "protein", "score", *columns], rows)
    if result["mapped_reaction"] and result["mapping_confidence"] is not None:
        printer.note(
            f"  atom-mapped by RXNMapper (confidence {result['mapping_confidence']:.2f}): {result['mapped_reaction']}"
        )
    if result["note"]:
        printer.note(f"  {result['note']}")
    for hit in result["hits"]:
        printer.value(f"{result['reaction_id']}\t{hit['rank']}\t{hit['protein_id']}\t{hit['score']:.6f}")
