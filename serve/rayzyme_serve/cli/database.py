"""`rayzyme db`: bring the database up to date, check it, verify its audit log, remove what is old."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from rayzyme_serve.cli.context import Context, OutputOption

SCHEMA = "rayzyme.database/1"

app = typer.Typer(no_args_is_help=True, help="Look after the database.")


@app.command("upgrade")
def upgrade_command(context: typer.Context, output: OutputOption = None) -> None:
    """Bring the database to this version's tables. Stop what uses it before, and on PostgreSQL make a copy first."""
    own: Context = context.obj
    printer = own.output(output)
    # SQLAlchemy takes its time to load.
    from rayzyme.database.database import SCHEMA_VERSION, upgrade_database

    with closing(upgrade_database()) as database:
        printer.note(f"{database.url} has schema version {SCHEMA_VERSION}")
        printer.document({"schema": SCHEMA, "url": database.url, "version": SCHEMA_VERSION})
    printer.value(SCHEMA_VERSION)


@app.command("check")
def check_command(context: typer.Context, output: OutputOption = None) -> None:
    """Compare the tables with what this version expects; the exit code is 1 where they differ."""
    own: Context = context.obj
    printer = own.output(output)
    from rayzyme.database import open_database
    from rayzyme.database.administration import differences

    with closing(open_database()) as database:
        found = differences(database)
        printer.document({"schema": SCHEMA, "url": database.url, "differences": found})
    for difference in found:
        printer.warning(difference)
        printer.value(difference)
    if found:
        raise typer.Exit(1)
    printer.note("the tables are as they should be")


@app.command("verify")
def verify_command(context: typer.Context, output: OutputOption = None) -> None:
    """Check that no line of the audit log was altered or removed; the exit code is 1 where one was, which is named."""
    own: Context = context.obj
    printer = own.output(output)
    from rayzyme.database import open_database
    from rayzyme.database.administration import first_altered

    with closing(open_database()) as database:
        lines, altered = first_altered(database)
    told = None if altered is None else {"subject": altered.subject, "seq": altered.seq, "what": altered.what}
    printer.document({"schema": SCHEMA, "lines": lines, "altered": told})
    if altered is not None:
        printer.warning(f"line {altered.seq} of {altered.subject}: {altered.what}")
        printer.value(f"{altered.subject} {altered.seq}")
        raise typer.Exit(1)
    printer.note(f"{lines} lines are as they were written")


@app.command("prune")
def prune_command(
    context: typer.Context,
    days: Annotated[int, typer.Option(help="Remove jobs that ended more than so many days ago.", min=0)],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it is only shown.")] = False,
    output: OutputOption = None,
) -> None:
    """Show which old jobs would be removed; with --yes archive their stories under $RAYZYME_HOME/archive and remove them.

    Their folders under $RAYZYME_HOME/runs, with logs and stored results, go with them; files that they published stay.
    """
    own: Context = context.obj
    printer = own.output(output)
    from rayzyme.database import open_database
    from rayzyme.database.administration import prunable, prune

    now = datetime.now(UTC)
    before, file = now - timedelta(days=days), None
    with closing(open_database()) as database:
        found = prunable(database, before, own.settings.runs)
        if yes:
            found, file = prune(database, before, own.settings.home / "archive", own.settings.runs, now)
    printer.document(
        {
            "schema": SCHEMA,
            "jobs": found.jobs,
            "events": found.events,
            "folders": found.space.folders,
            "bytes": found.space.bytes,
            "before": before.isoformat(timespec="seconds"),
            "removed": yes,
            "archive": None if file is None else str(file),
        }
    )
    span = (
        "" if found.first is None or found.last is None else f", ended {found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}"
    )
    what = f"{found.jobs} jobs with {found.events} lines of their stories{span}"
    what += f", and {found.space.folders} folders of {found.space.bytes:,} bytes"
    if file is not None:
        printer.note(f"removed {what}; the stories are in {file}")
    elif yes and found.space.folders:
        printer.note(f"removed {what}, which was left over")
    else:
        printer.note(f"{what}: nothing to remove" if not found.jobs else f"would remove {what}; --yes does it")
    printer.value(str(found.jobs))
