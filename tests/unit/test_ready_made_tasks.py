"""The ready-made tasks, one by one, with a tiny model in place of the actors."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.checkpoint_samples import WEIGHTS
from tests.support.fake_screening import DIMENSION, MODEL, TINY, FakeScreening, TinyEncoder, embedding
from tests.support.task_running import TaskRunner

from rayzyme.screening import ScreeningSet, plots
from rayzyme.settings import load_settings, use_settings
from rayzyme.workflows.ready_made import create_evaluation_workflow, create_full_pipeline, create_screening_workflow
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks import (
    BuildScreeningSetTask,
    DownloadCheckpointTask,
    EvaluateScreeningTask,
    GenerateReportTask,
    LoadCheckpointTask,
    RunScreeningTask,
    ValidateCheckpointTask,
)
from rayzyme.workflows.tasks.ground_truth import KnownEnzymes
from rayzyme.workflows.tasks.proteins import Proteins

ETHANOL = "CCO>>CC=O"
ACETATE = "CC(=O)OCC.O>>CC(=O)O.CCO"
PEROXIDE = "OO.OO>>O=O.O.O"
REACTIONS = [ETHANOL, ACETATE, PEROXIDE]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
PROTEINS = {f"P{number:02}": LETTERS[number % 20] * (number + 3) for number in range(30)}


@pytest.fixture
def services() -> FakeScreening:
    return FakeScreening()


@pytest.fixture
def job(tmp_path: Path, services: FakeScreening) -> TaskRunner:
    """A job that has loaded a model."""
    runner = TaskRunner(tmp_path / "attempts", services)
    runner.share(model=MODEL)
    return runner


@pytest.fixture
def proteins_csv(tmp_path: Path) -> Path:
    return write_proteins(tmp_path / "proteins.csv", PROTEINS)


@pytest.fixture
def screening_set(tmp_path: Path) -> Path:
    return save_set(tmp_path / "thirty.arrow")


def write_proteins(path: Path, proteins: dict[str, str]) -> Path:
    path.write_text("protein_id,sequence\n" + "".join(f"{name},{sequence}\n" for name, sequence in proteins.items()))
    return path


def save_set(path: Path) -> Path:
    rows = np.stack([embedding(sequence) for sequence in PROTEINS.values()])
    ScreeningSet.from_arrays(list(PROTEINS), rows, None, TINY).save(path)
    return path


def write_truth(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as sink:
        csv.writer(sink).writerows([("reaction_id", "reaction_smiles", "known_enzymes"), *rows])
    return path


def screen_task(**arguments: Any) -> RunScreeningTask:
    return RunScreeningTask(TaskConfig("run_screening"), **{"reactions": REACTIONS, "top_k": 5} | arguments)


def build_task(proteins: Proteins, output: Path, **arguments: Any) -> BuildScreeningSetTask:
    return BuildScreeningSetTask(TaskConfig("build_screening_set"), proteins, output, **arguments)


def evaluate_task(truth: KnownEnzymes, output: Path, **arguments: Any) -> EvaluateScreeningTask:
    return EvaluateScreeningTask(TaskConfig("evaluate_screening"), truth, output, **arguments)


def rankings(answer: Any) -> list[list[str]]:
    return [[hit["protein_id"] for hit in result["hits"]] for result in answer["results"]]


def rising_to_100(told: list[tuple[float, str]]) -> bool:
    percentages = [percentage for percentage, _ in told]
    return percentages == sorted(percentages) and percentages[-1] == 100


class TestDownloadCheckpoint:
    def test_a_bundled_or_local_one_is_only_looked_for(self, job: TaskRunner, tmp_path: Path) -> None:
        """D65"""
        job.complete(DownloadCheckpointTask(TaskConfig("download_checkpoint"), "baseline"))
        assert Path(job.shared("checkpoint_path")).name == "weights.safetensors"
        (tmp_path / "mine.pt").write_bytes(WEIGHTS)
        job.complete(DownloadCheckpointTask(TaskConfig("download_checkpoint"), tmp_path / "mine.pt"))
        assert job.shared("checkpoint_path") == str(tmp_path / "mine.pt")

    def test_a_source_of_the_settings_is_fetched_with_progress(self, job: TaskRunner, tmp_path: Path) -> None:
        """D65"""
        (tmp_path / "there.pt").write_bytes(WEIGHTS)
        use_settings(load_settings(overrides={"checkpoints": {"sources": {"mine": (tmp_path / "there.pt").as_uri()}}}))
        output = job.complete(DownloadCheckpointTask(TaskConfig("download_checkpoint"), "mine"))
        assert Path(output["path"]).read_bytes() == WEIGHTS
        assert rising_to_100(job.told)

    def test_an_unknown_one_is_named_and_not_tried_again(self, job: TaskRunner) -> None:
        """D17, D65"""
        assert "no checkpoint named 'baselin'" in job.fail(DownloadCheckpointTask(TaskConfig("download"), "baselin"))


class TestValidateCheckpoint:
    def test_what_was_altered_since_it_was_fetched_is_refused(self, job: TaskRunner, tmp_path: Path) -> None:
        """D65"""
        (tmp_path / "there.pt").write_bytes(WEIGHTS)
        use_settings(load_settings(overrides={"checkpoints": {"sources": {"mine": (tmp_path / "there.pt").as_uri()}}}))
        job.complete(DownloadCheckpointTask(TaskConfig("download_checkpoint"), "mine"))
        with Path(job.shared("checkpoint_path")).open("ab") as file:
            file.write(b"!")
        error = job.fail(ValidateCheckpointTask(TaskConfig("validate_checkpoint"), "mine"))
        assert "CheckpointError" in error
        assert "failed check 'digest'" in error

    def test_no_code_of_a_file_is_run(self, job: TaskRunner, tmp_path: Path) -> None:
        """D64, D65"""
        witness = tmp_path / "witness"
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Evil(witness)))
        job.share(checkpoint_path=str(tmp_path / "evil.pt"))
        assert "CheckpointError" in job.fail(ValidateCheckpointTask(TaskConfig("validate_checkpoint")))
        assert not witness.exists()

    def test_a_good_one_passes_every_check(self, job: TaskRunner) -> None:
        """D65"""
        output = job.complete(ValidateCheckpointTask(TaskConfig("validate_checkpoint"), "baseline"))
        assert [check["name"] for check in output["checks"]] == [
            "digest", "format", "parameters", "finite values", "forward pass",
        ]  # fmt: skip


class TestLoadCheckpoint:
    def test_it_shares_a_reference_and_says_where_it_computes(self, job: TaskRunner, services: FakeScreening) -> None:
        """D35, D64"""
        job.stored.clear()
        job.share(checkpoint_path="/models/tiny.ckpt")
        outcome = job.run(LoadCheckpointTask(TaskConfig("load_checkpoint"), device="cpu"))
        assert services.loaded == [("/models/tiny.ckpt", "cpu")]
        assert outcome.metadata == {"device": "cpu"}
        assert job.shared("model") == MODEL

    def test_without_a_checkpoint_or_services_it_says_what_is_missing(self, job: TaskRunner) -> None:
        """D63"""
        load = LoadCheckpointTask(TaskConfig("load_checkpoint"))
        assert "task load_checkpoint has no checkpoint" in job.fail(load)
        assert "'absent'" in job.fail(LoadCheckpointTask(TaskConfig("load_checkpoint"), "absent"))
        job.services = None
        assert "nothing here holds them" in job.fail(LoadCheckpointTask(TaskConfig("load_checkpoint"), "baseline"))


class TestBuildScreeningSet:
    def test_the_set_appears_where_it_belongs_once_it_is_committed(
        self, job: TaskRunner, proteins_csv: Path, tmp_path: Path
    ) -> None:
        """D20, D64"""
        job.commits = False
        output = job.complete(build_task(proteins_csv, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        job.commits = True
        job.complete(build_task(proteins_csv, tmp_path / "out"))
        assert rising_to_100(job.told)
        opened = ScreeningSet.open(tmp_path / "out" / "screening_set.arrow")
        assert (opened.protein_ids, opened.checkpoint) == (list(PROTEINS), TINY)
        assert job.shared("screening_set_path") == output["path"] == str(opened.path)
        assert job.shared("screening_set")["digest"] == opened.digest

    def test_what_cannot_be_used_is_named_by_line_and_counted(
        self, job: TaskRunner, tmp_path: Path, services: FakeScreening
    ) -> None:
        """D66"""
        rows = write_proteins(tmp_path / "some.csv", {"a": "MKT", "b": "M1T", "c": "MJT", "d": "GGG"})
        output = job.complete(build_task(rows, tmp_path / "out"))
        assert (output["proteins"], output["rejected"]) == (2, 2)
        assert [(row["line"], row["protein_id"]) for row in output["first_rejected"]] == [(3, "b"), (None, "c")]
        listed = list(csv.DictReader((tmp_path / "out" / "screening_set.rejected.csv").open()))
        assert [row["protein_id"] for row in listed] == ["b", "c"]
        services.encoder.embedded.clear()
        error = job.fail(build_task(rows, tmp_path / "strict", strict=True))
        assert "1 protein(s)" in error
        assert "line 3" in error
        assert services.encoder.embedded == []

    def test_proteins_that_are_given_make_the_same_set_as_their_file(
        self, job: TaskRunner, proteins_csv: Path, tmp_path: Path
    ) -> None:
        """D64, D66"""
        given = [{"protein_id": name, "sequence": sequence} for name, sequence in PROTEINS.items()]
        assert job.complete(build_task(given, tmp_path / "given"))["proteins"] == len(PROTEINS)
        job.complete(build_task(proteins_csv, tmp_path / "read"))
        digests = {ScreeningSet.open(tmp_path / name / "screening_set.arrow").digest for name in ("given", "read")}
        assert len(digests) == 1
        error = job.fail(build_task([{"protein_id": "b", "sequence": "M1T"}], tmp_path / "bad", strict=True))
        assert "1 protein(s) of the 1 that were given cannot be used" in error

    def test_a_build_that_was_lost_goes_on_where_it_stopped(
        self, job: TaskRunner, tmp_path: Path, services: FakeScreening
    ) -> None:
        """D20, D38"""
        many = write_proteins(tmp_path / "many.csv", {f"Q{number}": "A" * (number + 1) for number in range(100)})
        services.encoder = TinyEncoder(lives=2)
        outcome = job.run(build_task(many, tmp_path / "out"))
        assert (outcome.error_class, outcome.is_final) == ("WorkerLost", False)
        embedded_before = len(services.encoder.embedded)
        services.encoder = TinyEncoder()
        output = job.complete(build_task(many, tmp_path / "out"))
        assert 0 < embedded_before == output["reused"]
        assert output["embedded"] == 100 - embedded_before

    def test_without_a_model_it_says_so(self, job: TaskRunner, proteins_csv: Path, tmp_path: Path) -> None:
        """D63"""
        job.stored.clear()
        assert "task build_screening_set has no model" in job.fail(build_task(proteins_csv, tmp_path))


class TestRunScreening:
    def test_hits_are_shared_given_and_written(self, job: TaskRunner, screening_set: Path, tmp_path: Path) -> None:
        """D63, D64"""
        task = screen_task(screening_set_path=screening_set, output_dir=tmp_path / "out")
        output = job.complete(task)
        assert [len(ids) for ids in rankings(output)] == [5, 5, 5]
        assert output["counts"] == {"reactions": 3, "screened": 3, "rejected": 0, "hits": 15}
        assert rankings(job.shared("screening_results")) == rankings(output)
        written = tmp_path / "out"
        assert rankings(json.loads((written / "screening_results.json").read_text())) == rankings(output)
        rows = list(csv.DictReader((written / "screening_results.csv").open()))
        assert [row["protein_id"] for row in rows] == [name for ids in rankings(output) for name in ids]
        assert output["files"] == [str(written / f"screening_results.{kind}") for kind in ("json", "csv", "parquet")]
        assert rising_to_100(job.told)

    def test_both_modes_rank_alike(self, job: TaskRunner, screening_set: Path) -> None:
        """D63"""
        interactive, batched = (
            job.complete(screen_task(screening_set_path=screening_set, mode=mode))
            for mode in ("interactive", "batched")
        )
        assert rankings(interactive) == rankings(batched)

    def test_more_hits_than_proteins_are_clamped_and_said(self, job: TaskRunner, screening_set: Path) -> None:
        """D63"""
        output = job.complete(screen_task(screening_set_path=screening_set, top_k=1000))
        assert {len(ids) for ids in rankings(output)} == {len(PROTEINS)}
        assert output["notes"]

    @pytest.mark.parametrize(
        ("missing", "said"),
        [
            ({"model": None}, "task run_screening has no model"),
            ({"screening_set_path": None}, "task run_screening has no screening set"),
            ({"screening_set_path": "referense"}, "unknown screening set 'referense'"),
            ({"reactions": []}, "task run_screening has no reaction to screen"),
            ({"reactions": "nowhere.csv"}, "nowhere.csv: there is no such file of reactions"),
        ],
    )
    def test_what_is_missing_is_named_in_a_failed_result(
        self, job: TaskRunner, screening_set: Path, missing: dict[str, Any], said: str
    ) -> None:
        """D63"""
        if "model" in missing:
            job.stored.clear()
            missing = {}
        assert said in job.fail(screen_task(**{"screening_set_path": screening_set} | missing))

    def test_the_set_of_an_earlier_task_is_taken(self, job: TaskRunner, screening_set: Path) -> None:
        """D64"""
        job.share(screening_set_path=str(screening_set))
        assert job.complete(screen_task())["screening_set"] == str(screening_set)

    def test_bad_rows_are_named_by_line_and_the_others_are_screened(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D66"""
        table = tmp_path / "reactions.csv"
        table.write_text(f"reaction_id,reaction_smiles\na,{ETHANOL}\nb,nonsense\n\nc,{ACETATE}\n")
        output = job.complete(screen_task(reactions=table, screening_set_path=screening_set))
        assert [result["reaction_id"] for result in output["results"]] == ["a", "c"]
        assert [row["line"] for row in output["rejected"]] == [3]
        assert f"{table}: line 3" in output["rejected"][0]["reason"]
        assert output["counts"] == {"reactions": 3, "screened": 2, "rejected": 1, "hits": 10}
        assert "line 3" in job.fail(screen_task(reactions=table, screening_set_path=screening_set, strict=True))

    def test_bad_reactions_of_a_list_are_named_by_number(self, job: TaskRunner, screening_set: Path) -> None:
        """D66"""
        some = [ETHANOL, "nonsense"]
        output = job.complete(screen_task(reactions=some, screening_set_path=screening_set))
        assert [row["line"] for row in output["rejected"]] == [2]
        assert "reaction 2" in job.fail(screen_task(reactions=some, screening_set_path=screening_set, strict=True))
        none = job.fail(screen_task(reactions=["nonsense"], screening_set_path=screening_set))
        assert "none of the 1 reactions could be screened" in none

    def test_embeddings_in_the_public_form_are_converted_once(self, job: TaskRunner, tmp_path: Path) -> None:
        """D66"""
        rows = torch.from_numpy(np.stack([embedding(sequence) for sequence in PROTEINS.values()]))
        (tmp_path / "set.p").write_bytes(pickle.dumps({"hiddens": rows, "uniprots": list(PROTEINS)}))
        first = job.complete(screen_task(screening_set_path=tmp_path / "set.p"))
        made = Path(first["screening_set"])
        before = made.stat()
        second = job.complete(screen_task(screening_set_path=tmp_path / "set.p"))
        assert rankings(second) == rankings(first)
        assert made.stat() == before

    def test_a_pickle_that_would_run_code_is_refused(self, job: TaskRunner, tmp_path: Path) -> None:
        """D64, D66"""
        (tmp_path / "set.p").write_bytes(pickle.dumps({"hiddens": _Evil(tmp_path / "witness"), "uniprots": ["a"]}))
        assert "CheckpointError" in job.fail(screen_task(screening_set_path=tmp_path / "set.p"))
        assert not (tmp_path / "witness").exists()

    def test_a_set_of_another_dimension_is_refused(self, job: TaskRunner, tmp_path: Path) -> None:
        """D65"""
        rows = np.eye(DIMENSION + 1, dtype=np.float32)
        ScreeningSet.from_arrays([str(row) for row in range(len(rows))], rows, None, TINY).save(tmp_path / "nine.arrow")
        assert "embeddings of 9 dimensions" in job.fail(screen_task(screening_set_path=tmp_path / "nine.arrow"))

    def test_a_set_leaves_memory_when_it_was_asked_to(
        self, job: TaskRunner, screening_set: Path, services: FakeScreening
    ) -> None:
        """D61"""
        digest = ScreeningSet.open(screening_set).digest
        job.complete(screen_task(screening_set_path=screening_set))
        job.complete(screen_task(screening_set_path=screening_set, release="on failure"))
        assert services.released == []
        job.fail(screen_task(screening_set_path=screening_set, reactions=["nonsense"], release="on failure"))
        job.complete(screen_task(screening_set_path=screening_set, release="always"))
        assert services.released == [digest, digest]


