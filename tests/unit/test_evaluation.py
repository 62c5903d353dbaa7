"""Metrics of rankings against goldens and independent implementations; means, intervals and what is left out."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from math import exp
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit.ML.Scoring import Scoring

from rayzyme.errors import InvalidInput, InvalidReaction
from rayzyme.screening.evaluation import (
    Ranking,
    auroc,
    average_precision,
    bedroc,
    enrichment_factor,
    evaluate,
    hit_rate,
    ranks_of,
    tie_order,
    top_k_recall,
)

GOLDEN_RANKS = [1, 3, 6, 21, 61]
GOLDEN_TOTAL = 100
LARGE_SET = 261_907

ETHANOL = "CCO>>CC=O"
PEROXIDE = "OO.OO>>O.O.O=O"
ESTER = "CC(=O)OC.O>>CC(=O)O.CO"


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[int], int]:
    """Ranks of at least one active among at least one other protein."""
    total = draw(st.integers(2, 400))
    ranks = draw(st.lists(st.integers(1, total), min_size=1, max_size=min(total - 1, 60), unique=True))
    return ranks, total


def as_scored_list(ranks: list[int], total: int) -> list[tuple[int, bool]]:
    """What RDKit's scoring functions read: one row per molecule, best first, with its activity."""
    return [(rank, rank in ranks) for rank in range(1, total + 1)]


class TestGoldens:
    @pytest.mark.parametrize(("alpha", "value"), [(20, 0.589736), (50, 0.621555), (85, 0.695272)])
    def test_bedroc(self, alpha: float, value: float) -> None:
        assert round(bedroc(GOLDEN_RANKS, GOLDEN_TOTAL, alpha), 6) == value

    @pytest.mark.parametrize(("percent", "value"), [(1, 20), (5, 8), (10, 6)])
    def test_enrichment_factor(self, percent: float, value: float) -> None:
        assert enrichment_factor(GOLDEN_RANKS, GOLDEN_TOTAL, percent) == pytest.approx(value, abs=1e-12)

    @pytest.mark.parametrize(("k", "value"), [(1, 0.2), (5, 0.4), (10, 0.6), (50, 0.8), (100, 1)])
    def test_top_k_recall(self, k: int, value: float) -> None:
        assert top_k_recall(GOLDEN_RANKS, GOLDEN_TOTAL, k) == value

    def test_areas(self) -> None:
        assert round(auroc(GOLDEN_RANKS, GOLDEN_TOTAL), 6) == 0.837895
        assert round(average_precision(GOLDEN_RANKS, GOLDEN_TOTAL), 6) == 0.487822

    def test_hit_rate(self) -> None:
        assert [hit_rate([4, 9], 100, n) for n in (3, 4, 9)] == [0, 1, 1]


