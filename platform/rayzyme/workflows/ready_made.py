"""The ready-made workflows: from a checkpoint's name, reactions and proteins to ranked enzymes, figures and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rayzyme.errors import DeviceUnavailable, InvalidInput
from rayzyme.jobs.job import TaskPriority
from rayzyme.resources.drivers import SystemGPUs
from rayzyme.resources.visibility import visible_devices
from rayzyme.settings import get_settings
from rayzyme.settings_sections import ScreeningMode
from rayzyme.workflows.builder import WorkflowBuilder
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks import (
    BuildScreeningSetTask,
    DownloadCheckpointTask,
    EvaluateScreeningTask,
    GenerateReportTask,
    LoadCheckpointTask,
    RunScreeningTask,
    ValidateCheckpointTask,
)
from rayzyme.workflows.tasks.ground_truth import KnownEnzymes
from rayzyme.workflows.tasks.proteins import Proteins
from rayzyme.workflows.tasks.reactions import Reactions
from rayzyme.workflows.tasks.screening_task import DEVICES, checked_word
from rayzyme.workflows.workflow import Workflow

_REFERENCE: Final = "reference"


def create_screening_workflow(
    checkpoint_name: str | Path,
    reactions: Reactions,
    proteins_csv: Proteins | None = None,
    top_k: int | None = 100,
    output_dir: str | Path | None = None,
    device: str = "auto",
    mode: ScreeningMode = "interactive",
    build_screening_set: bool = True,
    *,
    screening_set: str | Path = _REFERENCE,
    filters: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Workflow:
    """Fetch, check and load a checkpoint, build a set of the proteins, and rank it for the reactions.

    Args:
        checkpoint_name: Name of a checkpoint, or a file.
        reactions: A list of reaction SMILES, of records or of mappings, or a file.
        proteins_csv: CSV (`protein_id,sequence[,cif,...]`), FASTA, a folder of structures, or a list of mappings.
        top_k: Hits per reaction; more than the set holds gives all. None takes the settings'.
        output_dir: Folder of the set and the results; None takes `results/screening`.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        mode: "interactive" (one by one, before all batch work) or "batched" (for throughput); same rankings.
        build_screening_set: Whether to build a set; otherwise `screening_set` is ranked.
        screening_set: Name or file of a set, which the checkpoint must have made.
        filters: Which proteins may be hits, as in `rayzyme.screening.filters`.
        strict: Fail at proteins and reactions that cannot be used; otherwise they are listed, and the others go on.

    Raises:
        InvalidInput: A set is to be built and there are no proteins; an unknown device or mode; something that is no reaction.
    """
    output = Path(output_dir or "results/screening")
    builder = _pipeline("screening", f"screen with {checkpoint_name}", checkpoint_name, device)
    if build_screening_set:
        _add_building(builder, proteins_csv, output, device, strict)
    builder.add_task(
        RunScreeningTask(
            _config(
                "run_screening", "build_screening_set" if build_screening_set else "load_checkpoint", device=device
            ),
            reactions,
            screening_set_path=None if build_screening_set else screening_set,
            output_dir=output,
            top_k=top_k,
            mode=mode,
            filters=filters,
            strict=strict,
            release="always" if build_screening_set else "never",
        )
    )
    return builder.build()


def create_full_pipeline(
    checkpoint_name: str | Path,
    reactions: Reactions,
    proteins_csv: Proteins,
    ground_truth_csv: KnownEnzymes,
    top_k: int | None = 100,
    output_dir: str | Path = "results/full_pipeline",
    device: str = "auto",
) -> Workflow:
    """As `create_screening_workflow`, then measure the rankings against known enzymes and write the report.

    Args:
        checkpoint_name: Name of a checkpoint, or a file.
        reactions: A list of reaction SMILES, of records or of mappings, or a file.
        proteins_csv: CSV (`protein_id,sequence[,cif,...]`), FASTA, a folder of structures, or a list of mappings.
        ground_truth_csv: Known enzymes, as `EvaluateScreeningTask` takes them.
        top_k: Hits per reaction; the evaluation ranks the whole set whatever it is.
        output_dir: Folder of everything that is written.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        InvalidInput: An unknown device; something that is no reaction.
    """
    output = Path(output_dir)
    builder = _pipeline("full_pipeline", f"screen with {checkpoint_name} and evaluate", checkpoint_name, device)
    _add_building(builder, proteins_csv, output, device, strict=False)
    # The evaluation asks the same set again, so only its failure lets the screen take it out of memory.
    builder.add_task(
        RunScreeningTask(
            _config("run_screening", "build_screening_set", device=device),
            reactions,
            output_dir=output,
            top_k=top_k,
            release="on failure",
        )
    )
    builder.add_task(
        EvaluateScreeningTask(
            _config("evaluate_screening", "run_screening"), ground_truth_csv, output_dir=output, release="always"
        )
    )
    builder.add_task(GenerateReportTask(_config("generate_report", "evaluate_screening"), output_dir=output))
    return builder.build()


def create_simple_screening_workflow(
    checkpoint_path: str | Path,
    screening_set_path: str | Path,
    reactions: Reactions,
    top_k: int | None = 100,
    output_dir: str | Path = "results/screening",
    device: str = "auto",
) -> Workflow:
    """Load a checkpoint and rank a set that is there: tasks `load_checkpoint` and `run_screening`.

    Args:
        checkpoint_path: File of a checkpoint, or a name.
        screening_set_path: File of a set that this checkpoint made, or a name.
        reactions: A list of reaction SMILES, of records or of mappings, or a file.
        top_k: Hits per reaction; more than the set holds gives all. None takes the settings'.
        output_dir: Folder of the results.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        InvalidInput: An unknown device; something that is no reaction.
    """
    builder = WorkflowBuilder("simple_screening", f"screen {screening_set_path} with {checkpoint_path}")
    builder.set_max_parallel(1).set_fail_fast(True)
    builder.add_task(LoadCheckpointTask(_config("load_checkpoint", device=device), checkpoint_path, device))
    builder.add_task(
        RunScreeningTask(
            _config("run_screening", "load_checkpoint", device=device),
            reactions,
            screening_set_path=screening_set_path,
            output_dir=output_dir,
            top_k=top_k,
        )
    )
    return builder.build()


def create_evaluation_workflow(
    ground_truth_csv: str | Path,
    output_dir: str | Path = "results/evaluation",
    metrics: Sequence[str] | None = None,
    include_plots: bool = True,
) -> Workflow:
    """Measure an earlier screen, `screening_results.json` in the output folder, and write the report.

    Its hits end at their top k, so by default the metrics that these show are computed; see `EvaluateScreeningTask`.

    Args:
        ground_truth_csv: Known enzymes, as `EvaluateScreeningTask` reads them.
        output_dir: Folder of the screen's results, of `evaluation_results.json` and of the report.
        metrics: Names of metrics or of families; None takes all that can be computed.
        include_plots: Draw plots.

    Raises:
        InvalidInput: There is no such metric.
    """
    builder = WorkflowBuilder("evaluation", f"evaluate {output_dir}").set_max_parallel(1).set_fail_fast(True)
    builder.add_task(EvaluateScreeningTask(_config("evaluate_screening"), ground_truth_csv, output_dir, metrics))
    builder.add_task(GenerateReportTask(_config("generate_report", "evaluate_screening"), output_dir, include_plots))
    return builder.build()


def create_set_evaluation_workflow(
    checkpoint_name: str | Path,
    ground_truth_csv: KnownEnzymes,
    screening_set: str | Path = _REFERENCE,
    output_dir: str | Path = "results/evaluation",
    metrics: Sequence[str] | None = None,
    device: str = "auto",
) -> Workflow:
    """Fetch, check and load a checkpoint, rank a whole set for reactions whose enzymes are known, measure, and write the report.

    Args:
        checkpoint_name: Name of a checkpoint, or a file.
        ground_truth_csv: Known enzymes, as `EvaluateScreeningTask` takes them.
        screening_set: Name or file of a set, which the checkpoint must have made.
        output_dir: Folder of `evaluation_results.json` and of the report.
        metrics: Names of metrics or of families; None takes all.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        InvalidInput: An unknown device or metric; something that is no reaction.
    """
    builder = _pipeline("evaluation", f"evaluate {checkpoint_name} on {screening_set}", checkpoint_name, device)
    builder.add_task(
        EvaluateScreeningTask(
            _config("evaluate_screening", "load_checkpoint", device=device),
            ground_truth_csv,
            output_dir,
            metrics,
            screening_set_path=screening_set,
        )
    )
    builder.add_task(GenerateReportTask(_config("generate_report", "evaluate_screening"), output_dir))
    return builder.build()


def _pipeline(name: str, description: str, checkpoint: str | Path, device: str) -> WorkflowBuilder:
    """The beginning that a pipeline has: fetch, check and load a checkpoint."""
    fetching = _config("download_checkpoint", priority=TaskPriority.HIGH)
    return (
        WorkflowBuilder(name, description)
        .set_max_parallel(1)
        .set_fail_fast(True)
        .add_task(DownloadCheckpointTask(fetching, checkpoint))
        .add_task(ValidateCheckpointTask(_config("validate_checkpoint", "download_checkpoint"), checkpoint))
        .add_task(
            LoadCheckpointTask(_config("load_checkpoint", "validate_checkpoint", device=device), checkpoint, device)
        )
    )


def _add_building(builder: WorkflowBuilder, proteins: Proteins | None, output: Path, device: str, strict: bool) -> None:
    if proteins is None:
        raise InvalidInput(
            "a screening set is to be built and proteins_csv is None: give one, or build_screening_set=False"
        )
    config = _config("build_screening_set", "load_checkpoint", device=device)
    builder.add_task(BuildScreeningSetTask(config, proteins, output, strict=strict))


def _config(
    name: str, *depends_on: str, device: str = "cpu", priority: TaskPriority = TaskPriority.NORMAL
) -> TaskConfig:
    return TaskConfig(name, priority=priority, depends_on=depends_on, gpu_required=_needs_gpu(device))


def _needs_gpu(device: str) -> bool:
    """Whether a task for a device asks for a GPU: with "auto" where this machine has one, and no other cluster is named."""
    if checked_word("device", device, DEVICES) != "auto":
        return device == "cuda"
    settings = get_settings()
    is_elsewhere = settings.ray.address is not None or "RAY_ADDRESS" in os.environ
    return settings.resources.gpu.auto_allocate and not is_elsewhere and _has_gpu()


def _has_gpu() -> bool:
    try:
        return bool(visible_devices(SystemGPUs().devices(), os.environ.get("CUDA_VISIBLE_DEVICES")))
    except DeviceUnavailable:
        # A driver that fails gives nothing to ask for.
        return False
