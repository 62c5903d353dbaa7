"""`rayzyme gpus`: which GPUs there are, what is free, what would fit, and who holds leases on them."""

from __future__ import annotations

import typer

from rayzyme.resources import GPUManager
from rayzyme.resources.gpu import DEFAULT_REQUIRED_MEMORY
from rayzyme_serve.cli.context import Context, OutputOption


def gpus_command(context: typer.Context, output: OutputOption = None) -> None:
    """List this machine's GPUs, their free memory (MB of 2^20 bytes), what would fit, and who holds how much."""
    own: Context = context.obj
    printer = own.output(output)
    with GPUManager.from_settings() as manager:
        gpus = manager.get_available_gpus()
        reasons = {task: manager.explain(task) for task in DEFAULT_REQUIRED_MEMORY} if gpus else {}
    # SQLAlchemy takes its time to load.
    from rayzyme.database.leases import leases_now

    leases = [lease for lease in leases_now(own.settings) if lease["resource"].startswith("gpu:")]
    for gpu in gpus:
        # The driver may fail between two questions.
        gpu["tasks"] = {task: told.get(gpu["index"], "not listed any more") for task, told in reasons.items()}
    printer.document({"schema": "rayzyme.gpus/1", "gpus": gpus, "leases": leases})
    printer.rows(
        "GPUs",
        ["index", "name", "total MB", "free MB", "compute capability"],
        [
            [
                gpu["index"],
                gpu["name"],
                gpu["memory_total"],
                gpu["memory_free"],
                ".".join(map(str, gpu["compute_capability"])),
            ]
            for gpu in gpus
        ],
    )
    for gpu in gpus:
        for task, reason in gpu["tasks"].items():
            printer.note(f"GPU {gpu['index']}, a task like {task} ({DEFAULT_REQUIRED_MEMORY[task]:,} MB): {reason}")
        printer.value(str(gpu["index"]))
    for lease in leases:
        printer.note(f"{lease['owner']} holds {lease['amount']:,.0f} MB of {lease['resource']} for {lease['purpose']}")
