"""Fitting of the reaction side: a dozen numbers, by how well training reactions find their enzymes without themselves.

The training keys are divided into groups; a reaction's own group is masked and the remaining landmarks vote, so the
numbers are fitted for reactions whose neighbours are unknown too, not only they themselves. The loss is the negative
log-probability of one of its enzymes under votes normalised over the whole set. So few parameters cannot memorise two
thousand reactions; what they learn holds for reactions never seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayzyme.models.baseline.enzyme_classes import SERIAL_RANGES, ClassRelations, TransferWeights
from rayzyme.models.baseline.landmarks import SIMILARITIES

_STEPS = 40
_LEARNING_RATE = 0.15
_START_SIMILARITY = 8.0
_START_TRANSFER = (np.exp(-8.0), np.exp(-5.0), np.exp(-3.0), *np.exp(np.linspace(0.5, -0.5, len(SERIAL_RANGES))), 0.5)


@dataclass(frozen=True, slots=True)
class TrainingVotes:
    """What fitting looks at.

    Attributes:
        similarities: float32 (2, len(SIMILARITIES), q, n), of each query to each landmark, in both directions.
        queries: Landmark that is the query itself, int64 (q,).
        answers: Place of the query's EC number in the targets, int64 (q,).
        groups: Group of each landmark, int64 (n,); a query sees no landmark of its own group.
        sources_of: float32 (n, sources), 1 where the landmark has that EC number.
        relations: Sources against targets.
        members: Enzymes of each target, int64 (targets,).
    """

    similarities: NDArray[np.float32]
    queries: NDArray[np.int64]
    answers: NDArray[np.int64]
    groups: NDArray[np.int64]
    sources_of: NDArray[np.float32]
    relations: ClassRelations
    members: NDArray[np.int64]


def fit_votes(votes: TrainingVotes) -> tuple[NDArray[np.float64], TransferWeights, list[float]]:
    """Fit the weights of the similarities and the spread over classes.

    Returns:
        Weights of `SIMILARITIES`, float64 (len(SIMILARITIES),); the spread; the loss after each step, in nats.
    """
    logs = torch.log(torch.tensor([*[_START_SIMILARITY] * len(SIMILARITIES), *_START_TRANSFER], dtype=torch.float32))
    logs.requires_grad_(True)
    optimiser = torch.optim.Adam([logs], lr=_LEARNING_RATE)
    problem = _Problem(votes)
    losses = []
    for _ in range(_STEPS):
        loss = problem.loss(torch.exp(logs))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    fitted = torch.exp(logs).detach().double().numpy()
    return fitted[: len(SIMILARITIES)], TransferWeights.from_array(fitted[len(SIMILARITIES) :]), losses


class _Problem:
    """The loss as a function of the weights, all on tensors."""

    def __init__(self, votes: TrainingVotes) -> None:
        self.similarities = torch.from_numpy(votes.similarities)
        self.masked = torch.from_numpy(votes.groups[votes.queries][:, None] == votes.groups[None, :])
        self.answers = torch.from_numpy(votes.answers)
        self.sources_of = torch.from_numpy(votes.sources_of)
        self.levels = torch.from_numpy(votes.relations.levels)
        self.serial = torch.from_numpy(votes.relations.serial)
        self.log_crowd = torch.log(torch.from_numpy(votes.relations.crowd))
        self.log_members = torch.log(torch.from_numpy(votes.members).float())

    def loss(self, weights: torch.Tensor) -> torch.Tensor:
        parts, spread = weights[: len(SIMILARITIES)], weights[len(SIMILARITIES) :]
        similarity = torch.einsum("p,dpqn->dqn", parts, self.similarities).amax(dim=0)
        attention = torch.softmax(similarity.masked_fill(self.masked, -1e9), dim=1) @ self.sources_of
        score = attention @ self._transfer(spread)
        chosen = score.gather(1, self.answers[:, None])[:, 0]
        everything = score @ torch.exp(self.log_members)
        loss: torch.Tensor = (torch.log(everything + 1e-12) - torch.log(chosen + 1e-12)).mean()
        return loss

    def _transfer(self, spread: torch.Tensor) -> torch.Tensor:
        """`ClassRelations.transfer` with gradients."""
        main, sub, third = spread[:3]
        crowding = spread[-1]
        near = third * self.levels[2] + torch.einsum("s,sij->ij", spread[3:-1], self.serial)
        far = main * self.levels[0] + sub * self.levels[1]
        votes = far + near * torch.exp(-crowding * self.log_crowd)
        spread_votes: torch.Tensor = votes * torch.exp(-self.log_members)
        return spread_votes
