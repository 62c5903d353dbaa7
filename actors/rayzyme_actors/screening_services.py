"""The ready-made tasks' questions, answered by the long-lived actors: hosts of models, shards of screening sets.

The actors are the ones that the command line and the HTTP endpoint use, so a job finds loaded what another has loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import ray

from rayzyme.chemistry import ReactionRecord
from rayzyme.errors import CheckpointMismatch, DeviceUnavailable
from rayzyme.screening.answer import ScreeningAnswer
from rayzyme.screening.evaluation import EvaluationReport
from rayzyme.settings import Settings
from rayzyme.workflows.result import ModelRef
from rayzyme.workflows.services import Progress, Query
from rayzyme_actors.connection import connect
from rayzyme_actors.placement import Node, live_nodes, wants_gpu
from rayzyme_actors.screening import Screener
from rayzyme_actors.starting import ProteinEncoder, device_to_use, name_of_host

logger = logging.getLogger(__name__)


class ActorScreening:
    """`rayzyme.workflows.services.ScreeningServices` on the Ray that this process is connected to, for one task at a time."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is started before it is asked for."""
        self._settings = settings
        self._newest: Screener | None = None

    def load(self, checkpoint: str, device: str) -> ModelRef:
        """As `ScreeningServices.load`."""
        asked = self._available(device)
        encoder = ProteinEncoder(checkpoint, device=asked, settings=self._settings)
        return ModelRef(
            digest=encoder.checkpoint.digest,
            actor=name_of_host(checkpoint, asked, self._settings),
            checkpoint=checkpoint,
            device=asked,
            dimension=encoder.dimension,
        )

    def computes_on(self, model: ModelRef) -> str:
        """As `ScreeningServices.computes_on`."""
        return "cuda" if wants_gpu(model.device, self._nodes()) else "cpu"

    def protein_encoder(self, model: ModelRef) -> ProteinEncoder:
        """As `ScreeningServices.protein_encoder`."""
        encoder = ProteinEncoder(model.checkpoint, device=model.device, settings=self._settings)
        _require_unchanged(model, encoder.checkpoint.digest)
        return encoder

    def screen(self, query: Query, progress: Progress) -> ScreeningAnswer:
        """As `ScreeningServices.screen`."""
        screener = self._screener(query.model, query.screening_set)
        answer = screener.screen(
            query.reactions, query.top_k, query.filters, mode=query.mode, strict=query.strict, progress=progress
        )
        answer["timing"] |= {"start_s": screener.start_s, "total_s": answer["timing"]["total_s"] + screener.start_s}
        return answer

    def evaluate(
        self,
        model: ModelRef,
        screening_set: str,
        reactions: Sequence[ReactionRecord],
        training_reactions: Sequence[str],
        progress: Progress,
    ) -> EvaluationReport:
        """As `ScreeningServices.evaluate`."""
        screener = self._screener(model, screening_set)
        return screener.evaluate(reactions, training_reactions=training_reactions, progress=progress)

    def release(self, screening_set_digest: str) -> None:
        """As `ScreeningServices.release`, for the set of the newest question."""
        screener = self._newest
        if screener is not None and screener.screening_set.digest == screening_set_digest:
            self._newest = None
            screener.release_shards()

    def _screener(self, model: ModelRef, screening_set: str) -> Screener:
        self._newest = None
        screener = Screener(model.checkpoint, screening_set, device=model.device, settings=self._settings)
        self._newest = screener
        _require_unchanged(model, screener.checkpoint.digest)
        return screener

    def _available(self, device: str) -> str:
        """The device to ask the actors for: the CPU in place of GPUs that there are not, where the settings allow that."""
        asked = device_to_use(device, self._settings)
        try:
            wants_gpu(asked, self._nodes())
        except DeviceUnavailable as error:
            if self._settings.resources.gpu.on_missing == "fail":
                raise
            logger.warning("%s; resources.gpu.on_missing is cpu: the CPU is used", error)
            return "cpu"
        return asked

    def _nodes(self) -> list[Node]:
        connect(self._settings)
        return live_nodes(ray.nodes())


def _require_unchanged(model: ModelRef, digest: str) -> None:
    """A job that began with one checkpoint does not end with another of the same name."""
    if digest != model.digest:
        raise CheckpointMismatch(
            f"checkpoint {model.checkpoint} was {model.digest[:12]} when the job loaded it and is {digest[:12]} now: it was "
            f"replaced meanwhile; submit the job again"
        )
