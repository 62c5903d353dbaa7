"""Which metrics are wanted, and which can be had from lists of hits that end somewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rayzyme.chemistry import ReactionRecord, reaction_key
from rayzyme.errors import InvalidInput, NotFound
from rayzyme.screening.evaluation import (
    BEDROC_ALPHAS,
    HIT_RATE_N,
    PERCENTS,
    TOP_K,
    EvaluationReport,
    Ranking,
    evaluate,
)
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import get_settings

METRICS: Final = (
    *(f"BEDROC_{alpha:g}" for alpha in BEDROC_ALPHAS),
    *(f"TopK_{k}" for k in TOP_K),
    *(f"EF_{percent:g}%" for percent in PERCENTS),
    "AUROC",
    "AUPRC",
    *(f"HitRate@{n}" for n in HIT_RATE_N),
)
"""Every metric of a report, by its key there."""

FAMILIES: Final = ("BEDROC", "TopK", "EF", "HitRate")
_WHOLE_RANKING: Final = ("AUROC", "AUPRC")


def checked_metrics(metrics: Sequence[str]) -> list[str]:
    """Names of metrics or families, spelt as in the report.

    Raises:
        InvalidInput: There is none, or no such one; the message names those that there are.
    """
    spelt = {name.lower(): name for name in (*METRICS, *FAMILIES)}
    if isinstance(metrics, str) or not metrics:
        raise InvalidInput(f"metrics must be a list of names, not {metrics!r}; there are {', '.join(METRICS)}")
    unknown = [name for name in metrics if str(name).lower() not in spelt]
    if unknown:
        raise InvalidInput(
            f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}, and the families {', '.join(FAMILIES)}"
        )
    return list(dict.fromkeys(spelt[name.lower()] for name in metrics))


def with_chosen_metrics(document: Mapping[str, Any], chosen: Sequence[str] | None) -> dict[str, Any]:
    """An evaluation's document with the chosen metrics alone; `metrics_left_out` names those that could not be computed.

    Raises:
        InvalidInput: A chosen one could not be.
    """
    there = list(document["intervals"])
    if chosen is None:
        return {**document, "metrics_left_out": [name for name in METRICS if name not in there]}
    lacking = [name for name in chosen if not any(_is(name, metric) for metric in there)]
    if lacking:
        raise InvalidInput(
            f"{', '.join(lacking)} cannot be computed from hits that end at rank {document['depth']}: let the task depend on a "
            f"LoadCheckpointTask, so that the whole set is ranked, or ask for some of {', '.join(there)}"
        )
    dropped = {metric for metric in there if not any(_is(name, metric) for name in chosen)}
    kept = {key: value for key, value in document.items() if key not in dropped}
    kept["intervals"] = {name: value for name, value in document["intervals"].items() if name not in dropped}
    kept["reactions"] = [
        {key: value for key, value in row.items() if key not in dropped} for row in document["reactions"]
    ]
    return kept


def evaluate_hits(
    answer: Mapping[str, Any], records: Sequence[ReactionRecord], training_reactions: Sequence[str]
) -> dict[str, Any]:
    """Measure the hits of a screen, whose lists may end before the ranking does.

    `ranking` is "full" where they do not. Else it is "cut": `depth` is the shortest list's length, and `num_unlisted_actives`
    counts the known enzymes that stand behind the hits.

    Args:
        answer: As `rayzyme.screening.answer` describes it.
        records: Reactions with known enzymes, all among those of the answer.
        training_reactions: Reactions to leave out.

    Raises:
        InvalidInput: There is nothing to measure.
    """
    lists = {
        reaction_key(result["reaction"]): {hit["protein_id"]: hit["rank"] for hit in result["hits"]}
        for result in answer["results"]
    }
    depth, size = min(len(ranks) for ranks in lists.values()), int(answer["screening_set_size"])
    if depth == 0:
        raise InvalidInput(
            "a reaction has no hits: there is nothing to evaluate; screen without a filter that admits none"
        )
    members = _members(answer["screening_set"])
    placed = [_placed(record, lists[reaction_key(record.reaction)], size, members) for record in records]
    head = {
        "checkpoint": answer["checkpoint"], "checkpoint_digest": answer["checkpoint_digest"],
        "screening_set": answer["screening_set"],
    }  # fmt: skip
    rankings = [ranking for ranking, _ in placed]
    if depth == size:
        return {**head, "ranking": "full", **evaluate(rankings, training_reactions=training_reactions).to_dict()}
    report = evaluate(
        rankings,
        training_reactions=training_reactions,
        alphas=(),
        percents=(),
        top_k=[k for k in TOP_K if k <= depth],
        hit_rate_n=[n for n in HIT_RATE_N if n <= depth],
    )
    unlisted = dict(zip((record.reaction_id for record in records), (count for _, count in placed), strict=True))
    return {**head, **_cut_document(report, depth, unlisted)}


def _placed(
    record: ReactionRecord, ranks: Mapping[str, int], size: int, members: Collection[str] | None
) -> tuple[Ranking, int]:
    """Where the known enzymes stand; those behind the hits are put last, which no metric of the first ranks notices."""
    listed = [ranks[enzyme] for enzyme in record.known_enzymes if enzyme in ranks]
    others = [enzyme for enzyme in record.known_enzymes if enzyme not in ranks]
    inside = [enzyme for enzyme in others if members is None or enzyme in members][: size - len(ranks)]
    last = range(size, size - len(inside), -1)
    missing = tuple(enzyme for enzyme in others if enzyme not in inside)
    return Ranking(record.reaction_id, record.reaction, [*listed, *last], size, missing), len(inside)


def _cut_document(report: EvaluationReport, depth: int, unlisted: Mapping[str, int]) -> dict[str, Any]:
    """The report without what lists of `depth` hits do not show."""
    document = report.to_dict()
    curve = [point for point in report.recall_curve if point[0] <= depth]
    document["recall_curve"] = {"k": [k for k, _ in curve], "recall": [recall for _, recall in curve]}
    for name in _WHOLE_RANKING:
        del document[name], document["intervals"][name]
    for row in document["reactions"]:
        for name in _WHOLE_RANKING:
            del row[name]
        if row["best_rank"] is not None and row["best_rank"] > depth:
            row["best_rank"] = None
    behind = sum(unlisted[row.reaction_id] for row in report.reactions)
    return {**document, "ranking": "cut", "depth": depth, "num_unlisted_actives": behind}


def _members(screening_set: str) -> frozenset[str] | None:
    """Ids of the set, where it is still there."""
    try:
        return frozenset(ScreeningSetLibrary(get_settings().screening_sets).open(screening_set).protein_ids)
    except (NotFound, InvalidInput):
        return None


def _is(wanted: str, metric: str) -> bool:
    """Whether a metric is the one that is wanted, or of its family."""
    return metric == wanted or (wanted in FAMILIES and metric.startswith((f"{wanted}_", f"{wanted}@")))
