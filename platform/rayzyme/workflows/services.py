"""What the ready-made tasks ask of whoever holds models and screening sets in memory.

The ground floor knows the questions only. `rayzyme_actors` answers them with actors that outlive the job, so a model is loaded
once for all jobs, and a task passes a `ModelRef` on, never weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rayzyme.settings_sections import ScreeningMode
from rayzyme.workflows.result import ModelRef

if TYPE_CHECKING:
    from rayzyme.chemistry import ReactionRecord
    from rayzyme.models.encoder import Embeddings
    from rayzyme.proteins import Protein
    from rayzyme.screening import CheckpointRef
    from rayzyme.screening.answer import ScreeningAnswer
    from rayzyme.screening.evaluation import EvaluationReport

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True, slots=True)
class Query:
    """A screen.

    Attributes:
        model: The checkpoint that answers; the one that made the set.
        screening_set: Name or file.
        reactions: What to screen.
        top_k: Hits per reaction; more than the set holds gives all.
        mode: "interactive" or "batched"; same rankings.
        filters: Which proteins may be hits, as in `rayzyme.screening.filters`.
        strict: Raise at the first reaction that cannot be screened; otherwise it is listed under `rejected`.
    """

    model: ModelRef
    screening_set: str
    reactions: Sequence[ReactionRecord]
    top_k: int
    mode: ScreeningMode
    filters: Mapping[str, Any] | None = None
    strict: bool = False


class ProteinEncoder(Protocol):
    """A loaded model that embeds proteins.

    Attributes:
        checkpoint: Which checkpoint it is.
        dimension: Length of an embedding.
    """

    checkpoint: CheckpointRef
    dimension: int

    def __call__(self, proteins: Sequence[Protein]) -> Embeddings:
        """Embed proteins: float32 (n, dimension), unit rows.

        Raises:
            InvalidProtein: Names the first protein that cannot be encoded.
        """
        ...


@runtime_checkable
class ScreeningServices(Protocol):
    """Models and screening sets, ready for questions. Errors are those of `rayzyme_actors.screening.screen`."""

    def load(self, checkpoint: str, device: str) -> ModelRef:
        """Load a checkpoint (name or file) where it is not loaded yet, and wait for it.

        Raises:
            NotFound: No such checkpoint.
            CheckpointError: It cannot be used.
            DeviceUnavailable: "cuda" where there are no GPUs and the settings let nothing run without.
        """
        ...

    def computes_on(self, model: ModelRef) -> str:
        """ "cpu" or "cuda": where a model that was loaded for a device computes."""
        ...

    def protein_encoder(self, model: ModelRef) -> ProteinEncoder:
        """What embeds proteins, for building sets."""
        ...

    def screen(self, query: Query, progress: Progress) -> ScreeningAnswer:
        """Rank the proteins of a set for each reaction."""
        ...

    def evaluate(
        self,
        model: ModelRef,
        screening_set: str,
        reactions: Sequence[ReactionRecord],
        training_reactions: Sequence[str],
        progress: Progress,
    ) -> EvaluationReport:
        """Measure how well known enzymes are ranked, over the full ranking of the set."""
        ...

    def release(self, screening_set_digest: str) -> None:
        """Take a set out of memory, for one that nobody will ask for again; nothing where it is in none."""
        ...
