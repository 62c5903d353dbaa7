"""The ready-made workflows: which tasks, in which order, for which device, and as what they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayzyme.chemistry import ReactionRecord
from rayzyme.errors import DeviceUnavailable, InvalidInput
from rayzyme.jobs.job import TaskPriority
from rayzyme.resources import FakeGPUs
from rayzyme.settings import load_settings, use_settings
from rayzyme.workflows import ready_made
from rayzyme.workflows.builder import WorkflowBuilder
from rayzyme.workflows.plan import check_possible, plan_needs
from rayzyme.workflows.ready_made import (
    create_evaluation_workflow,
    create_full_pipeline,
    create_screening_workflow,
    create_set_evaluation_workflow,
    create_simple_screening_workflow,
)
from rayzyme.workflows.specs import load_task, plan_from_spec, to_spec
from rayzyme.workflows.task_config import TaskConfig
from rayzyme.workflows.tasks import LoadCheckpointTask, RunScreeningTask
from rayzyme.workflows.workflow import Workflow

REACTIONS = ["CCO>>CC=O", "CC(=O)OCC.O>>CC(=O)O.CCO"]
PIPELINE = ["download_checkpoint", "validate_checkpoint", "load_checkpoint", "build_screening_set", "run_screening"]
ON_GPU = {"load_checkpoint", "build_screening_set", "run_screening"}


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has."""
    machine_with(monkeypatch)


def machine_with(monkeypatch: pytest.MonkeyPatch, *free_mb: int) -> None:
    monkeypatch.setattr(ready_made, "SystemGPUs", lambda: FakeGPUs(free_mb))


def names(workflow: Workflow) -> list[str]:
    return [name for level in workflow.get_execution_plan() for name in level]


def asking_for_gpus(workflow: Workflow) -> set[str]:
    return {task.name for task in workflow.tasks if task.config.gpu_required}


def stored(workflow: Workflow) -> dict[str, dict[str, Any]]:
    """The constructor arguments of each task as they are stored."""
    spec = to_spec(workflow)
    assert spec.is_durable
    return {task["name"]: task["arguments"] for task in json.loads(json.dumps(spec.document))["tasks"]}


def test_the_screening_workflow_runs_five_tasks_one_after_the_other() -> None:
    """D61"""
    workflow = create_screening_workflow("baseline", REACTIONS, "proteins.csv")
    assert names(workflow) == PIPELINE
    assert (workflow.config.max_parallel_tasks, workflow.config.fail_fast) == (1, True)
    priorities = [task.config.priority for task in workflow.tasks]
    assert priorities == [TaskPriority.HIGH, *[TaskPriority.NORMAL] * 4]
    assert workflow.tasks[0].config.max_retries == 3


