"""Train the bundled model: `python -m rayzyme.models.baseline.train --reactions R --enzymes E --output DIR`.

Writes `weights.safetensors` (trained on everything), `reference_set.arrow` (every enzyme, embedded by those weights) and
`metrics.json` (what was measured on reactions that training left out) into the output folder. The same tables, seed and
library versions give the same files, apart from the date in the reference set.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayzyme.errors import RayzymeError
from rayzyme.models.baseline.encoder import BaselineEncoder
from rayzyme.models.baseline.evaluation import (
    Measured,
    held_out_proteins,
    measure,
    nearest_neighbour_scores,
    tower_scores,
)
from rayzyme.models.baseline.splits import FOLDS, fold_of
from rayzyme.models.baseline.towers import Matrix, ProteinTower
from rayzyme.models.baseline.training import TrainingData, assemble, train_protein_network, train_votes
from rayzyme.models.baseline.weights_file import Towers, write_weights
from rayzyme.proteins import Protein
from rayzyme.screening import ScreeningSet

logger = logging.getLogger(__name__)

_SEED = 20261123
_THREADS = 2
_EMBED_AT_ONCE = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rayzyme.models.baseline.train", description=__doc__)
    parser.add_argument("--reactions", type=Path, required=True, help="table with columns ec, reaction (tab-separated)")
    parser.add_argument("--enzymes", type=Path, required=True, help="table with columns accession, ec, sequence")
    parser.add_argument("--output", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=_SEED, help="default: %(default)s")
    parser.add_argument("--folds", type=int, default=FOLDS, help="folds of the evaluation; 0 trains without evaluating")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(given.reactions, given.enzymes, given.output, seed=given.seed, folds=given.folds)
    except RayzymeError as fault:
        logger.error("%s", fault)
        return 1
    return 0


def train(reactions: Path, enzymes: Path, output: Path, *, seed: int = _SEED, folds: int = FOLDS) -> dict[str, Any]:
    """Train, evaluate and write the three files.

    Args:
        reactions: Table of reactions.
        enzymes: Table of enzymes.
        output: Folder, made where absent.
        seed: Of everything random.
        folds: Folds of the evaluation; 0 leaves it out.

    Returns:
        What `metrics.json` holds.

    Raises:
        NotFound: A table does not exist.
        InvalidInput: A table lacks a column, or a row cannot be read.
    """
    torch.set_num_threads(min(_THREADS, os.cpu_count() or 1))
    data = TrainingData.read(reactions, enzymes)
    logger.info("%d reactions, %d keys, %d enzymes", len(data.keys), len(data.tokens), len(data.accessions))
    network = train_protein_network(data.features, data.class_targets, seed=seed)
    metrics: dict[str, Any] = {"seed": seed, "data": _describe(data)}
    if folds:
        metrics["unseen_reactions"] = evaluate_reactions(data, network, folds, seed)
        metrics["unseen_proteins"] = evaluate_proteins(data, seed)
    towers = assemble(train_votes(data, data.examples()), network, seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    _ship(towers, data, output)
    if folds:
        known = measure(data, data.examples(), tower_scores(data, towers, embed_enzymes(towers, data)))
        metrics["training_reactions"] = {
            "note": "what ships is trained on every reaction; this says that it finds them again, not how good it is",
            "model": known.summary(seed),
        }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def evaluate_reactions(data: TrainingData, network: dict[str, Matrix], folds: int, seed: int) -> dict[str, Any]:
    """Train without each fold in turn, and ask for the reactions of that fold."""
    ours: list[Measured] = []
    yardstick: list[Measured] = []
    for fold in range(folds):
        unseen = {key for key in data.tokens if fold_of(key, folds) == fold}
        training = data.examples(without=unseen)
        asked = [example for example in data.examples() if example[0] in unseen]
        towers = assemble(train_votes(data, training), network, seed=seed)
        ours.append(measure(data, asked, tower_scores(data, towers, embed_enzymes(towers, data))))
        yardstick.append(measure(data, asked, nearest_neighbour_scores(data, training)))
        logger.info("fold %d: BEDROC85 %.3f, nearest neighbour %.3f", fold, ours[-1].mean(), yardstick[-1].mean())
    return {
        "split": f"{folds} folds of reaction keys: SHA-256 of rayzyme.chemistry.reaction_key, first 8 bytes, modulo {folds}",
        "actives": "all enzymes of the reference set that carry the reaction's EC number",
        "model": Measured.joined(ours).summary(seed),
        "model_bedroc_85_by_fold": [round(part.mean(), 4) for part in ours],
        "nearest_neighbour": Measured.joined(yardstick).summary(seed),
        "nearest_neighbour_bedroc_85_by_fold": [round(part.mean(), 4) for part in yardstick],
    }


def evaluate_proteins(data: TrainingData, seed: int) -> dict[str, float]:
    """Train the protein network without a tenth of the enzymes, and ask for their classes."""
    order = np.random.default_rng(seed).permutation(len(data.accessions))
    unseen, seen = np.split(order, [len(order) // 10])
    network = train_protein_network(data.features[seen], data.class_targets[seen], seed=seed)
    tower = ProteinTower(class_vectors=np.eye(len(data.classes)), **network)
    return held_out_proteins(data, tower.posterior(data.features[unseen]), unseen)


def embed_enzymes(towers: Towers, data: TrainingData) -> NDArray[np.float16]:
    """Embed every enzyme of the table as the reference set stores it, float16 (enzymes, dimension)."""
    starts = range(0, len(data.accessions), _EMBED_AT_ONCE)
    rows = [towers.protein.embed(data.features[start : start + _EMBED_AT_ONCE]) for start in starts]
    return np.concatenate(rows).astype(np.float16)


def _ship(towers: Towers, data: TrainingData, output: Path) -> None:
    weights = output / "weights.safetensors"
    write_weights(towers, weights, {"training": json.dumps(_describe(data))})
    encoder = BaselineEncoder.load(weights)
    proteins = [Protein(name, sequence) for name, sequence in zip(data.accessions, data.sequences, strict=True)]
    embeddings = encoder.encode_proteins(proteins).astype(np.float16)
    numbers = [";".join(own) for own in data.enzyme_classes]
    ScreeningSet.from_arrays(data.accessions, embeddings, {"ec": numbers}, encoder).save(output / "reference_set.arrow")
    logger.info("wrote %s", output)


def _describe(data: TrainingData) -> dict[str, Any]:
    return {
        "reactions": len(data.keys),
        "reaction_keys": len(data.tokens),
        "reactions_with_an_enzyme": sum(number in data.classes for number in data.reaction_classes),
        "enzymes": len(data.accessions),
        "enzyme_classes": len(data.classes),
    }


if __name__ == "__main__":
    raise SystemExit(main())
