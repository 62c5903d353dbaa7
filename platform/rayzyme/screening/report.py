"""Reports: one self-contained HTML page of a screening answer or of an evaluation.

A page needs no network, no script and no other file: drawings are inline SVG, plots are embedded, styles are in its
head. Everything that came from outside (protein ids, metadata, reactions, notes) is escaped. A picture that cannot be
made is left out with a warning; the page is written all the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from rayzyme import __version__
from rayzyme.chemistry import draw_reaction
from rayzyme.errors import InvalidInput, InvalidReaction
from rayzyme.screening import plots
from rayzyme.screening.evaluation import EvaluationReport

logger = logging.getLogger(__name__)

SCREEN_SCHEMA = "rayzyme.screen/1"
EVALUATION_SCHEMA = "rayzyme.evaluation/1"

# As UniProt documents its accession numbers.
_UNIPROT_ACCESSION = re.compile(r"[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2}")
_EC_NUMBER = re.compile(r"\d+\.(?:\d+|-)\.(?:\d+|-)\.(?:n?\d+|-)")
_COLUMNS_NEVER_SHOWN = frozenset({"sequence", "structure", "cif", "embedding"})
_REACTIONS_LISTED = 500

_METRIC_MEANINGS = {
    "BEDROC": "early recognition, 0 (actives last) to 1 (actives first); higher alpha looks at fewer ranks",
    "TopK": "part of the known enzymes that stand among the k best",
    "EF": "how many times more known enzymes the best part of the ranking holds than chance would give",
    "AUROC": "probability that a known enzyme stands before another protein; 0.5 is chance",
    "AUPRC": "average precision over the known enzymes",
    "HitRate": "part of the reactions with at least one known enzyme among the N best",
}


def write_screening_report(
    answer: Mapping[str, Any],
    path: str | Path,
    *,
    scores: Sequence[NDArray[np.float32] | None] | None = None,
    hits_shown: int = 50,
    created: datetime | None = None,
) -> Path:
    """Write the answer of a screen as an HTML page.

    Args:
        answer: JSON of `screen`, schema "rayzyme.screen/1", as answered or as read back from a file. Beside the
            schema's keys a result may carry `reaction_id`, `mapping_confidence`, `note`, `ec` (the reaction's EC
            number: hits of the same number or sub-subclass are marked) and `known_enzymes` (marked too); the answer may
            carry `screening_set_size`, `created`, `version`, `notes` (texts) and `rejected` (reactions left out, each
            with `reaction` and `reason`).
        path: File to write; missing folders are made. It is replaced whole or not at all.
        scores: For each result the scores of the whole set, float (n,), or None; gives a plot of their distribution.
        hits_shown: Rows of each table of hits at most; the page says how many there are.
        created: Time on the page where the answer has none; None takes the time of the call.

    Returns:
        The path written.

    Raises:
        InvalidInput: The answer is not of this schema, or `scores` are not one per result.
    """
    _check_schema(answer, SCREEN_SCHEMA, ("checkpoint", "screening_set", "results"))
    results = [_checked_result(number, result) for number, result in enumerate(answer["results"], start=1)]
    if scores is not None and len(scores) != len(results):
        raise InvalidInput(f"{len(scores)} score vectors for {len(results)} results: give one per result, or None")
    per_result = [None] * len(results) if scores is None else list(scores)
    sections = [
        _screening_section(number, result, result_scores, hits_shown)
        for number, (result, result_scores) in enumerate(zip(results, per_result, strict=True), start=1)
    ]
    page = _environment().get_template("screening.html.j2")
    html = page.render(
        sections=sections,
        facts=_facts(answer, created),
        notes=answer.get("notes") or [],
        rejected=answer.get("rejected") or [],
    )
    return _write(path, html)


def write_evaluation_report(
    report: EvaluationReport | Mapping[str, Any],
    path: str | Path,
    *,
    checkpoint: str | None = None,
    checkpoint_digest: str | None = None,
    screening_set: str | None = None,
    created: datetime | None = None,
) -> Path:
    """Write an evaluation as an HTML page.

    Args:
        report: An evaluation, or its `to_dict()` read back from a file.
        path: File to write; missing folders are made. It is replaced whole or not at all.
        checkpoint: Name of the checkpoint that was evaluated.
        checkpoint_digest: Its SHA-256.
        screening_set: Name of the screening set.
        created: Time on the page; None takes the time of the call.

    Returns:
        The path written.

    Raises:
        InvalidInput: The mapping is not of the schema "rayzyme.evaluation/1".
    """
    values = report.to_dict() if isinstance(report, EvaluationReport) else report
    _check_schema(values, EVALUATION_SCHEMA, ("intervals", "reactions", "num_total", "recall_curve"))
    curve = values["recall_curve"]
    early = _earliest_bedroc(values["intervals"])
    facts = _facts(
        {
            "checkpoint": checkpoint,
            "checkpoint_digest": checkpoint_digest,
            "screening_set": screening_set,
            "screening_set_size": values["num_total"],
        },
        created,
    )
    pictures = [
        _picture(
            "recall",
            "Known enzymes found when the k best proteins are looked at, mean over reactions, against chance.",
            lambda: plots.recall_curve(curve["k"], curve["recall"], values["num_total"]),
        )
    ]
    if early is not None:
        pictures.append(
            _picture(
                "distribution",
                f"How {early} spreads over the reactions.",
                lambda: plots.histogram([row[early] for row in values["reactions"]], early, "reactions", limits=(0, 1)),
            )
        )
    page = _environment().get_template("evaluation.html.j2")
    html = page.render(
        facts=facts,
        values=values,
        metrics=_metric_rows(values),
        pictures=[picture for picture in pictures if picture is not None],
        reactions=values["reactions"][:_REACTIONS_LISTED],
        reaction_metrics=[name for name in (early, "EF_1%", "AUROC", "AUPRC") if name and name in values["intervals"]],
    )
    return _write(path, html)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rayzyme.screening"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uniprot_link"] = uniprot_link
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def uniprot_link(protein_id: str) -> str | None:
    """The UniProt page of an accession number, None for any other id."""
    if _UNIPROT_ACCESSION.fullmatch(protein_id):
        return f"https://www.uniprot.org/uniprotkb/{protein_id}/entry"
    return None


def _check_schema(values: Mapping[str, Any], schema: str, keys: Iterable[str]) -> None:
    if values.get("schema") != schema:
        raise InvalidInput(f"a report needs JSON of the schema {schema!r}, not {values.get('schema')!r}")
    if missing := [key for key in keys if key not in values]:
        raise InvalidInput(f"the {schema} JSON has no {', no '.join(missing)}")


def _checked_result(number: int, result: Mapping[str, Any]) -> Mapping[str, Any]:
    if missing := [key for key in ("reaction", "hits") if key not in result]:
        raise InvalidInput(f"result {number} of the answer has no {', no '.join(missing)}")
    for place, hit in enumerate(result["hits"], start=1):
        if missing := [key for key in ("rank", "protein_id", "score") if key not in hit]:
            raise InvalidInput(f"hit {place} of result {number} has no {', no '.join(missing)}")
    return result


def _facts(answer: Mapping[str, Any], created: datetime | None) -> dict[str, Any]:
    """What the head of a page says: which checkpoint, which set, when, how long."""
    when = answer.get("created") or (created or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M %Z").strip()
    timing = answer.get("timing") or {}
    return {
        "checkpoint": answer.get("checkpoint"),
        "digest": answer.get("checkpoint_digest"),
        "screening_set": answer.get("screening_set"),
        "size": answer.get("screening_set_size"),
        "created": when,
        "version": answer.get("version") or __version__,
        "timing": [(_timing_name(name), _duration(value)) for name, value in timing.items() if _is_number(value)],
    }


def _timing_name(key: str) -> str:
    return re.sub(r"_(s|sec|seconds)$", "", key).replace("_", " ")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _screening_section(
    number: int, result: Mapping[str, Any], scores: NDArray[np.float32] | None, hits_shown: int
) -> dict[str, Any]:
    hits = list(result["hits"])
    shown = hits[:hits_shown]
    ec = result.get("ec")
    given_name = str(result.get("reaction_id") or number)
    name = f"Reaction {given_name}" if given_name.isdecimal() else given_name
    return {
        "anchor": f"reaction-{number}",
        "name": name,
        "ec": ec,
        "reaction": result["reaction"],
        "mapped_reaction": result.get("mapped_reaction"),
        "confidence": result.get("mapping_confidence"),
        "note": result.get("note"),
        "drawing": _drawing(result["reaction"]),
        "columns": _metadata_columns(shown),
        "hits": [_hit_row(hit, ec, frozenset(result.get("known_enzymes") or ())) for hit in shown],
        "num_hits": len(hits),
        "classes": _frequent_classes(shown),
        "distribution": None if scores is None else _score_distribution(name, scores, hits),
    }


def _drawing(reaction: str) -> Markup | None:
    try:
        return Markup(draw_reaction(reaction, width=1000, height=None))  # SVG made here; its title is escaped
    except (InvalidReaction, RuntimeError) as fault:
        logger.warning("the report leaves out a drawing: %s", fault)
        return None


def _metadata_columns(hits: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = dict.fromkeys(key for hit in hits for key in (hit.get("metadata") or {}))
    return [column for column in columns if column.lower() not in _COLUMNS_NEVER_SHOWN]


def _hit_row(hit: Mapping[str, Any], ec: str | None, known: frozenset[str]) -> dict[str, Any]:
    protein_id = str(hit["protein_id"])
    score = float(hit["score"])
    metadata = hit.get("metadata") or {}
    return {
        "rank": hit["rank"],
        "protein_id": protein_id,
        "score": score,
        "bar": round(100 * min(max(score, 0.0), 1.0), 1),
        "metadata": metadata,
        "is_known": protein_id in known,
        "agreement": _agreement(ec, _ec_numbers(metadata)),
    }


def _ec_numbers(metadata: Mapping[str, Any]) -> list[str]:
    text = next((str(value) for key, value in metadata.items() if key.lower() in ("ec", "ec_number")), "")
    return _EC_NUMBER.findall(text)


def _agreement(wanted: str | None, found: Sequence[str]) -> str:
    """How a hit's EC numbers agree with the reaction's: "same", "subsubclass" or nothing."""
    if not wanted:
        return ""
    if wanted in found:
        return "same"
    prefix = wanted.split(".")[:3]
    return "subsubclass" if any(number.split(".")[:3] == prefix for number in found) else ""


def _frequent_classes(hits: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """EC sub-subclasses of the hits, most frequent first; a hit counts once in each of its own."""
    counts: Counter[str] = Counter()
    for hit in hits:
        counts.update({number.rsplit(".", 1)[0] for number in _ec_numbers(hit.get("metadata") or {})})
    return counts.most_common(4)


def _score_distribution(
    name: str, scores: NDArray[np.float32], hits: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    caption = f"Scores of all {len(scores):,} proteins for {name}; the line marks the lowest score among the hits."
    lowest = float(hits[-1]["score"]) if hits else None
    return _picture("scores", caption, lambda: plots.histogram(scores, "score", "proteins", mark=lowest, log=True))


def _picture(name: str, caption: str, draw: Callable[[], str]) -> dict[str, Any] | None:
    """A plot with its caption; None, and a warning, where it cannot be drawn."""
    try:
        return {"name": name, "caption": caption, "source": draw()}
    except Exception as fault:  # whatever a plotting library raises, a report without the plot beats none
        logger.warning("the report leaves out the plot %r: %s", name, fault)
        return None


def _earliest_bedroc(names: Iterable[str]) -> str | None:
    bedrocs = [name for name in names if name.startswith("BEDROC_")]
    return max(bedrocs, key=lambda name: float(name.removeprefix("BEDROC_")), default=None)


def _metric_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    previous = ""
    for name, (low, high) in values["intervals"].items():
        family = re.split(r"[_@]", name)[0]
        rows.append(
            {
                "name": name,
                "mean": values[name],
                "low": low,
                "high": high,
                "meaning": _METRIC_MEANINGS.get(family, "") if family != previous else "",
                "starts_family": family != previous,
                "is_fraction": family != "EF",
                "digits": 2 if family == "EF" else 4,
            }
        )
        previous = family
    return rows


def _write(path: str | Path, html: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(html, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
