"""Training of both towers from a table of reactions and a table of enzymes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayzyme.chemistry import reaction_key
from rayzyme.errors import InvalidInput, NotFound
from rayzyme.models.baseline.enzyme_classes import ClassRelations, TransferWeights
from rayzyme.models.baseline.features import ReactionTokens, reaction_tokens, sequence_features
from rayzyme.models.baseline.fitting import TrainingVotes, fit_votes
from rayzyme.models.baseline.landmarks import Landmarks
from rayzyme.models.baseline.splits import fold_of
from rayzyme.models.baseline.towers import Identities, Matrix, ProteinTower, ReactionTower
from rayzyme.models.baseline.weights_file import Towers
from rayzyme.proteins import validate_sequence

logger = logging.getLogger(__name__)

_HIDDEN = 128
_EPOCHS = 80
_BATCH = 256
_LEARNING_RATE = 3e-3
_FEATURE_SCALE = 8.0

IDENTITY_VOTES = 1.5
"""Length of a landmark's vote for each of its own classes when a query equals it; all other votes together have length 1.

Not fitted: no training reaction has an equal one besides itself. Equal keys mostly have equal EC numbers.
"""

LEADING = 383
CODE = 128
DIMENSION = LEADING + CODE + 1
"""Coordinates of the space: leading directions of the votes, the classes' codes, and the proteins' filling."""

_FIT_GROUPS = 5


@dataclass(frozen=True)
class TrainingData:
    """The two tables, parallel tuples of rows.

    Attributes:
        keys: `reaction_key` of each reaction.
        reaction_classes: EC number of each reaction.
        accessions: UniProt accession of each enzyme.
        enzyme_classes: EC numbers of each enzyme, in ascending order of their text, each once.
        sequences: Sequence of each enzyme.
    """

    keys: tuple[str, ...]
    reaction_classes: tuple[str, ...]
    accessions: tuple[str, ...]
    enzyme_classes: tuple[tuple[str, ...], ...]
    sequences: tuple[str, ...]

    @classmethod
    def read(cls, reactions: Path, enzymes: Path) -> TrainingData:
        """Read `ec, reaction` and `accession, ec (separated by ;), sequence`, tab-separated with a header.

        Raises:
            NotFound: A file does not exist.
            InvalidInput: A file lacks a column; InvalidReaction or InvalidProtein where a row cannot be read.
        """
        reaction_rows = _read_table(reactions, ("ec", "reaction"))
        enzyme_rows = _read_table(enzymes, ("accession", "ec", "sequence"))
        return cls(
            keys=tuple(reaction_key(row["reaction"]) for row in reaction_rows),
            reaction_classes=tuple(row["ec"] for row in reaction_rows),
            accessions=tuple(row["accession"] for row in enzyme_rows),
            enzyme_classes=tuple(tuple(sorted(set(row["ec"].split(";")))) for row in enzyme_rows),
            sequences=tuple(validate_sequence(row["sequence"], row["accession"]) for row in enzyme_rows),
        )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """EC numbers that some enzyme has, ascending as text."""
        return tuple(sorted({number for numbers in self.enzyme_classes for number in numbers}))

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """Enzymes of each of `classes`, int64 (classes,)."""
        return np.asarray((self.class_targets > 0).sum(axis=0))

    @cached_property
    def class_targets(self) -> NDArray[np.float32]:
        """float32 (enzymes, classes): each enzyme's EC numbers, with equal shares that sum to 1."""
        place = {number: column for column, number in enumerate(self.classes)}
        targets = np.zeros((len(self.accessions), len(self.classes)), np.float32)
        for row, numbers in enumerate(self.enzyme_classes):
            targets[row, [place[number] for number in numbers]] = 1 / len(numbers)
        return targets

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """`sequence_features` of each enzyme, float32 (enzymes, SEQUENCE_FEATURES)."""
        return np.stack([sequence_features(sequence) for sequence in self.sequences])

    @cached_property
    def tokens(self) -> dict[str, ReactionTokens]:
        """Fingerprints of each distinct key."""
        return {key: reaction_tokens(key) for key in sorted(set(self.keys))}

    def examples(self, without: Iterable[str] = ()) -> list[tuple[str, str]]:
        """Distinct (key, EC number), ascending; keys in `without` are left out."""
        left_out = set(without)
        return sorted({pair for pair in zip(self.keys, self.reaction_classes, strict=True) if pair[0] not in left_out})


@dataclass(frozen=True)
class VotingModel:
    """The reaction side before projection: how landmarks vote for classes.

    Attributes:
        landmarks: Index of the landmark reactions.
        weights: Weight of each part of a similarity, float64 (parts,).
        transfer: The fitted spread over the hierarchy.
        votes: float32 (landmarks, classes), each landmark's votes spread over the hierarchy.
        identities: float32 (landmarks, classes), 1 where the class is the landmark's own.
    """

    landmarks: Landmarks
    weights: Matrix
    transfer: TransferWeights
    votes: NDArray[np.float32]
    identities: NDArray[np.float32]


