"""`rayzyme data`: look into the data store, check it and clean it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rayzyme.errors import DamagedFile
from rayzyme.storage import DataHandler
from rayzyme_serve.cli.audit import audited
from rayzyme_serve.cli.context import Context, OutputOption

app = typer.Typer(help="Stored structures and trajectories.", no_args_is_help=True)

FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Another store than that of RAYZYME_HOME.", show_default=False)
]


@app.command("list")
def list_command(
    context: typer.Context,
    kind: Annotated[
        Literal["structure", "trajectory"] | None, typer.Option(help="Only these.", show_default=False)
    ] = None,
    folder: FolderOption = None,
    output: OutputOption = None,
) -> None:
    """List what is stored, the longest unused first."""
    printer = context.obj.output(output)
    with _store(context.obj, folder) as store:
        entries, stats = store.list_entries(kind), store.get_cache_stats()
    printer.document({"schema": "rayzyme.data.list/1", "entries": entries, "stats": stats})
    printer.rows(
        f"{stats['num_entries']} entries, {stats['total_size_gb']:.3f} GB of {stats['max_size_gb']:g} GB",
        ["key", "kind", "id", "bytes", "last used"],
        [
            [
                entry["key"][:12],
                entry["kind"],
                ascii(entry["data_id"])[1:-1][:60],
                entry["size"],
                _day(entry["last_used"]),
            ]
            for entry in entries
        ],
    )
    for entry in entries:
        printer.value(entry["key"])


@app.command("verify")
def verify_command(context: typer.Context, folder: FolderOption = None, output: OutputOption = None) -> None:
    """Read every byte. Damaged entries are set aside in `bad/`; ends with 4 if there are any."""
    own: Context = context.obj
    printer = own.output(output)
    with _store(own, folder) as store:
        entries = len(store.list_entries())
        bad = store.verify()
        if bad:
            with audited() as record:
                for key in bad:
                    record(f"data:{key}", "data verify: gone, or damaged and set aside", {})
        place = store.cache_dir
    printer.document({"schema": "rayzyme.data.verify/1", "entries": entries, "bad": bad})
    for key in bad:
        printer.value(key)
    if bad:
        raise DamagedFile(f"{len(bad)} of {entries} entries are gone or damaged: {', '.join(bad)}; see {place / 'bad'}")
    printer.note(f"{entries} entries, every byte as it was written")


@app.command("clean")
def clean_command(
    context: typer.Context,
    max_age_days: Annotated[
        float | None,
        typer.Option(help="Also what was not used for so many days.", min=0, show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    folder: FolderOption = None,
    output: OutputOption = None,
) -> None:
    """Remove intermediates that nobody needs any more, and with --max-age-days what was long unused."""
    own: Context = context.obj
    printer = own.output(output)
    with _store(own, folder) as store:
        if dry_run:
            gone = store.cleanup(max_age_days, dry_run=True)
        else:
            with audited() as record:
                gone = store.cleanup(max_age_days)
                for row in gone:
                    record(f"data:{row['key']}", f"data clean: {row['reason']}", _told(row))
    printer.document({"schema": "rayzyme.data.clean/1", "dry_run": dry_run, "removed": gone})
    printer.rows(
        "Would be removed" if dry_run else "Removed",
        ["key", "kind", "id", "bytes", "why"],
        [[row["key"][:12], row["kind"], ascii(row["data_id"])[1:-1][:60], row["size"], row["reason"]] for row in gone],
    )
    for row in gone:
        printer.value(row["key"])


@contextmanager
def _store(own: Context, folder: Path | None) -> Iterator[DataHandler]:
    with DataHandler(folder or own.settings.home / "data") as store:
        yield store


def _told(row: dict[str, Any]) -> dict[str, Any]:
    # A surrogate half would not pass through the database.
    return {"data_id": ascii(row["data_id"])[1:-1], "kind": row["kind"], "size": row["size"]}


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
