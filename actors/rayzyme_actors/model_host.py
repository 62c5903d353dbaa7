"""The model host: one loaded checkpoint that encodes reactions and proteins for ever."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from rayzyme.chemistry import PreparedReaction, prepare_reactions
from rayzyme.errors import InvalidReaction, MissingExtra
from rayzyme.models import load_checkpoint
from rayzyme.models.encoder import Embeddings
from rayzyme.monitoring import get_metrics_collector, log_context
from rayzyme.proteins import Protein
from rayzyme.settings import Settings
from rayzyme_actors.actor_process import set_up_actor
from rayzyme_actors.gpu_memory import lease_gpu_memory
from rayzyme_actors.lanes import Lane, LaneExecutor, Steps
from rayzyme_actors.metrics import noting_wait

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedReactions:
    """What became of some reactions.

    Attributes:
        prepared: For each reaction what was encoded, or the reason (a text) why it could not be.
        embeddings: float32 (m, d), one unit row for each of the m reactions that could, in order.
    """

    prepared: list[PreparedReaction | str]
    embeddings: Embeddings


class ModelHost:
    """One checkpoint, loaded once; loading is the thread's first work, as in `EmbeddingShard`."""

    def __init__(self, checkpoint: str, settings: Settings, device: str, threads: int, gpu_memory_mb: int = 0) -> None:
        """Begin to load.

        Args:
            checkpoint: Name or path.
            settings: Of the program that starts the host: where named checkpoints and ESM-2 are, how large a step is.
            device: "auto", "cpu" or "cuda".
            threads: CPU threads to compute with.
            gpu_memory_mb: MB (2^20 bytes) to lease on the GPU that Ray gives; 0 on a CPU.
        """
        set_up_actor(settings)
        self._settings, self._gpu_memory_mb = settings, gpu_memory_mb
        self._batch_size = settings.tasks.screening.batch_size
        self._threads = threads
        self._executor = LaneExecutor("model", lambda: torch.set_num_threads(threads))
        self._loaded = self._executor.submit(lambda: self._load(checkpoint, device), "online")

    async def encode_reactions(
        self, reactions: Sequence[str], lane: Lane = "online", log_fields: Mapping[str, Any] = MappingProxyType({})
    ) -> EncodedReactions:
        """Prepare (parse, atom-map where the model needs it) and embed reactions; a bad one does not stop the others.

        `log_fields` tell whose request it is, for the lines that are logged here.
        """
        await self._ready()
        with log_context(**log_fields):
            logger.debug("%d reactions, %s", len(reactions), lane)
            return await self._submit(lambda: self._encode_reactions(reactions), lane)

    async def encode_proteins(self, proteins: Sequence[Protein], lane: Lane = "batch") -> Embeddings:
        """Embed proteins: float32 (n, d), unit rows.

        Raises:
            InvalidProtein: Names the first protein that cannot be encoded.
        """
        await self._ready()
        return await self._submit(lambda: self._encode_proteins(proteins), lane)

    async def describe(self) -> dict[str, Any]:
        """Which checkpoint this is and where it runs."""
        await self._ready()
        return {
            "pid": os.getpid(), "checkpoint": self._encoder.name, "checkpoint_digest": self._encoder.digest,
            "dimension": self._encoder.dimension, "needs_atom_mapping": self._encoder.needs_atom_mapping,
            "threads": self._threads,
            "longest_batch_step": self._executor.longest_batch_step, "waiting": self._executor.waiting(),
        }  # fmt: skip

    def _submit(self, start: Callable[[], Steps], lane: Lane) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self._executor.submit(noting_wait(start, "model_host", lane), lane))

    async def _ready(self) -> None:
        # Shielded: a caller who hangs up must not cancel the loading for all.
        await asyncio.shield(asyncio.wrap_future(self._loaded))

    def _load(self, checkpoint: str, device: str) -> Steps:
        yield from ()
        if self._gpu_memory_mb:
            self._lease = lease_gpu_memory("model", self._gpu_memory_mb, self._settings)
        self._encoder = load_checkpoint(checkpoint, device)
        logger.info("checkpoint %s (%s) is loaded for %s", self._encoder.name, self._encoder.digest[:12], device)

    def _encode_reactions(self, reactions: Sequence[str]) -> Steps:
        prepared: list[PreparedReaction | str] = []
        embeddings = [np.empty((0, self._encoder.dimension), np.float32)]
        for first in range(0, len(reactions), self._batch_size):
            some = self._prepare(reactions[first : first + self._batch_size])
            prepared += some
            texts = [item.encoder_input for item in some if isinstance(item, PreparedReaction)]
            if texts:
                with get_metrics_collector().timed("rayzyme_encode_seconds", tags={"kind": "reactions"}):
                    embeddings.append(self._encoder.encode_reactions(texts))
            yield
        return EncodedReactions(prepared, np.concatenate(embeddings))

    def _prepare(self, reactions: Sequence[str]) -> list[PreparedReaction | str]:
        try:
            return list(prepare_reactions(reactions, self._encoder.needs_atom_mapping))
        except (InvalidReaction, MissingExtra) as error:
            if len(reactions) == 1:
                # The position in a list of one tells nobody anything; who asked knows the line.
                return [str(error).removeprefix("reaction 1 ")]
        return [outcome for reaction in reactions for outcome in self._prepare([reaction])]

    def _encode_proteins(self, proteins: Sequence[Protein]) -> Steps:
        embeddings = [np.empty((0, self._encoder.dimension), np.float32)]
        for first in range(0, len(proteins), self._batch_size):
            with get_metrics_collector().timed("rayzyme_encode_seconds", tags={"kind": "proteins"}):
                embeddings.append(self._encoder.encode_proteins(proteins[first : first + self._batch_size]))
            yield
        return np.concatenate(embeddings)