class TestBedroc:
    @given(rankings(), st.sampled_from([1.0, 20.0, 50.0, 85.0, 160.9]))
    def test_agrees_with_rdkit(self, ranking: tuple[list[int], int], alpha: float) -> None:
        ranks, total = ranking
        # RDKit takes the difference of near-equal sums where the actives are many and last.
        assert bedroc(ranks, total, alpha) == pytest.approx(
            Scoring.CalcBEDROC(as_scored_list(ranks, total), 1, alpha), abs=1e-9
        )

    @given(rankings(), st.floats(1e-9, 1e9))
    def test_lies_between_worst_and_best_for_any_alpha(self, ranking: tuple[list[int], int], alpha: float) -> None:
        ranks, total = ranking
        assert 0 <= bedroc(ranks, total, alpha) <= 1

    @pytest.mark.parametrize("alpha", [1e-6, 20, 85, 1e6])
    @pytest.mark.parametrize("actives", [1, 3, 500])
    def test_is_exactly_one_with_all_actives_first_and_zero_with_all_last(self, alpha: float, actives: int) -> None:
        first = np.arange(1, actives + 1)
        assert bedroc(first, LARGE_SET, alpha) == 1
        assert bedroc(LARGE_SET + 1 - first, LARGE_SET, alpha) == 0

    def test_keeps_its_digits_in_a_large_set(self) -> None:
        # With one active the definition is (e^(-a r/N) - e^-a) / (e^(-a/N) - e^-a); the steps are taken exactly.
        step = Fraction(85, LARGE_SET)
        expected = (exp(-float(step * 1000)) - exp(-85.0)) / (exp(-float(step)) - exp(-85.0))
        assert bedroc([1000], LARGE_SET, 85) == pytest.approx(expected, rel=1e-13)

    def test_a_small_alpha_tends_to_the_mean_place(self) -> None:
        # To first order BEDROC is the active's place on a line from 0 (last) to 1 (first).
        assert bedroc([26], 101, 1e-9) == pytest.approx(0.75, abs=1e-8)

    def test_takes_lists_tuples_and_arrays_in_any_order(self) -> None:
        values = {
            bedroc(form, 100, 20) for form in ([6, 1, 3], (1, 3, 6), np.array([3, 6, 1], np.int32), np.array([1, 3, 6]))
        }
        assert len(values) == 1

    @pytest.mark.parametrize(
        ("ranks", "total", "alpha", "message"),
        [
            ([], 10, 20, "there are no actives"),
            ([0, 2], 10, 20, "rank 0 is outside 1 to 10; ranks count from 1"),
            ([2, 11], 10, 20, "rank 11 is outside 1 to 10"),
            ([2, 2], 10, 20, "rank 2 is given twice"),
            ([1.5], 10, 20, "ranks must be a list of whole numbers"),
            ([True], 10, 20, "ranks must be a list of whole numbers"),
            ([[1, 2]], 10, 20, "ranks must be a list of whole numbers"),
            ([1, 2], 2, 20, "all 2 proteins are actives"),
            ([1], 10, 0, "alpha of BEDROC must be a positive number, not 0"),
            ([1], 10, -3, "not -3"),
            ([1], 10, float("nan"), "not nan"),
            ([1], 10, float("inf"), "not inf"),
        ],
    )
    def test_refuses(self, ranks: Any, total: int, alpha: float, message: str) -> None:
        with pytest.raises(InvalidInput, match=message.replace("(", r"\(")):
            bedroc(ranks, total, alpha)


class TestOtherMetrics:
    @given(rankings())
    def test_auroc_is_the_part_of_pairs_in_the_right_order(self, ranking: tuple[list[int], int]) -> None:
        ranks, total = ranking
        inactive = [rank for rank in range(1, total + 1) if rank not in ranks]
        right = sum(active < other for active in ranks for other in inactive)
        assert auroc(ranks, total) == pytest.approx(right / (len(ranks) * len(inactive)), abs=1e-12)

    @given(rankings())
    def test_average_precision_is_the_mean_precision_at_the_actives(self, ranking: tuple[list[int], int]) -> None:
        ranks, total = ranking
        precisions = [sum(other <= rank for other in ranks) / rank for rank in ranks]
        assert average_precision(ranks, total) == pytest.approx(sum(precisions) / len(ranks), abs=1e-12)

    @given(st.integers(1, 5), st.lists(st.integers(1, 300), min_size=1, max_size=40, unique=True))
    def test_enrichment_agrees_with_rdkit_where_the_percentage_is_a_whole_number_of_proteins(
        self, percent: int, ranks: list[int]
    ) -> None:
        [expected] = Scoring.CalcEnrichment(as_scored_list(ranks, 300), 1, [percent / 100])
        assert enrichment_factor(ranks, 300, percent) == pytest.approx(expected, rel=1e-9)

    def test_the_part_looked_at_is_rounded_down_exactly_and_is_at_least_one(self) -> None:
        assert enrichment_factor([29], 10_000, 0.29) == pytest.approx(1 / 0.0029)
        assert enrichment_factor([1], 10, 1) == pytest.approx(100)

    @pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
    def test_an_impossible_percentage_is_refused(self, percent: float) -> None:
        with pytest.raises(InvalidInput, match="percentage of an enrichment factor"):
            enrichment_factor([1], 10, percent)

    @pytest.mark.parametrize("metric", [top_k_recall, hit_rate])
    def test_no_best_proteins_at_all_is_refused(self, metric: Any) -> None:
        with pytest.raises(InvalidInput, match="at least 1, not 0"):
            metric([1], 10, 0)


