"""What can be submitted as a job over HTTP, and the workflow that each request becomes.

Nothing in a request is a path: checkpoints and sets go by the names that the server's owner gave them, reactions and proteins
stand in the request itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayzyme.jobs.job import TaskPriority
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.screening.filters import matching_rows
from rayzyme.screening.library import REFERENCE, ScreeningSetLibrary
from rayzyme.settings import Settings, get_settings
from rayzyme.settings_sections import ScreeningMode, ServeSettings
from rayzyme.workflows import (
    Workflow,
    create_full_pipeline,
    create_screening_workflow,
    create_set_evaluation_workflow,
    create_simple_screening_workflow,
)
from rayzyme_serve.plain_json import PlainJson

Name = Annotated[str, Field(min_length=1, max_length=256)]
_PEROXIDE, _ACETATE = "OO.OO>>O=O.O.O", "CC(=O)OCC.O>>CC(=O)O.CCO"
_SEQUENCE = (
    "MSDKIIHLTDDSFDTDVLKADGAILVDFWAEWCGPCKMIAPILDEIADEYQGKLTVAKLNIDQNPGTAPKYGIRGIPTLLLFKNGEVAATKVGALSKGQLKEFLDANLA"
)


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReactionRow(_Wire):
    """A reaction with what is known of it."""

    reaction: Annotated[str, Field(min_length=1, description="Reaction SMILES, reactants>>products.")]
    reaction_id: Annotated[str | None, Field(max_length=256, description="By default its number, from 1.")] = None
    known_enzymes: Annotated[list[Name], Field(description="Ids of proteins that catalyse it.")] = []
    ec: Annotated[str | None, Field(max_length=64, description="Hits that carry it are marked in reports.")] = None


class ProteinRow(_Wire):
    """A protein to be ranked."""

    protein_id: Name
    sequence: Annotated[str, Field(min_length=1, description="Amino acids in one-letter code.")]


class _Parameters(_Wire):
    checkpoint: Annotated[Name, Field(description="Name of a checkpoint.")] = "baseline"
    reactions: Annotated[list[str | ReactionRow], Field(min_length=1, description="Reaction SMILES, or rows with one.")]

    def workflow(self, folder: Path, device: str) -> Workflow:
        """What is to be done, with everything that is written in `folder`."""
        raise NotImplementedError

    @property
    def set_name(self) -> str | None:
        """The set that must be there; None where one is built."""
        return getattr(self, "screening_set", None)

    @property
    def rows(self) -> list[str | dict[str, Any]]:
        """The reactions as tasks take them."""
        return [row if isinstance(row, str) else row.model_dump(exclude_defaults=True) for row in self.reactions]

    @model_validator(mode="after")
    def _within_limits(self) -> _Parameters:
        limits = get_settings().serve
        _check_count("reactions", len(self.reactions), limits.max_job_reactions)
        for number, row in enumerate(self.reactions, start=1):
            text = row if isinstance(row, str) else row.reaction
            _check_length(f"reaction {number}", len(text), limits.max_reaction_length)
        proteins: list[ProteinRow] = getattr(self, "proteins", None) or []
        _check_count("proteins", len(proteins), limits.max_job_proteins)
        for number, protein in enumerate(proteins, start=1):
            _check_length(f"the sequence of protein {number}", len(protein.sequence), limits.max_sequence_length)
        self._check_hits(limits)
        return self

    def _check_hits(self, limits: ServeSettings) -> None:
        hits = len(self.reactions) * int(getattr(self, "top_k", 0))
        if hits > limits.max_job_hits:
            most = limits.max_job_hits // len(self.reactions)
            raise ValueError(
                f"{len(self.reactions)} reactions with top_k {hits // len(self.reactions)} ask for {hits} hits, and a job may "
                f"have {limits.max_job_hits}: take a top_k of at most {most}, or several jobs"
            )


class ScreeningParameters(_Parameters):
    """What to screen: a set that is there, or proteins of one's own."""

    screening_set: Annotated[Name, Field(description="Name of a set; not together with proteins.")] = REFERENCE
    proteins: Annotated[
        list[ProteinRow] | None, Field(min_length=1, description="Of which a set is built for this job.")
    ] = None
    top_k: Annotated[int, Field(ge=1, description="Hits per reaction.")] = 100
    filters: Annotated[PlainJson | None, Field(description="Which proteins may be hits, by column of the set.")] = None
    mode: Annotated[ScreeningMode, Field(description="For throughput, or one by one before batch work.")] = "batched"
    strict: Annotated[bool, Field(description="Fail at what cannot be used instead of listing it.")] = False

    @property
    def set_name(self) -> str | None:
        """The set that must be there; None where one is built."""
        return None if self.proteins else self.screening_set

    def workflow(self, folder: Path, device: str) -> Workflow:
        """As `rayzyme screen` makes it."""
        return create_screening_workflow(
            self.checkpoint,
            self.rows,
            _rows_of(self.proteins) if self.proteins else None,
            self.top_k,
            folder,
            device,
            self.mode,
            build_screening_set=bool(self.proteins),
            screening_set=self.screening_set,
            filters=self.filters or None,
            strict=self.strict,
        )

    @model_validator(mode="after")
    def _one_source(self) -> ScreeningParameters:
        if self.proteins and "screening_set" in self.model_fields_set:
            raise ValueError("give screening_set or proteins, not both")
        return self


class SimpleScreeningParameters(_Parameters):
    """What to screen, with a checkpoint that is there already."""

    screening_set: Annotated[Name, Field(description="Name of a set.")] = REFERENCE
    top_k: Annotated[int, Field(ge=1, description="Hits per reaction.")] = 100

    def workflow(self, folder: Path, device: str) -> Workflow:
        """Load and rank."""
        return create_simple_screening_workflow(
            self.checkpoint, self.screening_set, self.rows, self.top_k, folder, device
        )


