"""Reports: one page that needs nothing else, shows what was answered, and cannot be taken over by its data."""

from __future__ import annotations

import base64
import json
import logging
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rayzyme.errors import InvalidInput
from rayzyme.screening.evaluation import Ranking, evaluate
from rayzyme.screening.report import uniprot_link, write_evaluation_report, write_screening_report

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"
VOID_ELEMENTS = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A parsed page: its elements, its text, and whether every element was closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def answer(**changes: Any) -> dict[str, Any]:
    """JSON of a screen with one reaction and three hits."""
    hits = [
        {"rank": 1, "protein_id": "P00330", "score": 0.91, "metadata": {"ec": "1.1.1.1", "sequence": "MSIP"}},
        {"rank": 2, "protein_id": "my enzyme", "score": 0.5, "metadata": {"ec": "1.1.1.2;2.7.1.1"}},
        {"rank": 3, "protein_id": "A0A0B4J2F0", "score": -0.1, "metadata": {"ec": None}},
    ]
    result = {"reaction": "CCO>>CC=O", "mapped_reaction": None, "hits": hits}
    return {
        "schema": "rayzyme.screen/1",
        "checkpoint": "baseline",
        "checkpoint_digest": "ab12" * 16,
        "screening_set": "reference",
        "screening_set_size": 7757,
        "results": [{**result, **changes}],
        "timing": {"total_s": 1.25, "search_s": 0.004},
    }


def written(tmp_path: Path, values: dict[str, Any], **options: Any) -> Page:
    return Page(write_screening_report(values, tmp_path / "out" / "report.html", **options))


