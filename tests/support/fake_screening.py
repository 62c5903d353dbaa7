"""Screening services without actors: a tiny model, and brute force over a set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayzyme.chemistry import ReactionRecord, parse_reaction
from rayzyme.errors import InvalidProtein, InvalidReaction, NotFound, WorkerLost
from rayzyme.proteins import Protein
from rayzyme.screening import CheckpointRef, ExactIndex, ScreeningSet
from rayzyme.screening.answer import SCHEMA, Rejection, ScreeningAnswer
from rayzyme.screening.evaluation import EvaluationReport, Ranking, evaluate
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.workflows.result import ModelRef
from rayzyme.workflows.services import Progress, Query

DIMENSION = 8
DIGEST = hashlib.sha256(b"tiny").hexdigest()
TINY = CheckpointRef("tiny", DIGEST)
MODEL = ModelRef(digest=DIGEST, actor="model-host:tiny", checkpoint="tiny", device="cpu", dimension=DIMENSION)


def embedding(text: str) -> NDArray[np.float32]:
    """A unit vector that depends on the text alone, float32 (DIMENSION,)."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    row = np.random.default_rng(seed).normal(size=DIMENSION)
    return (row / np.linalg.norm(row)).astype(np.float32)


@dataclass
class TinyEncoder:
    """Embeds proteins; refuses those with a J, and is lost after `lives` calls."""

    checkpoint: CheckpointRef = TINY
    dimension: int = DIMENSION
    lives: int | None = None
    embedded: list[str] = field(default_factory=list)

    def __call__(self, proteins: Sequence[Protein]) -> NDArray[np.float32]:
        if self.lives == 0:
            raise WorkerLost("the tiny model was lost")
        self.lives = None if self.lives is None else self.lives - 1
        for protein in proteins:
            if "J" in protein.sequence:
                raise InvalidProtein(f"protein {protein.protein_id!r}: the tiny model knows no J")
        self.embedded += [protein.protein_id for protein in proteins]
        return np.stack([embedding(protein.sequence) for protein in proteins])


@dataclass
class FakeScreening:
    """`rayzyme.workflows.services.ScreeningServices` in this process."""

    encoder: TinyEncoder = field(default_factory=TinyEncoder)
    loaded: list[tuple[str, str]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def load(self, checkpoint: str, device: str) -> ModelRef:
        if checkpoint == "absent":
            raise NotFound("There is no checkpoint named 'absent'")
        self.loaded.append((checkpoint, device))
        return MODEL

    def computes_on(self, model: ModelRef) -> str:
        return model.device

    def protein_encoder(self, model: ModelRef) -> TinyEncoder:
        return self.encoder

    def screen(self, query: Query, progress: Progress) -> ScreeningAnswer:
        opened = self._opened(query.screening_set)
        k = min(query.top_k, len(opened))
        answer: ScreeningAnswer = {
            "schema": SCHEMA, "checkpoint": "tiny", "checkpoint_digest": DIGEST, "screening_set": query.screening_set,
            "screening_set_size": len(opened), "results": [], "rejected": [],
            "notes": [f"top_k {query.top_k} is more than {len(opened)}"] if query.top_k > len(opened) else [],
            "timing": {"total_s": 0.0},
        }  # fmt: skip
        for done, record in enumerate(query.reactions, start=1):
            reason = _fault(record)
            if reason is not None and query.strict:
                raise InvalidReaction(reason)
            if reason is not None:
                rejection: Rejection = {"reaction_id": record.reaction_id, "reaction": record.reaction,
                                        "line": record.line, "reason": reason}  # fmt: skip
                answer["rejected"].append(rejection)
            else:
                ranked = self._ranked(opened, record)[:k]
                answer["results"].append({
                    "reaction_id": record.reaction_id, "reaction": record.reaction, "mapped_reaction": None,
                    "mapping_confidence": None, "note": None,
                    "hits": [{"rank": rank, "protein_id": name, "score": score, "metadata": {}}
                             for rank, (name, score) in enumerate(ranked, start=1)],
                })  # fmt: skip
            progress(done, len(query.reactions))
        return answer

    def evaluate(
        self,
        model: ModelRef,
        screening_set: str,
        reactions: Sequence[ReactionRecord],
        training_reactions: Sequence[str],
        progress: Progress,
    ) -> EvaluationReport:
        opened = self._opened(screening_set)
        rankings = []
        for record in reactions:
            ranks = {name: rank for rank, (name, _) in enumerate(self._ranked(opened, record), start=1)}
            found = [ranks[enzyme] for enzyme in record.known_enzymes if enzyme in ranks]
            missing = tuple(enzyme for enzyme in record.known_enzymes if enzyme not in ranks)
            rankings.append(Ranking(record.reaction_id, record.reaction, found, len(opened), missing))
        progress(len(reactions), len(reactions))
        return evaluate(rankings, training_reactions=training_reactions)

    def release(self, screening_set_digest: str) -> None:
        self.released.append(screening_set_digest)

    @staticmethod
    def _opened(screening_set: str) -> ScreeningSet:
        opened = ScreeningSetLibrary(Path("nowhere")).open(screening_set)
        opened.require_checkpoint(TINY)
        return opened

    @staticmethod
    def _ranked(opened: ScreeningSet, record: ReactionRecord) -> list[tuple[str, float]]:
        scores, rows = ExactIndex(opened.embeddings, opened.protein_ids).search(
            embedding(record.reaction)[None], len(opened)
        )
        ids = opened.protein_ids
        return [(ids[row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]


def _fault(record: ReactionRecord) -> str | None:
    try:
        parse_reaction(record.reaction)
    except InvalidReaction as error:
        return f"reaction {record.reaction_id} (line {record.line}): {error}"
    return None
