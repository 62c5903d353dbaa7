"""`rayzyme gpus`: which GPUs there are, what is free, and who holds leases on them."""

from __future__ import annotations

import typer

from rayzyme.resources import GPUManager
from rayzyme.resources.gpu import DEFAULT_REQUIRED_MEMORY
from rayzyme_serve.cli.context import OutputOption


def gpus_command(context: typer.Context, output: OutputOption = None) -> None:
    """List this machine's GPUs, their free memory (MB of 2^20 bytes) and why a task would get them or not."""
    printer = context.obj.output(output)
    with GPUManager.from_settings() as manager:
        gpus = manager.get_available_gpus()
        reasons = {task: manager.explain(task) for task in DEFAULT_REQUIRED_MEMORY} if gpus else {}
    documents = [{**gpu, "tasks": {task: told[gpu["index"]] for task, told in reasons.items()}} for gpu in gpus]
    printer.document({"schema": "rayzyme.gpus/1", "gpus": documents})
    printer.rows(
        "GPUs",
        ["index", "name", "total MB", "free MB", "compute capability", *reasons],
        [
            [gpu["index"], gpu["name"], gpu["memory_total"], gpu["memory_free"], ".".join(map(str, gpu["compute_capability"])),
             *(told[gpu["index"]] for told in reasons.values())]
            for gpu in gpus
        ],
    )  # fmt: skip
    for gpu in gpus:
        printer.value(str(gpu["index"]))