class TestEvaluateScreening:
    def test_known_enzymes_and_the_set_may_be_given(self, job: TaskRunner, screening_set: Path, tmp_path: Path) -> None:
        """D64, D67"""
        known = [
            {"reaction": ETHANOL, "known_enzymes": [next(iter(PROTEINS)), "absent"]},
            {"reaction": "nonsense", "known_enzymes": ["P1"]},
        ]
        document = job.complete(evaluate_task(known, tmp_path / "out", screening_set_path=screening_set))
        assert (document["ranking"], document["num_total"], document["num_missing_actives"]) == (
            "full",
            len(PROTEINS),
            1,
        )
        truth = document["ground_truth"]
        assert (truth["file"], truth["reactions"], truth["rejected"]) == ("given", 1, 1)
        assert "reaction 2" in truth["first_rejected"][0]
        unknown = job.fail(evaluate_task([ETHANOL], tmp_path / "out", screening_set_path=screening_set))
        assert "at least one reaction that can be read must have known_enzymes" in unknown

    def test_the_whole_ranking_is_measured(self, job: TaskRunner, screening_set: Path, tmp_path: Path) -> None:
        """D64, D67"""
        job.share(screening_set_path=str(screening_set))
        order = rankings(job.complete(screen_task(reactions=[ETHANOL], top_k=len(PROTEINS))))[0]
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, f"{order[0]},{order[-1]},absent")])
        document = job.complete(evaluate_task(truth, tmp_path / "out"))
        assert document == json.loads((tmp_path / "out" / "evaluation_results.json").read_text())
        assert document == job.shared("evaluation_results")
        assert (document["ranking"], document["num_actives"], document["num_missing_actives"]) == ("full", 3, 1)
        assert document["TopK_1"] == pytest.approx(1 / 3)
        # Ranks 1, 30 and, since the set lacks the third, 31 of 31.
        assert document["AUROC"] == pytest.approx(1 - (1 + 30 + 31 - 6) / (3 * 28))
        assert document["metrics_left_out"] == []
        assert rising_to_100(job.told)

    def test_only_reactions_that_were_screened_count(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D66"""
        job.share(screening_set_path=str(screening_set))
        job.complete(screen_task(reactions=[ETHANOL, PEROXIDE]))
        rows = [("a", "OCC>>O=CC", "P01"), ("b", ACETATE, "P02"), ("c", ETHANOL, ""), ("d", "nonsense", "P03")]
        document = job.complete(evaluate_task(write_truth(tmp_path / "truth.csv", rows), tmp_path / "out"))
        assert [row["reaction_id"] for row in document["reactions"]] == ["a"]
        counts = {key: document["ground_truth"][key] for key in ("rejected", "without_enzymes", "not_screened")}
        assert counts == {"rejected": 1, "without_enzymes": 1, "not_screened": 1}
        assert document["ground_truth"]["screened_unknown"] == 1
        assert "line 5" in document["ground_truth"]["first_rejected"][0]
        other = write_truth(tmp_path / "other.csv", [("b", ACETATE, "P02")])
        assert "knows no enzyme of any of the 2 reactions" in job.fail(evaluate_task(other, tmp_path / "out"))

    def test_known_enzymes_come_as_lists_or_as_pairs(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D66"""
        job.share(screening_set_path=str(screening_set))
        lists = write_truth(tmp_path / "lists.csv", [("a", ETHANOL, "P01,P02"), ("b", ACETATE, "P03")])
        pairs = tmp_path / "pairs.csv"
        pairs.write_text(
            f"protein_id,reaction_smiles,reaction_id\nP01,{ETHANOL},a\nP02,{ETHANOL},a\nP03,{ACETATE},b\n"
            f"P04,{PEROXIDE},b\n,{ETHANOL},a\nP05,nonsense,c\n"
        )
        of_lists, of_pairs = (job.complete(evaluate_task(path, tmp_path / "out")) for path in (lists, pairs))
        assert of_lists["intervals"] == of_pairs["intervals"]
        assert of_lists["reactions"] == of_pairs["reactions"]
        assert [reason.split(": ")[1] for reason in of_pairs["ground_truth"]["first_rejected"]] == [
            "line 5", "line 6", "line 7",
        ]  # fmt: skip

    def test_reactions_that_the_model_was_trained_on_are_left_out_and_counted(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D67"""
        job.share(screening_set_path=str(screening_set))
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01"), ("b", ACETATE, "P02")])
        (tmp_path / "training.txt").write_text("OCC>>O=CC\n")
        task = evaluate_task(truth, tmp_path / "out", training_reactions_csv=tmp_path / "training.txt")
        document = job.complete(task)
        assert (document["num_reactions"], document["num_excluded_training"]) == (1, 1)

    def test_without_a_model_the_hits_of_an_earlier_screen_are_measured_as_far_as_they_go(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D62, D67"""
        job.share(screening_set_path=str(screening_set))
        order = rankings(job.complete(screen_task(reactions=[ETHANOL], top_k=len(PROTEINS))))[0]
        job.complete(screen_task(reactions=[ETHANOL], top_k=10, output_dir=tmp_path / "out"))
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, f"{order[2]},{order[20]},absent")])
        later = TaskRunner(tmp_path / "later")
        document = later.complete(evaluate_task(truth, tmp_path / "out"))
        assert set(document["intervals"]) == {"TopK_1", "TopK_5", "TopK_10", "HitRate@1", "HitRate@5", "HitRate@10"}
        assert (document["TopK_1"], document["HitRate@5"]) == (0, 1)
        assert document["TopK_10"] == pytest.approx(1 / 3)
        assert (document["ranking"], document["depth"]) == ("cut", 10)
        assert (document["num_actives"], document["num_missing_actives"], document["num_unlisted_actives"]) == (3, 1, 1)
        assert "AUROC" in document["metrics_left_out"]
        assert max(document["recall_curve"]["k"]) <= 10

    def test_a_metric_of_the_whole_ranking_is_refused_on_hits_that_end(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D67"""
        job.complete(screen_task(reactions=[ETHANOL], screening_set_path=screening_set, output_dir=tmp_path / "out"))
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01")])
        later = TaskRunner(tmp_path / "later")
        error = later.fail(evaluate_task(truth, tmp_path / "out", metrics=["topk", "BEDROC_85", "AUROC"]))
        assert "BEDROC_85, AUROC cannot be computed from hits that end at rank 5" in error
        document = later.complete(evaluate_task(truth, tmp_path / "out", metrics=["topk"]))
        assert set(document["intervals"]) == {"TopK_1", "TopK_5"}
        assert "HitRate@1" not in document["reactions"][0]

    def test_hits_that_are_the_whole_ranking_give_every_metric(
        self, job: TaskRunner, screening_set: Path, tmp_path: Path
    ) -> None:
        """D67"""
        job.share(screening_set_path=str(screening_set))
        job.complete(screen_task(top_k=100, output_dir=tmp_path / "out"))
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01,absent"), ("b", ACETATE, "P02")])
        ranked = job.complete(evaluate_task(truth, tmp_path / "ranked"))
        measured = TaskRunner(tmp_path / "later").complete(evaluate_task(truth, tmp_path / "out"))
        assert measured["intervals"] == ranked["intervals"]
        assert measured["reactions"] == ranked["reactions"]

    def test_with_nothing_to_evaluate_it_says_what_there_could_be(self, job: TaskRunner, tmp_path: Path) -> None:
        """D63"""
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01")])
        assert "task evaluate_screening has nothing to evaluate" in job.fail(evaluate_task(truth, tmp_path / "out"))
        assert "no such file of known enzymes" in job.fail(evaluate_task(tmp_path / "absent.csv", tmp_path / "out"))
        (tmp_path / "plain.txt").write_text(f"{ETHANOL}\n")
        assert "names no known enzymes" in job.fail(evaluate_task(tmp_path / "plain.txt", tmp_path / "out"))


class TestGenerateReport:
    @pytest.fixture
    def evaluated(self, job: TaskRunner, screening_set: Path, tmp_path: Path) -> TaskRunner:
        job.share(screening_set_path=str(screening_set))
        job.complete(screen_task(reactions=[*REACTIONS, "nonsense"]))
        truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01"), ("b", ACETATE, "P02,absent")])
        job.complete(evaluate_task(truth, tmp_path / "out"))
        return job

    def report_task(self, output: Path, **arguments: Any) -> GenerateReportTask:
        return GenerateReportTask(TaskConfig("generate_report"), output, **arguments)

    def test_figures_hits_and_what_was_left_out_are_in_it(self, evaluated: TaskRunner, tmp_path: Path) -> None:
        """D64"""
        output = evaluated.complete(self.report_task(tmp_path / "out"))
        assert [Path(file).name for file in output["files"]] == ["report.txt", "report.html", "screening_report.html"]
        text = (tmp_path / "out" / "report.txt").read_text()
        assert "2 reactions, 3 known enzymes, 1 of them not in the set of 30 proteins" in text
        assert "BEDROC_85" in text
        assert "3 reactions screened, 1 rejected" in text
        assert "rejected: reaction 4 (line 4)" in text
        page = (tmp_path / "out" / "report.html").read_text()
        assert "data:image/svg+xml" in page
        assert "BEDROC_85" in page

    def test_a_plot_that_fails_is_a_warning(
        self, evaluated: TaskRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """D64"""

        def broken(*_: Any, **__: Any) -> str:
            raise RuntimeError("no fonts")

        monkeypatch.setattr(plots, "recall_curve", broken)
        evaluated.complete(self.report_task(tmp_path / "out"))
        assert "leaves out the plot 'recall': no fonts" in caplog.text
        assert (tmp_path / "out" / "report.html").is_file()

    def test_without_plots_the_page_shows_the_hits(self, evaluated: TaskRunner, tmp_path: Path) -> None:
        """D62"""
        output = evaluated.complete(self.report_task(tmp_path / "out", include_plots=False))
        assert [Path(file).name for file in output["files"]] == ["report.txt", "report.html"]
        assert "data:image/svg+xml" not in (tmp_path / "out" / "report.html").read_text()

    def test_with_nothing_to_report_it_says_so(self, job: TaskRunner, tmp_path: Path) -> None:
        """D63"""
        assert "task generate_report has nothing to report" in job.fail(self.report_task(tmp_path / "out"))


def test_the_full_pipeline_writes_every_file_that_it_promises(
    tmp_path: Path, proteins_csv: Path, services: FakeScreening
) -> None:
    """D62, D64"""
    truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01"), ("b", ACETATE, "P02")])
    runner = TaskRunner(tmp_path / "attempts", services)
    outputs = runner.complete_all(
        create_full_pipeline("baseline", REACTIONS, proteins_csv, truth, 10, tmp_path / "out", "cpu")
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation_results.json", "report.html", "report.txt", "screening_report.html", "screening_results.csv",
        "screening_results.json", "screening_results.parquet", "screening_set.arrow",
    ]  # fmt: skip
    assert set(runner.stored) == {
        "checkpoint_path", "model", "screening_set", "screening_set_path", "screening_results", "evaluation_results",
    }  # fmt: skip
    assert outputs["evaluate_screening"]["ranking"] == "full"
    # Once, by the last that needs it.
    assert services.released == [runner.shared("screening_set")["digest"]]


def test_an_earlier_screen_can_be_evaluated_and_reported_later(
    tmp_path: Path, proteins_csv: Path, services: FakeScreening
) -> None:
    """D62"""
    screening = create_screening_workflow("baseline", REACTIONS, proteins_csv, 10, tmp_path / "out", "cpu")
    TaskRunner(tmp_path / "attempts", services).complete_all(screening)
    truth = write_truth(tmp_path / "truth.csv", [("a", ETHANOL, "P01")])
    outputs = TaskRunner(tmp_path / "later").complete_all(create_evaluation_workflow(truth, tmp_path / "out"))
    assert outputs["evaluate_screening"]["ranking"] == "cut"
    assert "measured on the first 10 hits" in (tmp_path / "out" / "report.txt").read_text()


def test_the_users_own_callback_hears_the_same(tmp_path: Path, screening_set: Path, services: FakeScreening) -> None:
    """D37, D63"""
    from rayzyme.workflows.context import TaskContext

    heard: list[tuple[float, str]] = []
    told: list[tuple[float, str]] = []
    task = screen_task(screening_set_path=screening_set, progress_callback=lambda *progress: heard.append(progress))
    context = TaskContext(
        task_name="run_screening", shared_state={"model": MODEL}, services=services, folder=tmp_path,
        progress_callback=lambda *progress: told.append(progress),
    )  # fmt: skip
    assert task.execute(context).success
    assert heard == told
    assert rising_to_100(heard)


class _Evil:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._witness}",)
