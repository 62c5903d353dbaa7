"""The states of a job, the moves between them, and what others call them."""

from __future__ import annotations

from enum import StrEnum

import pytest

from rayzyme.errors import IllegalTransition, UnknownWord
from rayzyme.jobs import vocabularies
from rayzyme.jobs.faults import FAULTS, classify
from rayzyme.jobs.job import TaskPriority
from rayzyme.jobs.states import FINAL, MOVES, JobState, check_move
from rayzyme.jobs.vocabularies import VOCABULARIES, Vocabulary

QUEUED, RUNNING, UNKNOWN = JobState.QUEUED, JobState.RUNNING, JobState.UNKNOWN
COMPLETED, FAILED, CANCELLED = JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED
ALLOWED = {
    *((QUEUED, to) for to in (RUNNING, FAILED, CANCELLED)),
    *((RUNNING, to) for to in (QUEUED, COMPLETED, FAILED, CANCELLED, UNKNOWN)),
    *((UNKNOWN, to) for to in (QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED)),
}


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("to", JobState)
def test_only_the_listed_moves_are_allowed(state: JobState, to: JobState) -> None:
    """D1"""
    if (state, to) in ALLOWED:
        check_move(state, to, [])
    else:
        with pytest.raises(IllegalTransition):
            check_move(state, to, [])


def test_nothing_leaves_a_final_state() -> None:
    """D1"""
    assert {state for state in JobState if not MOVES[state]} == FINAL == {COMPLETED, FAILED, CANCELLED}


def test_a_refused_move_tells_the_story_of_the_job() -> None:
    """D1"""
    with pytest.raises(IllegalTransition) as refused:
        check_move(COMPLETED, RUNNING, ["1 queued by anna", "2 running", "3 completed"])
    told = str(refused.value).splitlines()
    assert told[:3] == ["1 queued by anna", "2 running", "3 completed"]
    assert "completed -> running" in told[3]
    assert "final" in told[3]


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda vocabulary: vocabulary.name)
def test_every_state_has_a_word_and_every_word_a_state(vocabulary: Vocabulary[StrEnum]) -> None:
    """D2"""
    words = type(next(iter(vocabulary.words.values())))
    assert set(vocabulary.words) == set(JobState)
    assert set(vocabulary.states) == set(words)
    for word in words:
        assert vocabulary.state(word.value) is vocabulary.states[word]
    for word in vocabulary.words.values():
        assert vocabulary.words[vocabulary.state(word.value)] is word


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("JOB", "queued running completed failed cancelled unknown"),
        ("TASK", "pending running completed failed cancelled running"),
        ("WORKFLOW", "pending running completed failed cancelled running"),
        ("PROCESSING", "pending running completed failed cancelled running"),
        ("BATCH", "PENDING RUNNING COMPLETED FAILED CANCELLED UNKNOWN"),
        ("JOB_COLUMN", "submitted running completed failed cancelled unknown"),
        ("RACE", "PD R D F F U"),
    ],
)
def test_the_words_are_those_of_the_table(name: str, words: str) -> None:
    """D2"""
    vocabulary = getattr(vocabularies, name)
    assert [vocabulary.words[state] for state in JobState] == words.split()


def test_words_that_need_more_than_the_state() -> None:
    """D2"""
    assert [vocabularies.task_status(QUEUED, attempt) for attempt in (0, 1, 2)] == ["pending", "pending", "retrying"]
    assert vocabularies.task_status(RUNNING, 2) == "running"
    assert vocabularies.workflow_status(QUEUED, is_held=True) == "paused"
    assert vocabularies.workflow_status(RUNNING, is_held=True) == "running"
    assert vocabularies.state_detail(UNKNOWN) == "unknown"
    assert vocabularies.race_reason(CANCELLED) == "cancelled"
    assert vocabularies.race_reason(FAILED) is None
    assert vocabularies.job_status(QUEUED) == "submitted"


@pytest.mark.parametrize(
    ("error_class", "word"),
    [
        (None, "FAILED"),
        ("ValueError", "FAILED"),
        ("TIMEOUT", "TIMEOUT"),
        ("TaskTimeout", "TIMEOUT"),
        ("NODE_FAIL", "NODE_FAIL"),
    ],
)
def test_the_batch_word_of_a_failure_tells_how_it_failed(error_class: str | None, word: str) -> None:
    """D2"""
    assert vocabularies.batch_status(FAILED, error_class) == word
    assert vocabularies.batch_status(COMPLETED, error_class) == "COMPLETED"


def test_a_word_that_no_table_has_is_refused_by_name() -> None:
    """D3"""
    with pytest.raises(UnknownWord, match=r"'HIBERNATING'.*batch managers.*PENDING"):
        vocabularies.BATCH.state("HIBERNATING")


def test_priorities_are_numbered_upwards() -> None:
    """D4"""
    assert {priority.name: priority.value for priority in TaskPriority} == {
        "LOW": 0,
        "NORMAL": 1,
        "HIGH": 2,
        "CRITICAL": 3,
    }


@pytest.mark.parametrize(
    "error_class",
    ["WorkerLost", "ActorDied", "NodeLost", "LeaseLost", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REQUEUED"],
)
def test_what_the_site_did_is_the_fault_of_the_site(error_class: str) -> None:
    """D17"""
    assert classify(error_class) == "site"


@pytest.mark.parametrize(
    "error_class",
    ["ValueError", "my.package.Broken", "ValidationError", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "TaskTimeout"],
)
def test_everything_else_is_the_fault_of_the_job(error_class: str) -> None:
    """D17"""
    assert classify(error_class) == "job"


def test_an_error_is_known_with_its_module_too() -> None:
    """D17"""
    assert all(classify(f"some.module.{name}") == fault for name, fault in FAULTS.items())
