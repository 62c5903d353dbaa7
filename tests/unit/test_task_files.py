"""Files of an attempt: unseen before its commit, in place after it, once, through every crash and across file systems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.killing import survives_step

from rayzyme.errors import DamagedFile, InvalidInput
from rayzyme.workflows import TaskContext
from rayzyme.workflows.publishing import discard, is_in_place, manifest_of, publish


def written(context: TaskContext, **files: str) -> None:
    for name, content in files.items():
        context.output_file(context.config["folder"] / f"{name}.txt").write_text(content)


@pytest.fixture
def context(tmp_path: Path) -> TaskContext:
    return TaskContext(task_name="t", folder=tmp_path / "attempt", config={"folder": tmp_path / "results"})


def test_a_file_appears_under_its_final_path_only_when_it_is_published(context: TaskContext, tmp_path: Path) -> None:
    """D20"""
    written(context, a="one", b="two")
    manifest = json.loads(json.dumps(manifest_of(context.written)))
    assert not (tmp_path / "results").exists()
    assert [(one.path.name, one.how) for one in publish(manifest)] == [("a.txt", "renamed"), ("b.txt", "renamed")]
    assert (tmp_path / "results" / "a.txt").read_text() == "one"
    assert all(map(is_in_place, manifest))
    assert [one.how for one in publish(manifest)] == ["already there"] * 2


def test_publishing_that_was_killed_anywhere_is_completed_by_publishing_again(
    context: TaskContext, tmp_path: Path
) -> None:
    """D19, D20"""
    step, survived = 0, False
    while not survived:
        written(context, a=f"one {step}", b=f"two {step}")
        manifest = manifest_of(context.written)
        survived = survives_step(lambda manifest=manifest: publish(manifest), step)  # type: ignore[misc]
        publish(manifest)
        assert all(map(is_in_place, manifest))
        assert (tmp_path / "results" / "b.txt").read_text() == f"two {step}"
        step += 1
    assert step > 3


def test_files_go_to_another_file_system_by_a_copy_that_is_renamed(context: TaskContext, small_disk: Path) -> None:
    """D20"""
    source = context.output_file(small_disk / "out" / "a.txt")
    source.write_text("one")
    manifest = manifest_of(context.written)
    assert [one.how for one in publish(manifest)] == ["copied"]
    assert (small_disk / "out" / "a.txt").read_text() == "one"
    assert not source.exists()
    assert [one.how for one in publish(manifest)] == ["already there"]


def test_a_file_that_is_neither_here_nor_there_is_named(context: TaskContext, tmp_path: Path) -> None:
    """D20"""
    written(context, a="one")
    manifest = manifest_of(context.written)
    discard(tmp_path / "attempt")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.txt").write_text("six")
    with pytest.raises(DamagedFile, match=r"a\.txt cannot be published"):
        publish(manifest)
    assert (tmp_path / "results" / "a.txt").read_text() == "six"


def test_asking_again_gives_the_same_path_and_what_is_not_written_is_not_published(
    context: TaskContext, tmp_path: Path
) -> None:
    """D20"""
    assert context.output_file(tmp_path / "a.txt") == context.output_file(str(tmp_path / "a.txt"))
    assert context.output_file(tmp_path / "b" / "a.txt") != context.output_file(tmp_path / "a.txt")
    assert manifest_of(context.written) == []


def test_a_folder_is_no_output_file(context: TaskContext, tmp_path: Path) -> None:
    """D20"""
    with pytest.raises(InvalidInput, match="is a folder"):
        context.output_file(tmp_path)
    with pytest.raises(InvalidInput, match="no folder of its own"):
        TaskContext(task_name="t").output_file(tmp_path / "a.txt")
