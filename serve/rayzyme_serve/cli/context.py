"""What every command starts from: the settings and how to print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rayzyme.settings import Settings
from rayzyme_serve.cli.output import JsonOutput, Output, OutputFormat, QuietOutput, TableOutput

OutputOption = Annotated[
    OutputFormat | None,
    typer.Option("--output", "-o", help="How to print results (as before the command).", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As --output json.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu or cuda. auto takes GPUs where there are any.", show_default=False),
]

_OUTPUTS: dict[OutputFormat, type[Output]] = {
    OutputFormat.TABLE: TableOutput,
    OutputFormat.JSON: JsonOutput,
    OutputFormat.QUIET: QuietOutput,
}


@dataclass(frozen=True, slots=True)
class Context:
    """The settings in force and the output format that was asked for before the command's name."""

    settings: Settings
    output_format: OutputFormat

    def output(self, chosen: OutputFormat | None, as_json: bool = False) -> Output:
        """The printer; a format given after the command's name wins, and `--json` is short for one."""
        return _OUTPUTS[OutputFormat.JSON if as_json else chosen or self.output_format]()
