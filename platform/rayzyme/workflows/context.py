"""What a task is given when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rayzyme.errors import InvalidInput


def _nobody(*_: Any) -> None:
    """Told where nobody listens."""


@dataclass(slots=True)
class TaskContext:
    """One attempt of a task.

    Attributes:
        task_id: `JOB/TASK`.
        task_name: The task's name in its workflow.
        workflow_id: The job's id.
        parent_task_id: The task whose plan change added this one, else the job's id.
        gpu_ids: GPUs that it was granted; empty where none.
        memory_limit_mb: MB (2^20 bytes) that it may take.
        start_time: When this attempt began, UTC.
        attempt: Number of this attempt, from 1.
        shared_state: The job's state as the task's ancestors left it; what is assigned here is shared when the task completes.
        config: The `task_params` of the task's config.
        progress_callback: Tells how far it is: percentage from 0 to 100, and a message.
        metrics_callback: Notes figures, by name.
        inputs: What each task that it depends on gave, by name.
        services: What the process offers to tasks, such as loaded models; None in a plain process.
        folder: Folder of this attempt; it is made when something is written.
    """

    task_id: str = ""
    task_name: str = ""
    workflow_id: str = ""
    parent_task_id: str = ""
    gpu_ids: Sequence[int] = ()
    memory_limit_mb: float | None = None
    start_time: datetime | None = None
    attempt: int = 1
    shared_state: MutableMapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    progress_callback: Callable[..., None] = _nobody
    metrics_callback: Callable[[Mapping[str, Any]], None] = _nobody
    inputs: Mapping[str, Any] = field(default_factory=dict)
    services: Any = None
    folder: Path | None = None
    written: dict[Path, Path] = field(default_factory=dict, repr=False)

    def output_file(self, final_path: str | Path) -> Path:
        """A path to write a file to that is to appear at `final_path`, once, when this attempt's result is committed.

        Raises:
            InvalidInput: `final_path` is a folder.
        """
        final = Path(final_path).expanduser().absolute()
        if final.is_dir():
            raise InvalidInput(f"{final} is a folder; name a file in it")
        if self.folder is None:
            raise InvalidInput(f"task {self.task_name} has no folder of its own to write {final} to")
        if final not in self.written:
            # A folder for each, so that the name, which some libraries read the format from, stays.
            place = self.folder / "files" / str(len(self.written))
            place.mkdir(parents=True, exist_ok=True)
            self.written[final] = place / final.name
        return self.written[final]
