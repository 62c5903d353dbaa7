"""A report as plain text, for terminals and mail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_HITS_SHOWN = 10
_ROWS_SHOWN = 20


def text_report(answer: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> str:
    """Text of a screening answer, of an evaluation, or of both; everything that was left out is counted."""
    lines: list[str] = []
    if evaluation is not None:
        lines += [*_evaluation(evaluation), ""]
    if answer is not None:
        lines += [*_screening(answer), ""]
    return "\n".join(lines)


def _evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield f"Evaluation of {evaluation['checkpoint']} on {evaluation['screening_set']}"
    yield (
        f"{evaluation['num_reactions']} reactions, {evaluation['num_actives']} known enzymes, "
        f"{evaluation['num_missing_actives']} of them not in the set of {evaluation['num_total']} proteins"
    )
    if evaluation["ranking"] == "cut":
        yield (
            f"measured on the first {evaluation['depth']} hits; {evaluation['num_unlisted_actives']} known enzymes stand "
            f"behind them"
        )
    yield ""
    yield f"{'metric':<14}{'mean':>10}   95 % interval"
    for name, (low, high) in evaluation["intervals"].items():
        interval = "one reaction" if low is None else f"{low:.4f} to {high:.4f}"
        yield f"{name:<14}{evaluation[name]:>10.4f}   {interval}"
    yield ""
    if evaluation["excluded"]:
        yield f"left out: {len(evaluation['excluded'])}"
        yield from _some(f"  {row['reaction_id']}: {row['reason']}" for row in evaluation["excluded"])
    truth = evaluation.get("ground_truth", {})
    for key, meaning in _TRUTH_COUNTS.items():
        if truth.get(key):
            yield f"{meaning}: {truth[key]}"


def _screening(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"Screening of {answer['screening_set']} ({answer['screening_set_size']} proteins) with {answer['checkpoint']}"
    yield f"{len(answer['results'])} reactions screened, {len(answer['rejected'])} rejected"
    yield from (f"note: {note}" for note in answer["notes"])
    yield from _some(f"rejected: {row['reason']}" for row in answer["rejected"])
    for result in answer["results"]:
        yield ""
        yield f"{result['reaction_id']}: {result['reaction']}"
        if result["note"]:
            yield f"  {result['note']}"
        known = set(result.get("known_enzymes", ()))
        for hit in result["hits"][:_HITS_SHOWN]:
            mark = "  known" if hit["protein_id"] in known else ""
            yield f"{hit['rank']:>6}  {hit['score']:.4f}  {hit['protein_id']}{mark}"
        if len(result["hits"]) > _HITS_SHOWN:
            yield f"        and {len(result['hits']) - _HITS_SHOWN} more"


def _some(rows: Iterator[str]) -> Iterator[str]:
    listed = list(rows)
    yield from listed[:_ROWS_SHOWN]
    if len(listed) > _ROWS_SHOWN:
        yield f"  and {len(listed) - _ROWS_SHOWN} more"


_TRUTH_COUNTS = {
    "rejected": "rows of the ground truth that could not be read",
    "without_enzymes": "reactions of the ground truth without known enzymes",
    "not_screened": "reactions of the ground truth that were not screened",
    "screened_unknown": "screened reactions that the ground truth does not know",
}
