"""`rayzyme token`: who may use the HTTP endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rayzyme.access import Role, local_caller
from rayzyme.errors import InvalidInput
from rayzyme_serve.cli.context import Context, OutputOption

if TYPE_CHECKING:
    from rayzyme.access import TokenStore

SCHEMA: Final = "rayzyme.tokens/1"
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"(\d{1,9})([smhdw])")

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke access tokens of the HTTP endpoint.")


@app.command("create")
def create_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it: letters, digits and . _ @ -")],
    owner: Annotated[
        str | None, typer.Option(help="Who owns the jobs that it submits. Without it: you.", show_default=False)
    ] = None,
    role: Annotated[
        Role, typer.Option(help="viewer reads, user also submits jobs and cancels their own, admin does everything.")
    ] = Role.USER,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 12h, 30d, 8w. Without it: never.", show_default=False)
    ] = None,
    output: OutputOption = None,
) -> None:
    """Make a token. It is shown this once; only its digest is kept. The first one ends the open doors on loopback."""
    own: Context = context.obj
    printer = own.output(output)
    span = None if expires is None else _seconds(expires)
    with _token_store() as store:
        token, secret = store.create(name, owner or local_caller().owner, role, span)
    until = "for ever" if token.expires_at is None else f"until {token.expires_at:%Y-%m-%d %H:%M} UTC"
    printer.note(f"token {token.name!r} of {token.owner}, role {token.role}, {until}; it is not shown again:")
    printer.line(secret)
    printer.document({"schema": SCHEMA, "token": token.document(datetime.now(UTC)), "secret": secret})
    printer.value(secret)


@app.command("list")
def list_command(context: typer.Context, output: OutputOption = None) -> None:
    """Show all tokens that were ever made; --output quiet: the names of the valid ones."""
    own: Context = context.obj
    printer = own.output(output)
    now = datetime.now(UTC)
    with _token_store() as store:
        tokens = store.list()
    if not tokens:
        printer.note("no token was made yet; `rayzyme token create NAME` makes one")
    else:
        printer.rows(
            f"{len(tokens)} tokens",
            ["Id", "Name", "Owner", "Role", "State", "Created", "Expires"],
            [
                [t.id, t.name, t.owner, t.role, t.state(now), f"{t.created_at:%Y-%m-%d %H:%M}", _day(t.expires_at)]
                for t in tokens
            ],
        )
    printer.document({"schema": SCHEMA, "tokens": [token.document(now) for token in tokens]})
    for token in tokens:
        if token.state(now) == "valid":
            printer.value(token.name)


@app.command("revoke")
def revoke_command(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Its name, or its number.")],
    output: OutputOption = None,
) -> None:
    """Refuse a token from now on; replicas that run know it within 5 seconds."""
    own: Context = context.obj
    printer = own.output(output)
    with _token_store() as store:
        revoked = store.revoke(token)
    printer.note(f"token {revoked.name!r} of {revoked.owner} is revoked")
    printer.document({"schema": SCHEMA, "token": revoked.document(datetime.now(UTC))})
    printer.value(revoked.name)


@contextmanager
def _token_store() -> Iterator[TokenStore]:
    # SQLAlchemy takes its time to load.
    from rayzyme.access import TokenStore
    from rayzyme.database import open_database

    with closing(open_database()) as database:
        yield TokenStore(database)


def _seconds(span: str) -> float:
    found = _SPAN.fullmatch(span.strip().lower())
    if found is None:
        raise InvalidInput(f"--expires {span!r} is no time; write a number and s, m, h, d or w, such as 30d")
    return float(int(found[1]) * _SECONDS[found[2]])


def _day(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