def assert_self_contained(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "data", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
        if tag != "a":
            assert not (attributes.get("href") or "").startswith("http")
    assert "@import" not in page.source
    assert "url(" not in page.source


class TestScreeningReport:
    def test_shows_the_answer(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(reaction_id="Alcohol dehydrogenase"))
        for shown in ("baseline", "ab12ab12ab12", "reference", "7,757 proteins", "1.2 s", "4 ms"):
            assert shown in page.text
        for shown in ("Alcohol dehydrogenase", "CCO>>CC=O", "P00330", "0.9100", "my enzyme", "-0.1000", "2.7.1.1"):
            assert shown in page.text

    def test_can_be_made_from_saved_json(self, tmp_path: Path) -> None:
        saved = json.loads(json.dumps(answer()))
        assert written(tmp_path, saved).source.count("<tr>") == 1 + 3

    def test_needs_nothing_but_itself(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(), scores=[np.linspace(-1, 1, 500, dtype=np.float32)])
        assert_self_contained(page)

    def test_is_accessible(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(), scores=[np.linspace(-1, 1, 500, dtype=np.float32)])
        assert page.all("html") == [{"lang": "en"}]
        assert all(picture["alt"] for picture in page.all("img"))
        assert len(page.all("caption")) == len(page.all("table")) == 1
        assert all("scope" in header for header in page.all("th"))
        assert page.all("svg")[0]["role"] == "img"
        assert "Reaction CCO>>CC=O" in page.text

    @pytest.mark.parametrize(
        "hostile",
        [
            {"reaction_id": HOSTILE},
            {"note": HOSTILE},
            {"mapped_reaction": HOSTILE},
            {"reaction": HOSTILE},
            {"ec": HOSTILE},
            {"hits": [{"rank": 1, "protein_id": HOSTILE, "score": 0.5, "metadata": {}}]},
            {"hits": [{"rank": 1, "protein_id": "P1", "score": 0.5, "metadata": {HOSTILE: HOSTILE}}]},
            {"hits": [{"rank": HOSTILE, "protein_id": "P1", "score": 0.5, "metadata": {"ec": HOSTILE}}]},
        ],
        ids=["reaction id", "note", "mapped reaction", "reaction", "ec", "protein id", "column", "rank"],
    )
    def test_what_comes_from_outside_stays_text(self, tmp_path: Path, hostile: dict[str, Any]) -> None:
        page = written(tmp_path, answer(**hostile))
        assert_self_contained(page)
        assert "<script>alert" in page.text

    @pytest.mark.parametrize("key", ["checkpoint", "checkpoint_digest", "screening_set", "created", "version"])
    def test_the_head_stays_text(self, tmp_path: Path, key: str) -> None:
        page = written(tmp_path, {**answer(), key: HOSTILE})
        assert_self_contained(page)

    def test_notes_and_rejections_stay_text(self, tmp_path: Path) -> None:
        rejected = [{"reaction": HOSTILE, "reason": HOSTILE}]
        assert_self_contained(written(tmp_path, {**answer(), "notes": [HOSTILE], "rejected": rejected}))

    def test_accession_numbers_link_to_uniprot_and_other_ids_do_not(self, tmp_path: Path) -> None:
        links = [link["href"] for link in written(tmp_path, answer()).all("a")]
        assert links == [
            "https://www.uniprot.org/uniprotkb/P00330/entry",
            "https://www.uniprot.org/uniprotkb/A0A0B4J2F0/entry",
        ]
        assert [uniprot_link(text) for text in ("P0033", "p00330", "P00330/../x", "")] == [None] * 4

    def test_mapping_confidence_and_note_are_shown(self, tmp_path: Path) -> None:
        mapped = "[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:3]"
        page = written(tmp_path, answer(mapped_reaction=mapped, mapping_confidence=0.8765, note="One atom is lost."))
        for shown in (mapped, "confidence 0.88", "One atom is lost."):
            assert shown in page.text

    def test_hits_of_the_reaction_s_ec_number_and_known_enzymes_are_marked(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(ec="1.1.1.1", known_enzymes=["my enzyme"]))
        assert page.text.count("same EC") == 1
        assert page.text.count("same sub-subclass") == 1
        assert page.text.count("known") == 1

    def test_sequences_are_not_shown(self, tmp_path: Path) -> None:
        assert "MSIP" not in written(tmp_path, answer()).text

    def test_many_hits_are_cut_and_the_page_says_so(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(), hits_shown=2)
        assert "The first 2 of 3 hits" in page.text
        assert "A0A0B4J2F0" not in page.text

    def test_notes_and_reactions_that_were_not_screened_are_shown(self, tmp_path: Path) -> None:
        rejected = [{"reaction_id": "bad", "reaction": "CCX>>CC", "line": 3, "reason": "line 3: not valid SMILES"}]
        page = written(tmp_path, {**answer(), "notes": ["top_k was 900, the set has 3."], "rejected": rejected})
        for shown in ("top_k was 900, the set has 3.", "Not screened", "CCX>>CC", "line 3: not valid SMILES"):
            assert shown in page.text

    def test_a_reaction_without_a_name_goes_by_its_number(self, tmp_path: Path) -> None:
        assert "Reaction 1" in written(tmp_path, answer()).text
        assert "Reaction 7" in written(tmp_path, answer(reaction_id="7")).text

    def test_no_hits_are_said_in_words(self, tmp_path: Path) -> None:
        assert "No protein of the set passed the filters" in written(tmp_path, answer(hits=[])).text

    def test_a_plot_that_cannot_be_drawn_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            page = written(tmp_path, answer(), scores=[np.full(5, np.nan, np.float32)])
        assert "the report leaves out the plot 'scores'" in caplog.text
        assert page.all("img") == []
        assert "P00330" in page.text

    def test_a_reaction_that_cannot_be_drawn_is_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            page = written(tmp_path, answer(reaction="CCX>>CC"))
        assert "the report leaves out a drawing" in caplog.text
        assert page.all("svg") == []
        assert "P00330" in page.text

    def test_the_date_can_be_given(self, tmp_path: Path) -> None:
        page = written(tmp_path, answer(), created=datetime(2026, 2, 3, 4, 5, tzinfo=UTC))
        assert "2026-02-03 04:05 UTC" in page.text

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"schema": "rayzyme.screen/2"}, "schema 'rayzyme.screen/1', not 'rayzyme.screen/2'"),
            ({}, "not None"),
            ({"schema": "rayzyme.screen/1", "checkpoint": "b"}, "has no screening_set, no results"),
            (
                {"schema": "rayzyme.screen/1", "checkpoint": "b", "screening_set": "s", "results": [{"hits": []}]},
                "result 1 of the answer has no reaction",
            ),
            (answer(hits=[{"rank": 1, "score": 0.1}]), "hit 1 of result 1 has no protein_id"),
        ],
    )
    def test_other_json_is_refused(self, tmp_path: Path, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            write_screening_report(values, tmp_path / "report.html")
        assert list(tmp_path.glob("*.html")) == []

    def test_scores_for_another_number_of_results_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="2 score vectors for 1 results"):
            write_screening_report(answer(), tmp_path / "report.html", scores=[None, None])