class _WithKnownEnzymes(_Parameters):
    @model_validator(mode="after")
    def _some_are_known(self) -> _WithKnownEnzymes:
        if not any(isinstance(row, ReactionRow) and row.known_enzymes for row in self.reactions):
            raise ValueError("at least one reaction must have known_enzymes")
        return self


class EvaluationParameters(_WithKnownEnzymes):
    """Reactions whose enzymes are known, and the set whose ranking is to be measured."""

    screening_set: Annotated[Name, Field(description="Name of a set.")] = REFERENCE
    metrics: Annotated[
        list[Name] | None, Field(min_length=1, description="Such as BEDROC_85 or a family, BEDROC; by default all.")
    ] = None

    def workflow(self, folder: Path, device: str) -> Workflow:
        """Rank the whole set, measure, report."""
        return create_set_evaluation_workflow(
            self.checkpoint, self.rows, self.screening_set, folder, self.metrics, device
        )


class FullPipelineParameters(_WithKnownEnzymes):
    """Reactions, some with known enzymes, and the proteins to rank."""

    proteins: Annotated[list[ProteinRow], Field(min_length=1, description="Of which a set is built for this job.")]
    top_k: Annotated[int, Field(ge=1, description="Hits per reaction.")] = 100

    def workflow(self, folder: Path, device: str) -> Workflow:
        """Build, screen, measure, report."""
        return create_full_pipeline(
            self.checkpoint, self.rows, _rows_of(self.proteins), self.rows, self.top_k, folder, device
        )


class _JobRequest(_Wire):
    parameters: _Parameters
    name: Annotated[str | None, Field(min_length=1, max_length=512, description="By default the workflow's.")] = None
    priority: Annotated[
        Literal["low", "normal", "high", "critical"] | TaskPriority, Field(description="By word, or from 0 to 3.")
    ] = TaskPriority.NORMAL
    metadata: Annotated[
        PlainJson, Field(description="Kept with the job; `deadline` (ISO 8601) counts where jobs have one.")
    ] = {}

    @property
    def urgency(self) -> TaskPriority:
        """The priority, however it was said."""
        given = self.priority
        return given if isinstance(given, TaskPriority) else TaskPriority[given.upper()]


class ScreeningJob(_JobRequest):
    """Screen reactions in the background."""

    workflow: Literal["screening"]
    parameters: ScreeningParameters


class SimpleScreeningJob(_JobRequest):
    """Screen with a checkpoint that was fetched and checked before."""

    workflow: Literal["simple_screening"]
    parameters: SimpleScreeningParameters


class EvaluationJob(_JobRequest):
    """Measure how well a set ranks known enzymes."""

    workflow: Literal["evaluation"]
    parameters: EvaluationParameters


class FullPipelineJob(_JobRequest):
    """Screen one's own proteins and measure the rankings."""

    workflow: Literal["full_pipeline"]
    parameters: FullPipelineParameters


JobRequest = Annotated[
    ScreeningJob | SimpleScreeningJob | EvaluationJob | FullPipelineJob, Field(discriminator="workflow")
]

EXAMPLES: dict[str, Any] = {
    "screening": {
        "summary": "Screen two reactions in the background",
        "value": {
            "workflow": "screening",
            "parameters": {"reactions": [_PEROXIDE, {"reaction": _ACETATE, "reaction_id": "ester"}], "top_k": 20},
        },
    },
    "proteins": {
        "summary": "Rank proteins of one's own",
        "value": {
            "workflow": "screening",
            "parameters": {
                "reactions": [_PEROXIDE],
                "proteins": [{"protein_id": "thioredoxin", "sequence": _SEQUENCE}],
            },
            "name": "my proteins",
            "priority": "high",
        },
    },
    "evaluation": {
        "summary": "Measure the ranking of known enzymes",
        "value": {
            "workflow": "evaluation",
            "parameters": {"reactions": [{"reaction": _PEROXIDE, "known_enzymes": ["P04040"]}], "metrics": ["TopK"]},
        },
    },
}


def workflow_of(request: _JobRequest, settings: Settings, folder: Path) -> Workflow:
    """The workflow that a request asks for.

    Args:
        request: What came.
        settings: In force.
        folder: For all that it writes.

    Raises:
        NotFound: There is no checkpoint or set of that name.
        InvalidInput: Something else that only the workflow's maker can see, such as an unknown metric.
    """
    parameters = request.parameters
    checkpoints = CheckpointRegistry(settings.home, settings.checkpoints.sources)
    checkpoints.require_name(parameters.checkpoint)
    # What is not here yet is fetched by the server's owner, not by whoever asks first.
    checkpoints.resolve(parameters.checkpoint)
    if parameters.set_name is not None:
        library = ScreeningSetLibrary(settings.screening_sets)
        library.require_name(parameters.set_name)
        # A filter that no row could be asked about is told now, not when the job has waited for its turn.
        matching_rows(
            library.open(parameters.set_name).proteins.slice(0, 0), getattr(parameters, "filters", None) or {}
        )
    return parameters.workflow(folder, settings.device)


def _rows_of(proteins: list[ProteinRow]) -> list[dict[str, str]]:
    return [protein.model_dump() for protein in proteins]


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{count} {what} are more than the {most} that a job may have; split them into several jobs")


def _check_length(what: str, length: int, most: int) -> None:
    if length > most:
        raise ValueError(f"{what} has {length} characters, more than {most}")