def train_votes(data: TrainingData, examples: Sequence[tuple[str, str]]) -> VotingModel:
    """Fit how reactions vote for enzyme classes.

    Args:
        data: Gives fingerprints and enzymes.
        examples: (key, EC number) of the training reactions, distinct; their keys become the landmarks.

    Raises:
        InvalidInput: No enzyme has the EC number of any reaction, or a reaction's main class has no enzyme at all.
    """
    keys = sorted({key for key, _ in examples})
    sources = sorted({number for _, number in examples})
    key_place, source_place = _places(keys), _places(sources)
    class_place = _places(data.classes)
    sources_of = np.zeros((len(keys), len(sources)), np.float32)
    for key, number in examples:
        sources_of[key_place[key], source_place[number]] = 1
    landmarks = Landmarks.build([data.tokens[key] for key in keys])
    asked = [(key_place[key], class_place[number]) for key, number in examples if number in class_place]
    if not asked:
        raise InvalidInput("no training reaction has the EC number of any enzyme: nothing can be learned")
    queries, answers = np.array(asked, np.int64).T
    similarities = np.stack(
        [landmarks.similarities(data.tokens[keys[query]]).astype(np.float32) for query in queries], axis=2
    )
    relations = ClassRelations.between(sources, data.classes)
    # Another hash than the evaluation's, whose folds would leave one of these groups empty.
    groups = np.array([fold_of(f"fit {key}", _FIT_GROUPS) for key in keys], np.int64)
    weights, transfer, losses = fit_votes(
        TrainingVotes(similarities, queries.copy(), answers.copy(), groups, sources_of, relations, data.members)
    )
    votes = sources_of @ relations.transfer(transfer, data.members)
    if (silent := votes.sum(axis=1) == 0).any():
        raise InvalidInput(
            f"reaction {keys[int(silent.argmax())]} can vote for no enzyme: none has an EC number of its main class; "
            "leave it out or add enzymes"
        )
    logger.info("fitted votes of %d landmarks: loss %.3f to %.3f nats", len(keys), losses[0], losses[-1])
    return VotingModel(
        landmarks=landmarks,
        weights=weights,
        transfer=transfer,
        votes=votes,
        identities=sources_of @ relations.same,
    )


def project(model: VotingModel, *, seed: int) -> ReactionTower:
    """Project votes onto their leading directions, so that inner products of what is left approximate them best.

    The directions are the right singular vectors of all votes of all landmarks (Eckart & Young 1936). Votes for single
    classes have no leading directions; they get a random code of `CODE` signs per class instead, nearly orthogonal to
    each other (Johnson & Lindenstrauss 1984).

    Returns:
        The reaction side, with class vectors float64 (classes, DIMENSION - 1), the longest of length 1; fewer
        coordinates where there are fewer classes than `LEADING`.
    """
    cast = model.votes.astype(np.float64)
    _, directions = np.linalg.eigh(cast.T @ cast)
    leading = directions[:, ::-1][:, :LEADING]
    # A fixed sign per direction: LAPACK leaves it open.
    leading = leading * np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(leading.shape[1])])
    scaled = leading / np.linalg.norm(leading, axis=1).max()
    codes = np.random.default_rng(seed).choice((-1.0, 1.0), (len(leading), CODE)) / CODE**0.5
    # Leading coordinates and code at most of length 1 each, both together too.
    class_vectors = np.concatenate([scaled, codes], axis=1) / 2**0.5
    rows, columns = np.nonzero(model.identities)
    identities = Identities(rows, columns, np.full(len(rows), IDENTITY_VOTES))
    return ReactionTower(model.landmarks, model.weights, cast @ leading, identities, class_vectors)


def train_protein_network(
    features: NDArray[np.float32], targets: NDArray[np.float32], *, seed: int, epochs: int = _EPOCHS
) -> dict[str, Matrix]:
    """Train the network from sequence features to enzyme classes, by cross-entropy to each enzyme's shares.

    Returns:
        The network's part of `ProteinTower`, by attribute.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, wanted = torch.from_numpy(features) * _FEATURE_SCALE, torch.from_numpy(targets)
    sizes = (features.shape[1], _HIDDEN, targets.shape[1])
    weights = [torch.randn(i, o, generator=generator) / i**0.5 for i, o in pairwise(sizes)]
    biases = [torch.zeros(o) for o in sizes[1:]]
    parameters = [tensor.requires_grad_(True) for tensor in (*weights, *biases)]
    optimiser = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    steps = epochs * -(-len(inputs) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs), generator=generator), _BATCH):
            hidden = torch.relu(inputs[rows] @ weights[0] + biases[0])
            loss = torch.nn.functional.cross_entropy(hidden @ weights[1] + biases[1], wanted[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    first, second = (weight.detach().double().numpy() for weight in weights)
    first_bias, second_bias = (bias.detach().double().numpy() for bias in biases)
    return {
        "hidden_weight": first * _FEATURE_SCALE,
        "hidden_bias": first_bias,
        "class_weight": second,
        "class_bias": second_bias,
    }


def assemble(model: VotingModel, network: dict[str, Matrix], *, seed: int) -> Towers:
    """Both towers, with the precision they have in a file."""
    reaction = project(model, seed=seed)
    return Towers(reaction, ProteinTower(class_vectors=reaction.class_vectors, **network)).rounded()


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise NotFound(f"training table {path} does not exist")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        found = reader.fieldnames or []
        if missing := [column for column in columns if column not in found]:
            raise InvalidInput(f"{path} lacks column {missing[0]!r}; it has {', '.join(found) or 'none'}")
        return list(reader)
