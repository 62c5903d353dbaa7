"""Screening on Ray: find or start the model's host and the set's shards, fan a query out, merge the answers.

The answer is the same for any number of shards, in both modes, and after any actor was lost and came back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayzyme.chemistry import PreparedReaction, ReactionRecord
from rayzyme.errors import InvalidInput, InvalidReaction
from rayzyme.models.encoder import Embeddings
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.screening.answer import SCHEMA, Hit, ReactionResult, Rejection, ScreeningAnswer, merge_hits
from rayzyme.screening.evaluation import EvaluationReport, Ranking, evaluate
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import Settings, get_settings
from rayzyme.settings_sections import ScreeningMode
from rayzyme_actors.connection import connect
from rayzyme_actors.lanes import Lane
from rayzyme_actors.model_host import EncodedReactions
from rayzyme_actors.starting import checkpoint_ref, device_to_use, name_of_host, start_host, start_shards

Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)

_BATCH = 256
_DEFAULT_SET = "reference"
_DEFAULT_CHECKPOINT = "baseline"


def screen(
    reactions: Sequence[str] | Sequence[ReactionRecord],
    top_k: int | None = None,
    screening_set: str | Path = _DEFAULT_SET,
    checkpoint: str | Path = _DEFAULT_CHECKPOINT,
    filters: Mapping[str, Any] | None = None,
    *,
    mode: ScreeningMode | None = None,
    device: str | None = None,
    strict: bool = True,
    progress: Progress | None = None,
    settings: Settings | None = None,
    release: bool = False,
) -> ScreeningAnswer:
    """Rank the proteins of a screening set for each reaction.

    Args:
        reactions: Reaction SMILES, or records of a file.
        top_k: Hits per reaction; more than the set holds gives all, and `notes` says so. None takes the settings'.
        screening_set: Name or file.
        checkpoint: Name or file; must be the one that made the set.
        filters: Which proteins may be hits, as in `rayzyme.screening.filters`.
        mode: "interactive" (one by one, before all batch work) or "batched" (for throughput); same rankings.
        device: "auto", "cpu" or "cuda". None takes the settings'.
        strict: Raise at the first reaction that cannot be screened; otherwise it is listed under `rejected`.
        progress: Called with (reactions done, reactions in all).
        settings: None takes the process's.
        release: End the set's shards afterwards, for a set that nobody will ask for again.

    Returns:
        The answer, as `rayzyme.screening.answer` describes it.

    Raises:
        InvalidInput: No reactions, `top_k` below 1, a filter on an unknown column, an invalid reaction (when strict).
        NotFound: Unknown checkpoint or set.
        CheckpointMismatch: The set was made by another checkpoint.
        DeviceUnavailable: "cuda" on a cluster without GPUs.
        InsufficientSpace: The set does not fit into memory.
        WorkerLost: An actor was lost twice.
    """
    screener = Screener(checkpoint, screening_set, device=device, settings=settings)
    answer = screener.screen(reactions, top_k, filters, mode=mode, strict=strict, progress=progress)
    if release:
        screener.release_shards()
    answer["timing"] |= {"start_s": screener.start_s, "total_s": answer["timing"]["total_s"] + screener.start_s}
    return answer


class Screener:
    """A model's host and a set's shards, ready for queries.

    Attributes:
        checkpoint: The checkpoint that answers.
        screening_set: The set as opened here, for its size and columns; its embeddings stay with the shards.
        host: The model's host.
        shards: The set's shards, in the order of their rows.
    """

    def __init__(
        self,
        checkpoint: str | Path = _DEFAULT_CHECKPOINT,
        screening_set: str | Path = _DEFAULT_SET,
        *,
        device: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Find or start the actors and wait until they have loaded. Errors as in `screen`."""
        begin = time.perf_counter()
        self._settings = settings or get_settings()
        wanted_device = device_to_use(device, self._settings)
        library = ScreeningSetLibrary(self._settings.screening_sets)
        self._set_name = str(screening_set)
        self.screening_set: ScreeningSet = library.open(screening_set)
        # Names are checked before anything is started.
        host_name = name_of_host(checkpoint, wanted_device, self._settings)
        connect(self._settings)
        self.screening_set.require_checkpoint(checkpoint_ref(checkpoint, self._settings))
        self.host = start_host(checkpoint, host_name, wanted_device, self._settings)
        self.shards = start_shards(self.screening_set, wanted_device, self._settings)
        described = self.host.wait_until_ready()
        self.checkpoint = CheckpointRef(described["checkpoint"], described["checkpoint_digest"])
        self.screening_set.require_checkpoint(self.checkpoint)
        for shard in self.shards:
            shard.wait_until_ready()
        self.start_s = round(time.perf_counter() - begin, 6)

    def screen(
        self,
        reactions: Sequence[str] | Sequence[ReactionRecord],
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        *,
        mode: ScreeningMode | None = None,
        strict: bool = True,
        progress: Progress | None = None,
    ) -> ScreeningAnswer:
        """As the function `screen`."""
        begin = time.perf_counter()
        defaults = self._settings.tasks.screening
        records = as_records(reactions)
        notes: list[str] = []
        k = note_if_clamped(defaults.top_k if top_k is None else top_k, self.screening_set, self._set_name, notes)
        interactive = (mode or defaults.mode) == "interactive"
        lane: Lane = "online" if interactive else "batch"
        timing = {"encode_s": 0.0, "search_s": 0.0}
        results: list[ReactionResult] = []
        rejected: list[Rejection] = []
        for group in _groups(records, 1 if interactive else _BATCH):
            encoded = self._encode(group, lane, timing)
            rankings = iter(self._search(encoded.embeddings, k, filters, lane, timing))
            for record, prepared in zip(group, encoded.prepared, strict=True):
                if isinstance(prepared, PreparedReaction):
                    results.append(result_of(record, prepared, next(rankings)))
                    continue
                rejection = _rejection(record, prepared)
                if strict:
                    raise InvalidReaction(rejection["reason"])
                rejected.append(rejection)
            if progress is not None:
                progress(len(results) + len(rejected), len(records))
        if filters and any(len(result["hits"]) < k for result in results):
            notes.append(f"the filter admits only {len(results[0]['hits'])} of the {len(self.screening_set)} proteins")
        timing["total_s"] = time.perf_counter() - begin
        return {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint.name,
            "checkpoint_digest": self.checkpoint.digest,
            "screening_set": self._set_name,
            "screening_set_size": len(self.screening_set),
            "results": results,
            "rejected": rejected,
            "notes": notes,
            "timing": {name: round(value, 6) for name, value in timing.items()},
        }

    def evaluate(
        self,
        reactions: Sequence[ReactionRecord],
        *,
        training_reactions: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> EvaluationReport:
        """How well the checkpoint ranks known enzymes, over the full ranking of the set.

        Args:
            reactions: Records with `known_enzymes`; those that the set lacks count as ranked last and are reported.
            training_reactions: Reactions to leave out, recognised by `chemistry.reaction_key`.
            progress: Called with (reactions ranked, reactions in all).

        Raises:
            InvalidReaction: No reaction can be encoded; single ones that cannot are listed as left out.
            InvalidInput: No reaction has a known enzyme.
        """
        rankings: list[Ranking] = []
        not_encodable: list[str] = []
        for group in _groups(list(reactions), _BATCH):
            encoded = self._encode(group, "batch", {"encode_s": 0.0})
            usable: list[ReactionRecord] = []
            for record, prepared in zip(group, encoded.prepared, strict=True):
                if isinstance(prepared, PreparedReaction):
                    usable.append(record)
                else:
                    logger.warning("left out of the evaluation: %s", _rejection(record, prepared)["reason"])
                    not_encodable.append(record.reaction_id)
            ranks = self._ranks(encoded.embeddings, [list(record.known_enzymes) for record in usable])
            for record, own in zip(usable, ranks, strict=True):
                missing = tuple(enzyme for enzyme in record.known_enzymes if enzyme not in own)
                rankings.append(
                    Ranking(record.reaction_id, record.reaction, list(own.values()), len(self.screening_set), missing)
                )
            if progress is not None:
                progress(len(rankings) + len(not_encodable), len(reactions))
        if not rankings:
            raise InvalidReaction(f"none of the {len(reactions)} reactions could be encoded by {self.checkpoint.name}")
        return evaluate(rankings, training_reactions=training_reactions, not_encodable=not_encodable)

    def release_shards(self) -> None:
        """End the set's shards, for a set that nobody will ask for again."""
        for shard in self.shards:
            shard.release()

    def _encode(self, records: Sequence[ReactionRecord], lane: Lane, timing: dict[str, float]) -> EncodedReactions:
        begin = time.perf_counter()
        encoded: EncodedReactions = self.host.submit(
            "encode_reactions", [record.reaction for record in records], lane
        ).result()
        timing["encode_s"] += time.perf_counter() - begin
        return encoded

    def _search(
        self, queries: Embeddings, k: int, filters: Mapping[str, Any] | None, lane: Lane, timing: dict[str, float]
    ) -> list[list[Hit]]:
        if not len(queries):
            return []
        begin = time.perf_counter()
        calls = [shard.submit("search", queries, k, filters, lane) for shard in self.shards]
        merged = merge_hits([call.result() for call in calls], len(queries), k)
        timing["search_s"] += time.perf_counter() - begin
        return merged

    def _ranks(self, queries: Embeddings, protein_ids: list[list[str]]) -> list[dict[str, int]]:
        """For each query the 1-based rank, in the whole set, of those of its proteins that the set holds."""
        found: list[dict[str, float]] = [{} for _ in protein_ids]
        for call in [shard.submit("scores_of", queries, protein_ids) for shard in self.shards]:
            for own, part in zip(found, call.result(), strict=True):
                own.update(part)
        scores = [np.array(list(own.values()), np.float32) for own in found]
        ids = [list(own) for own in found]
        before = [np.zeros(len(own), np.int64) for own in found]
        for call in [shard.submit("count_better", queries, scores, ids) for shard in self.shards]:
            before = [own + part for own, part in zip(before, call.result(), strict=True)]
        return [dict(zip(own_ids, (own + 1).tolist(), strict=True)) for own_ids, own in zip(ids, before, strict=True)]


def note_if_clamped(top_k: int, screening_set: ScreeningSet, name: str, notes: list[str]) -> int:
    """At most as many hits as the set, called `name`, has proteins; `notes` tells when that is less than `top_k`.

    Raises:
        InvalidInput: `top_k` is below 1.
    """
    if top_k < 1:
        raise InvalidInput(f"top_k must be at least 1, not {top_k}")
    size = len(screening_set)
    if top_k > size:
        notes.append(f"top_k {top_k} is more than the {size} proteins of {name}: all {size} are ranked")
    return min(top_k, size)


def as_records(reactions: Sequence[str] | Sequence[ReactionRecord] | str) -> list[ReactionRecord]:
    """Reactions with ids and places: plain SMILES are numbered from 1.

    Raises:
        InvalidInput: There are none.
    """
    given = [reactions] if isinstance(reactions, str) else list(reactions)
    if not given:
        raise InvalidInput("there are no reactions to screen; give at least one reaction SMILES (reactants>>products)")
    return [
        item if isinstance(item, ReactionRecord) else ReactionRecord(str(number), item, (), number)
        for number, item in enumerate(given, start=1)
    ]


def _groups(records: Sequence[ReactionRecord], size: int) -> Iterator[Sequence[ReactionRecord]]:
    for first in range(0, len(records), size):
        yield records[first : first + size]


def result_of(record: ReactionRecord, prepared: PreparedReaction, hits: list[Hit]) -> ReactionResult:
    """The ranking of a reaction, with what is known of it."""
    result: ReactionResult = {
        "reaction_id": record.reaction_id,
        "reaction": record.reaction,
        "mapped_reaction": prepared.mapped_reaction,
        "mapping_confidence": prepared.mapping_confidence,
        "note": prepared.note,
        "hits": hits,
    }
    if record.known_enzymes:
        result["known_enzymes"] = list(record.known_enzymes)
    if record.ec:
        result["ec"] = record.ec
    return result


def _rejection(record: ReactionRecord, reason: str) -> Rejection:
    return {
        "reaction_id": record.reaction_id,
        "reaction": record.reaction,
        "line": record.line,
        "reason": f"reaction {record.reaction_id} (line {record.line}) {reason}",
    }
