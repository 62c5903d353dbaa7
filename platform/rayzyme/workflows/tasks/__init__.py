"""The ready-made tasks: from a checkpoint's name to ranked enzymes and a report."""

from rayzyme.workflows.tasks.checkpoint import DownloadCheckpointTask, LoadCheckpointTask, ValidateCheckpointTask
from rayzyme.workflows.tasks.evaluation import EvaluateScreeningTask, GenerateReportTask
from rayzyme.workflows.tasks.screening import BuildScreeningSetTask, RunScreeningTask

__all__ = [
    "BuildScreeningSetTask",
    "DownloadCheckpointTask",
    "EvaluateScreeningTask",
    "GenerateReportTask",
    "LoadCheckpointTask",
    "RunScreeningTask",
    "ValidateCheckpointTask",
]