class TestEvaluationReport:
    def report(self) -> Any:
        return evaluate(
            [
                Ranking("ethanol", "CCO>>CC=O", [1, 3, 6, 21, 61], 1000),
                Ranking("peroxide", "OO.OO>>O.O.O=O", [250], 1000, missing=("P9",)),
                Ranking("again", "CC=O>>CCO", [1], 1000),
            ]
        )

    def test_shows_metrics_with_intervals_rows_and_what_was_left_out(self, tmp_path: Path) -> None:
        report = self.report()
        page = Page(write_evaluation_report(report, tmp_path / "evaluation.html", checkpoint="baseline"))
        estimate = report.metrics["BEDROC_85"]
        for shown in (
            f"{estimate.mean:.4f}",
            f"{estimate.low:.4f} to {estimate.high:.4f}",
            "1,000 resamples",
            "baseline",
        ):
            assert shown in page.text
        for shown in ("ethanol", "peroxide", "again: duplicate", "1 of them are missing", "HitRate@100"):
            assert shown in page.text
        assert_self_contained(page)

    def test_the_plots_are_svg_with_a_description(self, tmp_path: Path) -> None:
        pictures = Page(write_evaluation_report(self.report(), tmp_path / "evaluation.html")).all("img")
        assert [bool(picture["alt"]) for picture in pictures] == [True, True]
        for picture in pictures:
            _, encoded = str(picture["src"]).split("base64,")
            assert ElementTree.fromstring(base64.b64decode(encoded)).tag.endswith("svg")

    def test_is_the_same_page_from_saved_json(self, tmp_path: Path) -> None:
        report, when = self.report(), datetime(2026, 1, 1, tzinfo=UTC)
        direct = write_evaluation_report(report, tmp_path / "direct.html", created=when).read_text()
        saved = json.loads(json.dumps(report.to_dict()))
        assert write_evaluation_report(saved, tmp_path / "saved.html", created=when).read_text() == direct

    def test_a_single_reaction_has_no_interval(self, tmp_path: Path) -> None:
        report = evaluate([Ranking("ethanol", "CCO>>CC=O", [1], 10)])
        page = Page(write_evaluation_report(report, tmp_path / "evaluation.html"))
        assert "Evaluation on 1 reaction" in page.text
        assert "nan" not in page.text.lower()

    def test_hostile_ids_stay_text(self, tmp_path: Path) -> None:
        report = evaluate([Ranking(HOSTILE, "CCO>>CC=O", [1], 10, missing=(HOSTILE,))])
        page = Page(write_evaluation_report(report, tmp_path / "evaluation.html", checkpoint=HOSTILE))
        assert_self_contained(page)

    def test_other_json_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"of the schema 'rayzyme\.evaluation/1'"):
            write_evaluation_report(answer(), tmp_path / "evaluation.html")
