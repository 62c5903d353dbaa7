"""`rayzyme up` and `rayzyme down`: the whole platform on this machine, started and ended."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayzyme.access import is_loopback
from rayzyme.errors import WorkerLost
from rayzyme.settings import Settings, use_settings
from rayzyme_serve.cli.context import Context, OutputOption
from rayzyme_serve.cli.jobs import SCHEMA_VERSION
from rayzyme_serve.cli.output import Output

if TYPE_CHECKING:
    from rayzyme_actors.platform_record import PlatformRecord

_LOOK_S = 1.0
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for the running jobs.", min=0)]


def up_command(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(help="Listen on this address; beyond 127.0.0.1 only with tokens.", show_default=False),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: 8000]", show_default=False)] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Join the Ray cluster at host:port, from its head, and start none.", show_default=False),
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="Logical CPUs of the Ray that is started.", show_default=False)
    ] = None,
    dashboard_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of Ray's dashboard.  [default: 8265]", show_default=False)
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and end everything with Ctrl-C; fail if Ray is lost.")
    ] = False,
    timeout: TimeoutOption = 60.0,
    output: OutputOption = None,
) -> None:
    """Start everything: Ray, the scheduler, the HTTP endpoint with the web page. What runs already is left as it is."""
    own: Context = context.obj
    printer = own.output(output)
    settings = own.settings
    if address is not None:
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    # Before Ray is loaded: how it is to be met depends on them.
    use_settings(settings)
    from rayzyme_serve.running_platform import Wishes, start_platform, stop_platform

    if foreground:
        # Both: a shell starts what it runs in the background without the first.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _as_interrupt)
    try:
        record = start_platform(settings, Wishes(host, port, num_cpus, dashboard_port), printer.note)
        _print(printer, record)
        if foreground:
            printer.note("Ctrl-C ends everything")
            _stay(settings, record)
    except KeyboardInterrupt:
        if not foreground:
            raise
        stop_platform(settings, timeout, printer.note)


def down_command(context: typer.Context, timeout: TimeoutOption = 60.0, output: OutputOption = None) -> None:
    """End what `rayzyme up` started, and nothing else: the endpoint, the scheduler, models and shards, Ray."""
    own: Context = context.obj
    printer = own.output(output)
    from rayzyme_serve.running_platform import stop_platform

    if stop_platform(own.settings, timeout, printer.note):
        printer.note("nothing of it runs any more")
    else:
        printer.note("nothing runs that `rayzyme up` started")


def platform_rows(settings: Settings) -> tuple[dict[str, Any], list[list[Any]]]:
    """What `rayzyme up` runs, for `rayzyme status`: as a document and as rows of a table."""
    from rayzyme_actors.platform_record import read_record

    record = read_record(settings.home)
    if record is None or not record.is_running():
        told = "not started by `rayzyme up`" if record is None else "lost; `rayzyme up` starts it again"
        return {"running": False}, [["Ray", told], ["HTTP endpoint", "not running"]]
    answers = record.endpoint_listens()
    document = {"running": True, **_document(record), "endpoint_answers": answers}
    told = record.endpoint if answers else f"{record.endpoint} does not answer" if record.endpoint else "not running"
    rows = [["Ray", record.address], ["dashboard", record.dashboard or "none"], ["HTTP endpoint", told]]
    return document, rows


def _print(printer: Output, record: PlatformRecord) -> None:
    printer.document({"schema_version": SCHEMA_VERSION, **_document(record)})
    rows = [
        ["web page", f"{record.endpoint}/"],
        ["HTTP API", f"{record.endpoint}/docs"],
        ["Ray dashboard", record.dashboard or "none"],
    ]
    if record.authentication.get("RAY_AUTH_MODE") == "token":
        rows.append(["its token", f"in {_token_file(record)}"])
    rows.append(["Ray", f"{record.address}{'' if record.is_own else ' (joined)'}"])
    printer.rows("Rayzyme runs", ["what", "where"], rows)
    if not is_loopback(record.host):
        printer.warning(
            f"it listens on {record.host}, where tokens travel as they are: put a proxy that speaks HTTPS before it"
        )
    printer.value(record.endpoint)


def _document(record: PlatformRecord) -> dict[str, Any]:
    return {
        "endpoint": record.endpoint,
        "ray": record.address,
        "ray_is_own": record.is_own,
        "dashboard": record.dashboard or None,
        "ray_authentication": dict(record.authentication),
    }


def _token_file(record: PlatformRecord) -> str:
    return record.authentication.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")


def _stay(settings: Settings, record: PlatformRecord) -> None:
    """Until Ctrl-C, or until `rayzyme down` ends it.

    Raises:
        WorkerLost: Ray is gone.
    """
    from rayzyme_actors.platform_record import read_record

    never = threading.Event()
    while record.is_running():
        never.wait(_LOOK_S)
    left = read_record(settings.home)
    if left is None or left.is_ending:
        return
    raise WorkerLost("Ray is gone; `rayzyme up` clears away what it left and starts it again")


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
