"""The ready-made tasks on real actors with the bundled model: the rankings of a direct screen, and memory given back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import list_named_actors
from tests.support.task_running import TaskRunner

from rayzyme.errors import DeviceUnavailable
from rayzyme.screening import ScreeningSet
from rayzyme.settings import get_settings, load_settings
from rayzyme.workflows.ready_made import (
    create_full_pipeline,
    create_screening_workflow,
    create_simple_screening_workflow,
)
from rayzyme.workflows.services import ScreeningServices
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks import LoadCheckpointTask, RunScreeningTask
from rayzyme_actors.screening import Screener, screen
from rayzyme_actors.screening_services import ActorScreening

ALCOHOL = "CCO.NC(=O)c1ccc[n+]([C@@H]2O[C@H](COP(=O)(O)O)[C@@H](O)[C@H]2O)c1>>CC=O.NC(=O)C1=CN([C@@H]2O[C@H](COP(=O)(O)O)[C@@H](O)[C@H]2O)C=CC1"  # noqa: E501
PEROXIDE = "OO.OO>>O=O.O.O"
ACETATE = "CC(=O)OCC.O>>CC(=O)O.CCO"
REACTIONS = [ALCOHOL, PEROXIDE, ACETATE]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture
def job(tmp_path: Path) -> TaskRunner:
    return TaskRunner(tmp_path / "attempts", ActorScreening(get_settings()))


@pytest.fixture
def proteins_csv(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.csv"
    sequences = {f"P{number:02}": (LETTERS * 4)[number : number + 40] for number in range(24)}
    path.write_text("protein_id,sequence\n" + "".join(f"{name},{text}\n" for name, text in sequences.items()))
    return path


def rankings(answer: Any) -> list[list[tuple[str, float]]]:
    return [[(hit["protein_id"], hit["score"]) for hit in result["hits"]] for result in answer["results"]]


def shards_of(screening_set: Path) -> list[str]:
    digest = ScreeningSet.open(screening_set).digest
    return [name for name in list_named_actors() if name.startswith(f"shard:{digest[:16]}")]


def test_actors_offer_what_the_tasks_ask_for() -> None:
    """D63"""
    assert isinstance(ActorScreening(get_settings()), ScreeningServices)


@pytest.mark.parametrize("mode", ["interactive", "batched"])
def test_a_workflow_ranks_as_a_direct_screen_does(job: TaskRunner, tmp_path: Path, mode: Any) -> None:
    """D61, D63"""
    workflow = create_screening_workflow(
        "baseline", REACTIONS, None, 50, tmp_path / "out", "cpu", mode, build_screening_set=False
    )
    output = job.complete_all(workflow)["run_screening"]
    assert rankings(output) == rankings(screen(REACTIONS, 50, device="cpu"))
    percentages = [percentage for percentage, _ in job.told]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100


def test_a_set_of_the_users_own_proteins_is_built_ranked_and_let_go(
    job: TaskRunner, proteins_csv: Path, tmp_path: Path
) -> None:
    """D61, D64"""
    workflow = create_screening_workflow("baseline", REACTIONS, proteins_csv, 1000, tmp_path / "out", "cpu")
    outputs = job.complete_all(workflow)
    built = tmp_path / "out" / "screening_set.arrow"
    assert outputs["build_screening_set"]["embedded"] == 24
    assert {len(hits) for hits in rankings(outputs["run_screening"])} == {24}
    assert "all 24 are ranked" in outputs["run_screening"]["notes"][0]
    assert shards_of(built) == []
    assert rankings(screen(REACTIONS, 24, built, device="cpu")) == rankings(outputs["run_screening"])
    Screener("baseline", built, device="cpu").release_shards()


def test_the_full_pipeline_evaluates_the_whole_ranking(job: TaskRunner, proteins_csv: Path, tmp_path: Path) -> None:
    """D62, D67"""
    truth = tmp_path / "truth.csv"
    with truth.open("w", newline="") as sink:
        rows = [("a", PEROXIDE, "P00,P01"), ("b", ACETATE, "P02,absent")]
        csv.writer(sink).writerows([("reaction_id", "reaction_smiles", "known_enzymes"), *rows])
    outputs = job.complete_all(
        create_full_pipeline("baseline", REACTIONS, proteins_csv, truth, 3, tmp_path / "out", "cpu")
    )
    document = outputs["evaluate_screening"]
    assert (document["ranking"], document["num_total"], document["num_missing_actives"]) == ("full", 24, 1)
    assert (tmp_path / "out" / "report.html").is_file()
    assert shards_of(tmp_path / "out" / "screening_set.arrow") == []


def test_bad_reactions_are_listed_with_their_lines(job: TaskRunner, tmp_path: Path) -> None:
    """D66"""
    table = tmp_path / "reactions.csv"
    table.write_text(f"reaction_id,reaction_smiles\na,{PEROXIDE}\nb,nonsense\nc,{ACETATE}\n")
    workflow = create_simple_screening_workflow("baseline", "reference", table, 3, tmp_path / "out", "cpu")
    output = job.complete_all(workflow)["run_screening"]
    assert [row["line"] for row in output["rejected"]] == [3]
    assert rankings(output) == rankings(screen([PEROXIDE, ACETATE], 3, device="cpu"))


def test_a_set_of_another_checkpoint_is_refused(job: TaskRunner, tmp_path: Path) -> None:
    """D65"""
    opened = Screener("baseline", "reference", device="cpu").screening_set
    ScreeningSet.from_arrays(opened.protein_ids[:5], opened.embeddings[:5], None, "another").save(
        tmp_path / "set.arrow"
    )
    job.complete(LoadCheckpointTask(TaskConfig("load_checkpoint"), "baseline", "cpu"))
    error = job.fail(RunScreeningTask(TaskConfig("run_screening"), REACTIONS, tmp_path / "set.arrow"))
    assert "CheckpointMismatch" in error


def test_a_gpu_that_there_is_not_is_refused_or_replaced_as_the_settings_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D27"""
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this cluster has GPUs")
    with pytest.raises(DeviceUnavailable, match="0 GPUs"):
        ActorScreening(get_settings()).load("baseline", "cuda")
    lenient = load_settings(overrides={"resources": {"gpu": {"on_missing": "cpu"}}})
    job = TaskRunner(tmp_path / "attempts", ActorScreening(lenient))
    outcome = job.run(LoadCheckpointTask(TaskConfig("load_checkpoint"), "baseline", "cuda"))
    assert outcome.metadata["device"] == "cpu"
    assert [record.levelname for record in caplog.records if "the CPU is used" in record.message] == ["WARNING"]
    screened = job.run(RunScreeningTask(TaskConfig("run_screening"), [PEROXIDE], "reference", top_k=3))
    assert screened.metadata["device"] == "cpu"
