"""The tasks after a screen: measure how well known enzymes were ranked, and write the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayzyme.chemistry import read_reactions
from rayzyme.errors import NotFound
from rayzyme.screening.report import write_evaluation_report, write_screening_report
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.result import ModelRef, TaskResult
from rayzyme.workflows.services import ScreeningServices
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks.ground_truth import GroundTruth, KnownEnzymes, ground_truth_of, plain_known_enzymes
from rayzyme.workflows.tasks.measuring import checked_metrics, evaluate_hits, with_chosen_metrics
from rayzyme.workflows.tasks.screening_task import (
    Percentages,
    Release,
    ScreeningTask,
    SetTask,
    full_path,
    services_of,
    set_address,
)
from rayzyme.workflows.tasks.text_report import text_report

RESULTS_FILE = "screening_results.json"
EVALUATION_FILE = "evaluation_results.json"


class EvaluateScreeningTask(SetTask):
    """Measures a screen against known enzymes; shares `evaluation_results`, and `screening_results` where it read them.

    With `model` and `screening_set_path` in the shared state it ranks the whole set again, for exact metrics. Without a model it
    takes the hits in `screening_results` of the shared state or of the output folder's `screening_results.json`. These lists end
    at their top k: an enzyme behind the last hit has no rank there, so only `TopK_n` and `HitRate@n` with n up to k are known,
    and any other metric is refused. Where there are screening results, the reactions that were screened are measured, else all.
    """

    def __init__(
        self,
        config: TaskConfig,
        ground_truth_csv: KnownEnzymes,
        output_dir: str | Path = "results/evaluation",
        metrics: Sequence[str] | None = None,
        training_reactions_csv: str | Path | None = None,
        release: Release = "never",
        screening_set_path: str | Path | None = None,
    ) -> None:
        """Say what is known.

        Args:
            config: How the task runs.
            ground_truth_csv: `reaction_id,reaction_smiles,known_enzymes` (ids with commas between them, in quotes), or a row for
                each pair, `reaction_smiles,protein_id`. Or a list of reactions with `known_enzymes`.
            output_dir: Folder for `evaluation_results.json`.
            metrics: Names as in the report (`BEDROC_85`, `TopK_10`, `EF_1%`, `AUROC`, `AUPRC`, `HitRate@10`) or of families
                (`BEDROC`). None takes all that can be computed.
            training_reactions_csv: Reactions that the checkpoint was trained on; they are left out and counted.
            release: When the set is taken out of memory afterwards.
            screening_set_path: Name or file of a set to rank. None takes `screening_set_path` of the shared state.

        Raises:
            InvalidInput: There is no such metric; something in a list is no reaction.
        """
        super().__init__(config, release)
        self.ground_truth_csv, self.output_dir = plain_known_enzymes(ground_truth_csv), full_path(output_dir)
        self.screening_set_path = None if screening_set_path is None else set_address(screening_set_path)
        self.metrics = None if metrics is None else checked_metrics(metrics)
        self.training_reactions_csv = None if training_reactions_csv is None else full_path(training_reactions_csv)

    def run(self, context: TaskContext) -> TaskResult:
        """Measure."""
        told = Percentages(context.progress_callback)
        truth = ground_truth_of(self.ground_truth_csv)
        answer = self._answer(context)
        if answer is not None:
            truth = truth.of_reactions([result["reaction"] for result in answer["results"]])
        told.tell(2, f"{len(truth.records)} reactions with known enzymes")
        model = context.shared_state.get("model")
        screening_set = self.screening_set_path or context.shared_state.get("screening_set_path")
        training = self._training()
        metadata: dict[str, Any] = {}
        if isinstance(model, ModelRef) and screening_set is not None:
            services = services_of(context)
            metadata["device"] = services.computes_on(model)
            document = self._ranked(services, model, str(screening_set), truth, training, told)
        elif answer is not None:
            document = evaluate_hits(answer, truth.records, training)
        else:
            raise NotFound(
                f"task {context.task_name} has nothing to evaluate: neither 'model' and 'screening_set_path' nor "
                f"'screening_results' in the shared state, and no {Path(self.output_dir) / RESULTS_FILE}"
            )
        document = {**with_chosen_metrics(document, self.metrics), "ground_truth": truth.counts()}
        target = context.output_file(Path(self.output_dir) / EVALUATION_FILE)
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        context.shared_state["evaluation_results"] = document
        told.tell(100, f"{document['num_reactions']} reactions evaluated")
        return TaskResult(output=document, metadata=metadata)

    def _answer(self, context: TaskContext) -> Mapping[str, Any] | None:
        """What was screened: in this job, else in an earlier one with this output folder."""
        answer: Mapping[str, Any] | None = context.shared_state.get("screening_results")
        file = Path(self.output_dir) / RESULTS_FILE
        if answer is None and "model" not in context.shared_state and file.is_file():
            answer = json.loads(file.read_text(encoding="utf-8"))
            context.shared_state["screening_results"] = answer
        return answer

    def _training(self) -> list[str]:
        if self.training_reactions_csv is None:
            return []
        return [record.reaction for record in read_reactions(self.training_reactions_csv).records]

    def _ranked(
        self,
        services: ScreeningServices,
        model: ModelRef,
        screening_set: str,
        truth: GroundTruth,
        training: Sequence[str],
        told: Percentages,
    ) -> dict[str, Any]:
        self.uses(screening_set)
        report = services.evaluate(model, screening_set, truth.records, training, told.part(3, 95, "reactions ranked"))
        return {
            "checkpoint": services.protein_encoder(model).checkpoint.name,
            "checkpoint_digest": model.digest,
            "screening_set": screening_set,
            "ranking": "full",
            **report.to_dict(),
        }


class GenerateReportTask(ScreeningTask):
    """Writes `report.txt` and `report.html` of `screening_results` and `evaluation_results` of the shared state.

    With both, `report.html` is the evaluation and `screening_report.html` the hits. A plot that cannot be drawn is left out
    with a warning.
    """

    def __init__(
        self, config: TaskConfig, output_dir: str | Path = "results/evaluation", include_plots: bool = True
    ) -> None:
        """Say where.

        Args:
            config: How the task runs.
            output_dir: Folder of the report.
            include_plots: Draw plots. The page of an evaluation is made of them; without, `report.txt` has its figures.
        """
        super().__init__(config)
        self.output_dir, self.include_plots = full_path(output_dir), include_plots

    def run(self, context: TaskContext) -> TaskResult:
        """Write it."""
        told = Percentages(context.progress_callback)
        answer = context.shared_state.get("screening_results")
        evaluation = context.shared_state.get("evaluation_results")
        if answer is None and evaluation is None:
            raise NotFound(
                f"task {context.task_name} has nothing to report: the shared state has neither 'screening_results' nor "
                f"'evaluation_results'; let it depend on a RunScreeningTask or an EvaluateScreeningTask"
            )
        final = [self._text(context, answer, evaluation)]
        told.tell(30, "report.txt is written")
        final += self._pages(context, answer, evaluation)
        told.tell(100, f"{len(final)} files")
        return TaskResult(output={"files": final})

    def _text(
        self, context: TaskContext, answer: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None
    ) -> str:
        path = Path(self.output_dir) / "report.txt"
        context.output_file(path).write_text(text_report(answer, evaluation), encoding="utf-8")
        return str(path)

    def _pages(
        self, context: TaskContext, answer: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None
    ) -> list[str]:
        pages: list[str] = []
        if evaluation is not None and self.include_plots:
            path = Path(self.output_dir) / "report.html"
            told = {key: evaluation.get(key) for key in ("checkpoint", "checkpoint_digest", "screening_set")}
            write_evaluation_report(evaluation, context.output_file(path), **told)
            pages.append(str(path))
        if answer is not None:
            path = Path(self.output_dir) / ("screening_report.html" if pages else "report.html")
            write_screening_report(answer, context.output_file(path))
            pages.append(str(path))
        return pages
