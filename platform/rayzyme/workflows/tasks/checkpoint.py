"""The tasks around a checkpoint: fetch it, check it, load it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rayzyme.errors import NotFound
from rayzyme.models.checkpoints import default_registry
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.result import TaskResult
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks.screening_task import (
    DEVICES,
    Percentages,
    ScreeningTask,
    checked_word,
    checkpoint_address,
    services_of,
)


class DownloadCheckpointTask(ScreeningTask):
    """Makes a checkpoint present; shares `checkpoint_path`.

    A download that broke off is resumed where its server can prove that the rest belongs to it.
    """

    def __init__(self, config: TaskConfig, checkpoint_name: str | Path, force: bool = False) -> None:
        """Say which.

        Args:
            config: How the task runs.
            checkpoint_name: Name of the settings' or built-in sources; a file needs no download and is only looked for.
            force: Fetch a named one again although it is present.
        """
        super().__init__(config)
        self.checkpoint_name, self.force = checkpoint_address(checkpoint_name), force

    def run(self, context: TaskContext) -> TaskResult:
        """Fetch it. Errors as `CheckpointRegistry.fetch`; a retry goes on with what is there."""
        told = Percentages(context.progress_callback)
        registry = default_registry()

        def received(done: int, total: int | None) -> None:
            if total:
                told.tell(99 * done / total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")

        if self.checkpoint_name in registry.names():
            path = registry.fetch(self.checkpoint_name, received, self.force)
        else:
            path = registry.resolve(self.checkpoint_name)
        context.shared_state["checkpoint_path"] = str(path)
        told.tell(100, f"checkpoint {self.checkpoint_name} is at {path}")
        return TaskResult(output={"checkpoint": self.checkpoint_name, "path": str(path), "bytes": path.stat().st_size})


class _CheckpointTask(ScreeningTask):
    """A task on a checkpoint that is present."""

    checkpoint_path: str | None

    def address(self, context: TaskContext) -> str:
        """The checkpoint of the constructor, else the one that an earlier task shares.

        Raises:
            NotFound: Neither.
        """
        address = self.checkpoint_path or context.shared_state.get("checkpoint_path")
        if not address:
            raise NotFound(
                f"task {context.task_name} has no checkpoint: give it checkpoint_path, or let it depend on a "
                f"DownloadCheckpointTask, which shares 'checkpoint_path'"
            )
        return str(address)


class ValidateCheckpointTask(_CheckpointTask):
    """Checks digest, format, parameters and a forward pass; nothing is loaded from a file whose digest or format is wrong."""

    def __init__(self, config: TaskConfig, checkpoint_path: str | Path | None = None) -> None:
        """Say which.

        Args:
            config: How the task runs.
            checkpoint_path: Name or file; None takes `checkpoint_path` of the shared state. A digest to compare with is recorded
                for names only.
        """
        super().__init__(config)
        self.checkpoint_path = None if checkpoint_path is None else checkpoint_address(checkpoint_path)

    def run(self, context: TaskContext) -> TaskResult:
        """Check it; the first check that fails is the error."""
        told = Percentages(context.progress_callback)
        address = self.address(context)
        told.tell(0, f"checking {address}")
        report = default_registry().validate(address)
        report.raise_for_failure()
        told.tell(100, f"{address} is well")
        checks = [{"name": check.name, "ok": check.ok, "reason": check.reason} for check in report.checks]
        return TaskResult(output={"checkpoint": report.name, "path": str(report.path), "checks": checks})


class LoadCheckpointTask(_CheckpointTask):
    """Loads a checkpoint into an actor that outlives the job, where no other job has; shares `model`, a `ModelRef`."""

    uses_actors: ClassVar[bool] = True

    def __init__(self, config: TaskConfig, checkpoint_path: str | Path | None = None, device: str = "auto") -> None:
        """Say which and where.

        Args:
            config: How the task runs.
            checkpoint_path: Name or file; None takes `checkpoint_path` of the shared state.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".

        Raises:
            InvalidInput: There is no such device.
        """
        super().__init__(config)
        self.checkpoint_path = None if checkpoint_path is None else checkpoint_address(checkpoint_path)
        self.device = checked_word("device", device, DEVICES)

    def run(self, context: TaskContext) -> TaskResult:
        """Load it, or find it loaded."""
        told = Percentages(context.progress_callback)
        address, services = self.address(context), services_of(context)
        told.tell(0, f"loading {address}")
        model = context.shared_state["model"] = services.load(address, self.device)
        told.tell(100, f"{address} is loaded")
        return TaskResult(output=model, metadata={"device": services.computes_on(model)})