def test_results_go_where_they_are_asked_for_else_to_results_screening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D61"""
    monkeypatch.chdir(tmp_path)
    by_default = stored(create_screening_workflow("baseline", REACTIONS, "proteins.csv"))
    assert by_default["run_screening"]["output_dir"] == str(tmp_path / "results" / "screening")
    assert by_default["build_screening_set"]["output_dir"] == str(tmp_path / "results" / "screening")
    asked = stored(create_screening_workflow("baseline", REACTIONS, "proteins.csv", output_dir=tmp_path / "mine"))
    assert asked["run_screening"]["output_dir"] == str(tmp_path / "mine")


def test_a_set_cannot_be_built_of_no_proteins() -> None:
    """D61"""
    with pytest.raises(ValueError, match="proteins_csv is None: give one, or build_screening_set=False"):
        create_screening_workflow("baseline", REACTIONS)


def test_without_building_a_set_that_is_there_is_screened_and_stays_in_memory() -> None:
    """D61"""
    workflow = create_screening_workflow("baseline", REACTIONS, build_screening_set=False)
    assert names(workflow) == [name for name in PIPELINE if name != "build_screening_set"]
    arguments = stored(workflow)["run_screening"]
    assert (arguments["screening_set_path"], arguments["release"]) == ("reference", "never")
    assert stored(create_screening_workflow("baseline", REACTIONS, "p.csv"))["run_screening"]["release"] == "always"


def test_the_full_pipeline_evaluates_and_reports_too() -> None:
    """D62"""
    workflow = create_full_pipeline("baseline", REACTIONS, "proteins.csv", "truth.csv")
    assert names(workflow) == [*PIPELINE, "evaluate_screening", "generate_report"]
    arguments = stored(workflow)
    folders = {arguments[name]["output_dir"] for name in (*PIPELINE[3:], "evaluate_screening", "generate_report")}
    assert folders == {str(Path("results/full_pipeline").absolute())}
    assert arguments["evaluate_screening"]["release"] == "always"


def test_a_set_is_evaluated_by_ranking_it_whole() -> None:
    """D62"""
    known = [{"reaction": REACTIONS[0], "known_enzymes": ["P1"]}]
    workflow = create_set_evaluation_workflow("baseline", known, "mine", "out", ["TopK"], "cpu")
    assert names(workflow) == [*PIPELINE[:3], "evaluate_screening", "generate_report"]
    arguments = stored(workflow)["evaluate_screening"]
    assert (arguments["ground_truth_csv"], arguments["screening_set_path"]) == (known, "mine")
    with pytest.raises(InvalidInput, match="reaction 1 is 7"):
        create_set_evaluation_workflow("baseline", [7])  # type: ignore[list-item]


def test_proteins_may_be_given_as_they_are() -> None:
    """D61"""
    proteins = [{"protein_id": "P1", "sequence": "MKV", "organism": "human"}]
    arguments = stored(create_screening_workflow("baseline", REACTIONS, proteins))
    assert arguments["build_screening_set"]["proteins_csv"] == proteins
    for wrong in ([{"protein_id": "P1"}], [{"protein_id": "P1", "sequence": 7}], ["MKV"]):
        with pytest.raises(InvalidInput, match="protein 1 is"):
            create_screening_workflow("baseline", REACTIONS, wrong)  # type: ignore[arg-type]


def test_a_given_set_is_screened_by_two_tasks() -> None:
    """D62"""
    workflow = create_simple_screening_workflow("model.ckpt", "set.arrow", REACTIONS, 5, "out", "cpu")
    assert names(workflow) == ["load_checkpoint", "run_screening"]
    assert stored(workflow)["run_screening"]["top_k"] == 5


def test_an_earlier_screen_is_evaluated_by_two_tasks() -> None:
    """D62"""
    workflow = create_evaluation_workflow("truth.csv", "out", ["topk", "HitRate@1"], include_plots=False)
    assert names(workflow) == ["evaluate_screening", "generate_report"]
    assert stored(workflow)["evaluate_screening"]["metrics"] == ["TopK", "HitRate@1"]
    assert stored(workflow)["generate_report"]["include_plots"] is False


@pytest.mark.parametrize("create", [create_screening_workflow, create_full_pipeline])
def test_what_there_is_not_is_refused_at_once(create: Any) -> None:
    """D63, D73"""
    files = {"proteins_csv": "p.csv"} | ({"ground_truth_csv": "t.csv"} if create is create_full_pipeline else {})
    with pytest.raises(ValueError, match="device 'tpu' is unknown; use auto or cpu or cuda"):
        create("baseline", REACTIONS, device="tpu", **files)
    with pytest.raises(InvalidInput, match="reaction 2 is 7"):
        create("baseline", ["CCO>>CC=O", 7], **files)
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        create("baseline", REACTIONS, top_k=0, **files)


def test_an_unknown_mode_or_metric_is_refused_with_those_that_there_are() -> None:
    """D63"""
    with pytest.raises(ValueError, match="mode 'fast' is unknown; use interactive or batched"):
        create_screening_workflow("baseline", REACTIONS, "p.csv", mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no metric 'accuracy'; there are BEDROC_20"):
        create_evaluation_workflow("truth.csv", metrics=["accuracy"])


def test_cuda_asks_for_gpus_and_is_refused_where_the_cluster_has_none() -> None:
    """D27"""
    workflow = create_screening_workflow("baseline", REACTIONS, "proteins.csv", device="cuda")
    assert asking_for_gpus(workflow) == ON_GPU
    plan = plan_from_spec(to_spec(workflow).document)
    with pytest.raises(DeviceUnavailable, match="task load_checkpoint needs 1 GPU; the cluster has 0"):
        check_possible(plan, {"cpu": 4})
    check_possible(plan, {"cpu": 4}, "cpu")
    check_possible(plan, {"cpu": 4, "gpu": 1})


def test_the_gpus_are_the_actors_and_not_the_tasks() -> None:
    """D27"""
    plan = plan_from_spec(to_spec(create_screening_workflow("baseline", REACTIONS, "p.csv", device="cuda")).document)
    assert plan_needs(plan) == {"slot:workflow": 1.0}


def test_auto_asks_for_a_gpu_where_this_machine_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """D27"""
    assert asking_for_gpus(create_screening_workflow("baseline", REACTIONS, "p.csv")) == set()
    machine_with(monkeypatch, 40000)
    assert asking_for_gpus(create_screening_workflow("baseline", REACTIONS, "p.csv")) == ON_GPU
    assert asking_for_gpus(create_screening_workflow("baseline", REACTIONS, "p.csv", device="cpu")) == set()


def test_auto_asks_for_none_that_is_kept_from_it_or_where_the_work_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D27"""
    machine_with(monkeypatch, 40000)
    for overrides in ({"ray": {"address": "10.0.0.1:6379"}}, {"resources": {"gpu": {"auto_allocate": False}}}):
        use_settings(load_settings(overrides=overrides))
        assert asking_for_gpus(create_screening_workflow("baseline", REACTIONS, "p.csv")) == set()


