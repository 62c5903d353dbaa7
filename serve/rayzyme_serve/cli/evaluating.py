"""`rayzyme evaluate`: how well a checkpoint ranks known enzymes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rayzyme.chemistry import read_reactions
from rayzyme.errors import InvalidInput
from rayzyme.screening.report import write_evaluation_report
from rayzyme_serve.cli.context import Context, DeviceOption, OutputOption


def evaluate_command(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: a name or a file.")],
    reactions_file: Annotated[Path, typer.Argument(help="CSV with reaction_id,reaction_smiles,known_enzymes.")],
    screening_set: Annotated[
        str, typer.Option("--screening-set", "-s", help="Name or file of a screening set.")
    ] = "reference",
    training: Annotated[
        Path | None,
        typer.Option(help="Reactions that the model was trained on; they are left out.", show_default=False),
    ] = None,
    device: DeviceOption = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for evaluation_results.json and the report.")] = Path(
        "results"
    ),
    output: OutputOption = None,
) -> None:
    """Rank the whole set for reactions whose enzymes are known, and measure (BEDROC, enrichment, AUROC, ...)."""
    own: Context = context.obj
    printer = own.output(output)
    file = read_reactions(reactions_file)
    for row in file.rejected:
        printer.warning(f"{reactions_file}: {row.reason}")
    if not any(record.known_enzymes for record in file.records):
        raise InvalidInput(
            f"{reactions_file} names no known enzymes: it needs the column known_enzymes (ids joined by commas)"
        )
    seen = [record.reaction for record in read_reactions(training).records] if training is not None else []
    from rayzyme_actors.screening import Screener

    screener = Screener(checkpoint, screening_set, device=device, settings=own.settings)
    with printer.progress("ranking") as tick:
        report = screener.evaluate(file.records, training_reactions=seen, progress=tick)
    document = {
        "schema": "rayzyme.evaluation/1",
        "checkpoint": screener.checkpoint.name,
        "checkpoint_digest": screener.checkpoint.digest,
        "screening_set": screening_set,
        **report.to_dict(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "evaluation_results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = write_evaluation_report(
        report,
        output_dir / "report.html",
        checkpoint=screener.checkpoint.name,
        checkpoint_digest=screener.checkpoint.digest,
        screening_set=screening_set,
    )
    printer.document(document)
    rows = [[name, estimate.mean, estimate.low, estimate.high] for name, estimate in report.metrics.items()]
    printer.rows(
        f"{len(report.reactions)} reactions, {report.num_actives} known enzymes, {report.num_total} proteins",
        ["metric", "mean", "95 % low", "95 % high"],
        rows,
    )
    for name, estimate in report.metrics.items():
        printer.value(f"{name}\t{estimate.mean:.6f}")
    if report.excluded:
        printer.note(f"{len(report.excluded)} reaction(s) left out (see evaluation_results.json)")
    printer.note(f"report: {page.resolve()}")