class TestRanks:
    def test_equal_scores_are_ordered_by_protein_id(self) -> None:
        order = tie_order(["P3", "P1", "P2", "P0"])
        scores = np.array([0.5, 0.5, 0.5, 0.9], np.float32)
        assert ranks_of(scores, order, [0, 1, 2, 3]).tolist() == [4, 2, 3, 1]

    @given(st.data())
    def test_agree_with_a_full_sort_for_few_and_many_actives(self, data: st.DataObject) -> None:
        scores = np.array(data.draw(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]), min_size=1, max_size=60)))
        ids = data.draw(st.permutations([f"P{number}" for number in range(len(scores))]))
        rows = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, unique=True))
        by_hand = sorted(range(len(scores)), key=lambda row: (-scores[row], ids[row]))
        expected = [by_hand.index(row) + 1 for row in rows]
        assert ranks_of(scores.astype(np.float32), tie_order(ids), rows).tolist() == expected

    def test_no_actives_have_no_ranks(self) -> None:
        assert ranks_of(np.zeros(3, np.float32), tie_order(["a", "b", "c"]), []).tolist() == []

    def test_a_few_actives_of_a_large_set_need_no_full_sort(self) -> None:
        scores = np.random.default_rng(0).random(LARGE_SET, np.float32)
        order = np.arange(LARGE_SET)
        begin = time.process_time()
        ranks_of(scores, order, np.arange(8))
        assert time.process_time() - begin < 0.2

    @pytest.mark.parametrize(
        ("scores", "rows", "message"),
        [
            ([0.1, np.nan], [0], "the score of row 1 is not a number"),
            ([0.1, 0.2], [2], "whole numbers from 0 to 1"),
            ([0.1, 0.2], [-1], "whole numbers from 0 to 1"),
            ([0.1, 0.2], [1, 1], "given twice"),
            ([0.1, 0.2, 0.3], [1], "two vectors of one length"),
        ],
    )
    def test_refuses(self, scores: list[float], rows: list[int], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            ranks_of(np.array(scores, np.float32), tie_order(["a", "b"]), rows)


class TestEvaluate:
    def test_one_reaction_has_its_own_metrics_and_no_interval(self) -> None:
        values = evaluate([Ranking("r1", ETHANOL, GOLDEN_RANKS, GOLDEN_TOTAL)]).to_dict()
        assert round(values["BEDROC_85"], 6) == 0.695272
        assert [values[f"TopK_{k}"] for k in (1, 5, 10, 50, 100)] == [0.2, 0.4, 0.6, 0.8, 1]
        assert [round(values[f"EF_{p}%"], 9) for p in (1, 5, 10)] == [20, 8, 6]
        assert (round(values["AUROC"], 6), round(values["AUPRC"], 6)) == (0.837895, 0.487822)
        assert (values["HitRate@1"], values["num_actives"], values["num_total"]) == (1, 5, 100)
        assert values["intervals"]["BEDROC_85"] == [None, None]

    def test_means_are_over_reactions_not_over_actives(self) -> None:
        report = evaluate([Ranking("r1", ETHANOL, [1, 2, 3, 4], 100), Ranking("r2", PEROXIDE, [100], 100)])
        assert report.metrics["TopK_5"].mean == 0.5
        assert report.metrics["HitRate@100"].mean == 1

    def test_intervals_are_the_bootstrap_s_and_repeatable(self) -> None:
        rng = np.random.default_rng(7)
        given_rankings = [
            Ranking(f"r{n}", f"{'C' * n}O>>{'C' * n}Cl", [int(rng.integers(1, 1001))], 1000) for n in range(2, 62)
        ]
        estimate = evaluate(given_rankings).metrics["AUROC"]
        values = np.array([auroc(ranking.ranks, 1000) for ranking in given_rankings])
        half_width = 1.96 * values.std() / np.sqrt(len(values))
        assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.02)
        assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.02)
        assert evaluate(given_rankings).metrics["AUROC"] == estimate
        assert evaluate(given_rankings, seed=43).metrics["AUROC"] != estimate

    def test_an_active_that_the_set_lacks_counts_as_ranked_last(self) -> None:
        report = evaluate([Ranking("r1", ETHANOL, [1], 100, missing=("P9",))])
        assert report.metrics["TopK_100"].mean == 0.5
        assert report.metrics["EF_1%"].mean == enrichment_factor([1, 101], 101, 1)
        assert report.metrics["BEDROC_85"].mean == bedroc([1, 101], 101, 85)
        assert (report.num_actives, report.num_missing_actives) == (2, 1)
        assert report.reactions[0].missing == ("P9",)

    def test_a_reaction_whose_actives_are_all_missing_scores_nothing_and_stays_in_the_mean(self) -> None:
        report = evaluate([Ranking("r1", ETHANOL, [], 100, missing=("P8", "P9"))])
        assert report.reactions[0].best_rank is None
        assert (report.metrics["BEDROC_85"].mean, report.metrics["AUROC"].mean) == (0, 0)

    def test_duplicates_training_reactions_and_reactions_without_enzymes_are_left_out_and_counted(self) -> None:
        report = evaluate(
            [
                Ranking("first", ETHANOL, [1], 100),
                Ranking("turned around", "CC=O>>CCO", [50], 100),
                Ranking("trained on", "[OH:1][OH:2].OO>>O.O.O=O", [3], 100),
                Ranking("orphan", ESTER, [], 100),
            ],
            training_reactions=[PEROXIDE],
        )
        values = report.to_dict()
        assert [row.reaction_id for row in report.reactions] == ["first"]
        assert values["excluded"] == [
            {"reaction_id": "turned around", "reason": "duplicate"},
            {"reaction_id": "trained on", "reason": "training"},
            {"reaction_id": "orphan", "reason": "no known enzymes"},
        ]
        assert (values["num_excluded_duplicates"], values["num_excluded_training"]) == (1, 1)

    def test_the_recall_curve_rises_to_the_whole_set(self) -> None:
        curve = evaluate([Ranking("r1", ETHANOL, GOLDEN_RANKS, GOLDEN_TOTAL)]).recall_curve
        assert (curve[0], curve[-1]) == ((1, 0.2), (100, 1.0))
        assert dict(curve)[6] == 0.6
        assert [recall for _, recall in curve] == sorted(recall for _, recall in curve)

    def test_the_report_is_json(self) -> None:
        report = evaluate([Ranking("r1", ETHANOL, np.array([1, 5]), 100, ("P1",)), Ranking("r2", PEROXIDE, [2], 100)])
        values = report.to_dict()
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        assert values["schema"] == "rayzyme.evaluation/1"

    @pytest.mark.parametrize(
        ("given_rankings", "message"),
        [
            ([], "there is no ranking to evaluate"),
            ([Ranking("r1", ETHANOL, [], 100)], r"no reaction is left to evaluate: 1 left out \(no known enzymes\)"),
            ([Ranking("r1", ETHANOL, [1], 1)], r"1 left out \(no inactive proteins\)"),
            ([Ranking("r1", ETHANOL, [101], 100)], "reaction 'r1': rank 101 is beyond the 100 proteins ranked"),
            ([Ranking("r1", ETHANOL, [101], 100, ("P1",))], "rank 101 is beyond the 100 proteins ranked"),
            ([Ranking("r1", ETHANOL, [3, 3], 100)], "reaction 'r1': rank 3 is given twice"),
            ([Ranking("r1", ETHANOL, [1], 9), Ranking("r2", PEROXIDE, [1], 8)], r"different sizes \(8 to 9 proteins\)"),
            ([Ranking("r1", ETHANOL, [1], 9), Ranking("r1", PEROXIDE, [1], 9)], "the reaction id 'r1' is given twice"),
        ],
    )
    def test_refuses(self, given_rankings: list[Ranking], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            evaluate(given_rankings)

    def test_an_invalid_training_reaction_is_named(self) -> None:
        with pytest.raises(InvalidReaction, match="training reaction 2: "):
            evaluate([Ranking("r1", ETHANOL, [1], 9)], training_reactions=[PEROXIDE, "CCX>>C"])