def test_paths_are_stored_in_full_and_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D29"""
    monkeypatch.chdir(tmp_path)
    # A file that happens to have the name of a checkpoint is not meant.
    (tmp_path / "baseline").touch()
    arguments = stored(create_full_pipeline("baseline", REACTIONS, "proteins.csv", "truth.csv", output_dir="out"))
    assert arguments["load_checkpoint"] == {"checkpoint_path": "baseline", "device": "auto"}
    assert arguments["build_screening_set"]["proteins_csv"] == str(tmp_path / "proteins.csv")
    assert arguments["evaluate_screening"]["ground_truth_csv"] == str(tmp_path / "truth.csv")
    simple = stored(create_simple_screening_workflow("models/a.ckpt", "sets/b.arrow", REACTIONS))
    assert simple["load_checkpoint"]["checkpoint_path"] == str(tmp_path / "models" / "a.ckpt")
    assert simple["run_screening"]["screening_set_path"] == str(tmp_path / "sets" / "b.arrow")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (REACTIONS, REACTIONS),
        ("CCO>>CC=O", ["CCO>>CC=O"]),
        ("reactions.csv", str(Path("reactions.csv").absolute())),
        (Path("/data/reactions.txt"), "/data/reactions.txt"),
        (
            [ReactionRecord("r1", "CCO>>CC=O", ("P1", "P2"), 4, "1.1.1.1")],
            [{"reaction_id": "r1", "reaction": "CCO>>CC=O", "line": 4, "known_enzymes": ["P1", "P2"], "ec": "1.1.1.1"}],
        ),
        (
            [{"reaction_id": "r1", "reaction_smiles": "CCO>>CC=O"}],
            [{"reaction_id": "r1", "reaction": "CCO>>CC=O"}],
        ),
    ],
)
def test_reactions_come_in_every_form_and_are_stored_as_json(given: Any, kept: Any) -> None:
    """D63, D66"""
    assert stored(create_screening_workflow("baseline", given, "p.csv"))["run_screening"]["reactions"] == kept


def test_a_task_made_again_from_what_is_stored_is_the_same(tmp_path: Path) -> None:
    """D29"""
    made = RunScreeningTask(
        TaskConfig("screen", max_retries=1), REACTIONS, "reference", tmp_path, 7, "batched", print, {"ec": "1"}, True
    )
    workflow = WorkflowBuilder("one").add_task(made).build()
    document = json.loads(json.dumps(to_spec(workflow).document))["tasks"][0]
    again = load_task(document)
    assert isinstance(again, RunScreeningTask)
    mine, theirs = dict(vars(made)), dict(vars(again))
    for attributes in (mine, theirs):
        del attributes["_called_with"], attributes["config"]
    # What stays in the program that submits.
    assert mine.pop("progress_callback") is print
    assert theirs.pop("progress_callback") is None
    assert mine == theirs
    assert again.config.to_document() == made.config.to_document()


def test_only_what_may_not_come_again_is_tried_again_unless_the_user_says_otherwise() -> None:
    """D17"""
    by_default = LoadCheckpointTask(TaskConfig("load")).config
    assert by_default.retries_on(ConnectionError)
    assert not by_default.retries_on(InvalidInput)
    assert LoadCheckpointTask(TaskConfig("load", retry_on_errors=[InvalidInput])).config.retries_on(InvalidInput)
