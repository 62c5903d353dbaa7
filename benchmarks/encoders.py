"""CLIPZyme's encoders at the published sizes: proteins against the direct form, reactions batched against single.

Weights and residue features are seeded and random; speed does not depend on their values.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmarks.direct_egnn import DirectProteinEncoder
from benchmarks.measuring import THREADS, Measurement, best_of_rounds, compared
from benchmarks.random_clipzyme import clipzyme_options, random_protein_graph, write_checkpoint

from rayzyme.models.clipzyme import ClipzymeEncoder, read_checkpoint

ROUNDS = 3
RESIDUES = (142, 300, 600)
REACTIONS_IN_A_BATCH = 64

# From ethanol to a nucleotide, all balanced and mapped.
REACTIONS = (
    "[CH3:1][CH2:2][OH:3].[O:4]=[O:5]>>[CH3:1][CH:2]=[O:3].[OH:4][OH:5]",
    "[CH3:1][C@@H:2]([OH:3])[C:4](=[O:5])[OH:6].[O:7]=[C:8]([OH:9])[CH2:10][CH2:11][C:12](=[O:13])[C:14](=[O:15])"
    "[OH:16]>>[CH3:1][C:2](=[O:3])[C:4](=[O:5])[OH:6].[O:7]=[C:8]([OH:9])[CH2:10][CH2:11][C@@H:12]([OH:13])[C:14]"
    "(=[O:15])[OH:16]",
    "[O:1]=[C:2]1[CH:3]=[CH:4][C:5](=[O:6])[CH:7]=[CH:8]1.[OH:9][CH2:10][C@H:11]1[O:12][CH:13]([OH:14])[C@H:15]"
    "([OH:16])[C@@H:17]([OH:18])[C@@H:19]1[OH:20]>>[OH:1][c:2]1[cH:3][cH:4][c:5]([OH:6])[cH:7][cH:8]1.[OH:9][CH2:10]"
    "[C@H:11]1[O:12][C:13](=[O:14])[C@H:15]([OH:16])[C@@H:17]([OH:18])[C@@H:19]1[OH:20]",
    "[NH2:1][c:2]1[n:3][cH:4][n:5][c:6]2[c:7]1[n:8][cH:9][n:10]2[C@@H:11]1[O:12][C@H:13]([CH2:14][O:15][P:16](=[O:17])"
    "([OH:18])[O:19][P:20](=[O:21])([OH:22])[O:23][P:24](=[O:25])([OH:26])[OH:27])[C@@H:28]([OH:29])[C@H:30]1[OH:31]."
    "[O:32]=[CH:33][OH:34]>>[NH2:1][c:2]1[n:3][cH:4][n:5][c:6]2[c:7]1[n:8][cH:9][n:10]2[C@@H:11]1[O:12][C@H:13]"
    "([CH2:14][O:15][P:16](=[O:17])([OH:18])[O:19][P:20](=[O:21])([OH:22])[O:23][P:24](=[O:25])([OH:26])[OH:27])"
    "[C@@H:28]([OH:29])[CH2:30]1.[O:32]=[C:33]=[O:34].[OH2:31]",
)


def run() -> list[Measurement]:
    """Measure everything at the published sizes with seeded random weights."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "random.ckpt")
        encoder = ClipzymeEncoder.load(checkpoint)
        _, state_dict = read_checkpoint(checkpoint)
        direct = DirectProteinEncoder(clipzyme_options(), state_dict)
        return [*(_compare_proteins(encoder, direct, residues) for residues in RESIDUES), _compare_reactions(encoder)]


def _compare_proteins(encoder: ClipzymeEncoder, direct: DirectProteinEncoder, residues: int) -> Measurement:
    graph = random_protein_graph(residues, encoder.dimension, seed=residues)
    contenders = {"ours": partial(encoder.encode_protein_graphs, [graph]), "direct": partial(direct.encode, [graph])}
    best = best_of_rounds(contenders, ROUNDS)
    return compared(
        f"protein encoding, {residues} residues, against the direct form",
        best["ours"],
        best["direct"],
        "s",
        residues_per_second=residues / best["ours"],
        residues_per_second_of_peer=residues / best["direct"],
        cosine=_lowest_cosine(contenders["ours"](), direct.encode([graph]).numpy()),
        threads=THREADS,
    )


def _compare_reactions(encoder: ClipzymeEncoder) -> Measurement:
    reactions = [REACTIONS[index % len(REACTIONS)] for index in range(REACTIONS_IN_A_BATCH)]

    def one_by_one() -> np.ndarray:
        return np.concatenate([encoder.encode_reactions([reaction]) for reaction in reactions])

    def batched() -> np.ndarray:
        return encoder.encode_reactions(reactions)

    best = best_of_rounds({"batched": batched, "single": one_by_one}, ROUNDS)
    return compared(
        f"reaction encoding, batches of {len(reactions)} against one per call",
        best["batched"],
        best["single"],
        "s",
        milliseconds_per_reaction=1e3 * best["batched"] / len(reactions),
        milliseconds_per_reaction_single=1e3 * best["single"] / len(reactions),
        cosine=_lowest_cosine(batched(), one_by_one()),
        threads=THREADS,
    )


def _lowest_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    rows, others = rows.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return float(((rows * others).sum(axis=1) / lengths).min())


if __name__ == "__main__":
    for measurement in run():
        print(json.dumps(measurement))
