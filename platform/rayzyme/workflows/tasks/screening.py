"""The tasks of a screen: build a set of the user's own proteins, rank a set for reactions."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from rayzyme.checks import whole_number
from rayzyme.errors import CheckpointMismatch, InvalidInput, InvalidProtein, InvalidReaction, NotFound
from rayzyme.models.checkpoint_files import sha256_of
from rayzyme.proteins import Protein, RejectedProtein
from rayzyme.screening import ScreeningSet
from rayzyme.screening.answer import ScreeningAnswer, write_answer
from rayzyme.screening.building import BuildReport, build_screening_set
from rayzyme.screening.importing import read_embeddings
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.screening.screening_set import EmbeddingType
from rayzyme.settings import get_settings
from rayzyme.settings_sections import ScreeningMode
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.result import ModelRef, TaskResult
from rayzyme.workflows.services import Query, ScreeningServices
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks.proteins import Proteins, plain_proteins, proteins_at
from rayzyme.workflows.tasks.reactions import Reactions, plain_reactions, records_of
from rayzyme.workflows.tasks.screening_task import (
    Percentages,
    Release,
    ScreeningTask,
    SetTask,
    Tell,
    checked_word,
    full_path,
    services_of,
    set_address,
    shared_model,
)

SET_FILE = "screening_set.arrow"
# As `rayzyme.screening.importing` reads them; `.npy` is not among them, since its ids are in another file.
_OTHER_LAYOUTS = frozenset({".p", ".pkl", ".pickle", ".npz", ".parquet", ".pq"})
_REJECTED_LISTED = 100
_REASONS_TOLD = 5


class BuildScreeningSetTask(ScreeningTask):
    """Embeds proteins with the shared model as `screening_set.arrow`; shares `screening_set` and `screening_set_path`.

    What was embedded is kept until the set is complete, so that a build that was killed goes on where it stopped.
    """

    uses_actors: ClassVar[bool] = True

    def __init__(
        self,
        config: TaskConfig,
        proteins_csv: Proteins,
        output_dir: str | Path = "results/screening",
        embedding_type: EmbeddingType = "float32",
        strict: bool = False,
    ) -> None:
        """Say of what.

        Args:
            config: How the task runs.
            proteins_csv: CSV (`protein_id,sequence[,cif,...]`), FASTA, a folder of structures, or a list of mappings.
            output_dir: Folder of the set, and of `screening_set.rejected.csv` where proteins were left out.
            embedding_type: How the set stores embeddings.
            strict: Fail at proteins that cannot be used; otherwise they are listed, and the others make the set.

        Raises:
            InvalidInput: There is no such type; something in the list is no protein.
        """
        super().__init__(config)
        self.proteins_csv, self.output_dir = plain_proteins(proteins_csv), full_path(output_dir)
        self.embedding_type: EmbeddingType = checked_word("embedding_type", embedding_type, get_args(EmbeddingType))
        self.strict = strict

    def run(self, context: TaskContext) -> TaskResult:
        """Build it."""
        told = Percentages(context.progress_callback)
        services, model = services_of(context), shared_model(context)
        told.tell(0, f"reading {self._source}")
        proteins = list(proteins_at(self.proteins_csv))
        self._refuse_if_strict([item for item in proteins if isinstance(item, RejectedProtein)])
        report, digest = self._build(context, services, model, proteins, told)
        final = str(Path(self.output_dir) / SET_FILE)
        context.shared_state["screening_set_path"] = final
        context.shared_state["screening_set"] = {
            "path": final, "digest": digest, "proteins": report.proteins, "checkpoint_digest": model.digest,
        }  # fmt: skip
        told.tell(100, f"{report.proteins} proteins, {len(report.rejected)} left out")
        rejected = [
            {"line": item.line, "protein_id": item.protein_id, "reason": item.reason} for item in report.rejected
        ]
        if rejected:
            context.shared_state["proteins_left_out"] = _left_out(rejected)
        output = {
            "path": final, "proteins": report.proteins, "embedded": report.embedded, "reused": report.reused,
            "rejected": len(rejected), "first_rejected": rejected[:_REJECTED_LISTED],
        }  # fmt: skip
        return TaskResult(output=output, metadata={"device": services.computes_on(model)})

    def _build(
        self,
        context: TaskContext,
        services: ScreeningServices,
        model: ModelRef,
        proteins: list[Protein | RejectedProtein],
        told: Percentages,
    ) -> tuple[BuildReport, str]:
        """Build where the next attempt finds what this one embedded; then hand the files over."""
        owner = f"{context.workflow_id}\0{context.task_name}".encode()
        place = get_settings().cache / "building" / hashlib.sha256(owner).hexdigest()[:32]
        encoder = services.protein_encoder(model)
        report = build_screening_set(
            proteins,
            place / SET_FILE,
            encoder,
            encoder.checkpoint,
            dimension=encoder.dimension,
            embedding_type=self.embedding_type,
            progress=told.part(1, 98, "proteins embedded"),
        )
        self._refuse_if_strict(report.rejected)
        digest = ScreeningSet.open(report.path).digest
        for path in (report.path, report.rejected_path):
            if path is not None:
                shutil.move(path, context.output_file(Path(self.output_dir) / path.name))
        shutil.rmtree(place, ignore_errors=True)
        return report, digest

    def _refuse_if_strict(self, rejected: tuple[RejectedProtein, ...] | list[RejectedProtein]) -> None:
        if self.strict and rejected:
            told = "\n".join(
                f"{'' if item.line is None else f'line {item.line}: '}{item.reason}"
                for item in rejected[:_REASONS_TOLD]
            )
            raise InvalidProtein(f"{len(rejected)} protein(s) of {self._source} cannot be used:\n{told}")

    @property
    def _source(self) -> str:
        given = self.proteins_csv
        return given if isinstance(given, str) else f"the {len(given)} that were given"


def _left_out(rejected: list[dict[str, Any]]) -> str:
    """What to tell beside a ranking that lacks some of the proteins."""
    reasons = "; ".join(row["reason"] for row in rejected[:_REASONS_TOLD])
    more = f"; and {len(rejected) - _REASONS_TOLD} more" if len(rejected) > _REASONS_TOLD else ""
    return f"{len(rejected)} protein(s) were left out: {reasons}{more}"


class RunScreeningTask(SetTask):
    """Ranks a set for reactions with the shared model; shares `screening_results`.

    Its output is the answer as `rayzyme.screening.answer` describes it, with `counts` and `files` beside.
    """

    local_arguments: ClassVar[tuple[str, ...]] = ("progress_callback",)

    def __init__(
        self,
        config: TaskConfig,
        reactions: Reactions,
        screening_set_path: str | Path | None = None,
        output_dir: str | Path | None = None,
        top_k: int | None = 100,
        mode: ScreeningMode = "interactive",
        progress_callback: Tell | None = None,
        filters: Mapping[str, Any] | None = None,
        strict: bool = False,
        release: Release = "never",
    ) -> None:
        """Say what is to be ranked for what.

        Args:
            config: How the task runs.
            reactions: A list of reaction SMILES, of records or of mappings, or a file.
            screening_set_path: Name or file of a set; embeddings made elsewhere are converted once. None takes
                `screening_set_path` of the shared state.
            output_dir: Folder for `screening_results.json`, `.csv` and `.parquet`; None writes none.
            top_k: Hits per reaction; more than the set holds gives all, and `notes` says so. None takes the settings'.
            mode: "interactive" (one by one, before all batch work) or "batched" (for throughput); same rankings.
            progress_callback: Told (percentage, message) in the program that submits.
            filters: Which proteins may be hits, as in `rayzyme.screening.filters`.
            strict: Fail at the first reaction that cannot be screened; otherwise it is listed under `rejected`.
            release: When the set is taken out of memory afterwards.

        Raises:
            InvalidInput: Unknown mode, or something that is no reaction.
            ValidationError: `top_k` is no whole number of at least 1.
        """
        super().__init__(config, release)
        self.reactions = plain_reactions(reactions)
        self.screening_set_path = None if screening_set_path is None else set_address(screening_set_path)
        self.output_dir = None if output_dir is None else full_path(output_dir)
        self.top_k = None if top_k is None else whole_number("top_k", top_k, at_least=1)
        self.mode: ScreeningMode = checked_word("mode", mode, get_args(ScreeningMode))
        self.progress_callback = progress_callback
        self.filters = None if filters is None else dict(filters)
        self.strict = strict

    def run(self, context: TaskContext) -> TaskResult:
        """Screen."""
        told = Percentages(context.progress_callback, self.progress_callback)
        services, model = services_of(context), shared_model(context)
        address = self._set(context, services, model)
        records, rejected = records_of(self.reactions)
        if rejected and self.strict:
            raise InvalidReaction("\n".join(row["reason"] for row in rejected[:_REASONS_TOLD]))
        if not records:
            raise InvalidInput(f"task {context.task_name} has no reaction to screen; give it at least one")
        told.tell(1, f"{len(records)} reactions")
        top_k = self.top_k or get_settings().tasks.screening.top_k
        query = Query(model, address, records, top_k, self.mode, self.filters, self.strict)
        answer = services.screen(query, told.part(2, 95, "reactions screened"))
        answer["rejected"] = [*rejected, *answer["rejected"]]
        answer["notes"] += [note for note in [context.shared_state.get("proteins_left_out")] if note is not None]
        if not answer["results"]:
            reasons = "\n".join(row["reason"] for row in answer["rejected"][:_REASONS_TOLD])
            raise InvalidReaction(f"none of the {len(answer['rejected'])} reactions could be screened:\n{reasons}")
        files = self._write(answer, context)
        context.shared_state["screening_results"] = answer
        counts = {
            "reactions": len(answer["results"]) + len(answer["rejected"]), "screened": len(answer["results"]),
            "rejected": len(answer["rejected"]), "hits": sum(len(result["hits"]) for result in answer["results"]),
        }  # fmt: skip
        told.tell(100, f"{counts['screened']} reactions screened, {counts['rejected']} rejected")
        return TaskResult(
            output={**answer, "counts": counts, "files": files},
            metadata={"device": services.computes_on(model)},
            metrics={**answer["timing"], **counts},
        )

    def _set(self, context: TaskContext, services: ScreeningServices, model: ModelRef) -> str:
        """The set to rank, which is there, and whose embeddings can be compared with the model's."""
        given = self.screening_set_path or context.shared_state.get("screening_set_path")
        if given is None:
            raise NotFound(
                f"task {context.task_name} has no screening set: give it screening_set_path (a name such as 'reference', or a "
                f"file), or let it depend on a BuildScreeningSetTask"
            )
        path = ScreeningSetLibrary(get_settings().screening_sets).resolve(given)
        address = str(_converted(path, services, model)) if path.suffix in _OTHER_LAYOUTS else str(given)
        opened = self.uses(address)
        if opened.dimension != model.dimension:
            raise CheckpointMismatch(
                f"screening set {given} has embeddings of {opened.dimension} dimensions, checkpoint {model.checkpoint} makes "
                f"some of {model.dimension}: take the set that was made with this checkpoint"
            )
        return address

    def _write(self, answer: ScreeningAnswer, context: TaskContext) -> list[str]:
        if self.output_dir is None:
            return []
        final = [str(Path(self.output_dir) / f"screening_results.{kind}") for kind in ("json", "csv", "parquet")]
        places = {Path(path).name: context.output_file(path) for path in final}
        with tempfile.TemporaryDirectory(dir=context.folder) as scratch:
            for path in write_answer(answer, Path(scratch)):
                path.replace(places[path.name])
        return final


def _converted(path: Path, services: ScreeningServices, model: ModelRef) -> Path:
    """A set made of embeddings in another layout, by a reader that runs no code; made once for each file and checkpoint."""
    made = get_settings().cache / "converted_sets" / f"{sha256_of(path)[:32]}-{model.digest[:16]}.arrow"
    if not made.is_file():
        read = read_embeddings(path)
        made.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = services.protein_encoder(model).checkpoint
        ScreeningSet.from_arrays(read.protein_ids, read.embeddings, read.metadata, checkpoint).save(made)
    return made
