"""What a task prints and logs: it is in the attempt's file, whichever way it was written, and nothing else is."""
# ruff: noqa: T201 - printing is what this is about

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from rayzyme.workflows.execution import Assignment
from rayzyme_actors.task_log import TaskLog, logs_of


class Stream(io.TextIOWrapper):
    """Where a process prints to, line by line."""

    name = "<here>"

    def __init__(self) -> None:
        self._arrived = io.BytesIO()
        super().__init__(io.BufferedWriter(self._arrived), encoding="utf-8", line_buffering=True)

    @property
    def shown(self) -> bytes:
        """What has arrived, without what still waits in a buffer."""
        return self._arrived.getvalue()


class Process:
    """A process that runs tasks."""

    def __init__(self, runs: Path) -> None:
        self.output, self.errors = Stream(), Stream()
        self.log = TaskLog(runs)

    @contextmanager
    def runs(self, task: str, attempt: int = 1) -> Iterator[None]:
        """Runs a task."""
        with self.prints(), self.log.of(Assignment("job_1", "n", task, attempt, 1, {})):
            yield

    @contextmanager
    def prints(self) -> Iterator[None]:
        """Does something between its tasks."""
        with redirect_stdout(self.output), redirect_stderr(self.errors):
            yield


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    logging.getLogger().removeHandler(process.log)


def test_what_is_printed_and_logged_is_in_the_attempts_file_and_where_it_went_before(
    process: Process, tmp_path: Path
) -> None:
    """D60"""
    with process.prints():
        print("before")
    with process.runs("a task/odd", attempt=2):
        print("to", "output")
        print("to errors", file=sys.stderr)
        logging.getLogger("mine").warning("to the log")
        print("no end of line", end="")
    with process.prints():
        print("after")
    ((task, number, text),) = logs_of(tmp_path, "job_1")
    assert (task, number) == ("a task/odd", 2)
    first, second, third, last = text.splitlines()
    assert (first, second, last) == ("to output", "to errors", "no end of line")
    assert third.endswith("WARNING mine: to the log")
    assert process.output.shown == b"before\nto output\nno end of lineafter\n"
    assert process.errors.shown == b"to errors\n"


def test_a_tasks_streams_are_what_libraries_expect(process: Process, tmp_path: Path) -> None:
    """D60"""
    with process.runs("t"):
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            assert (stream.encoding, stream.mode, stream.name) == ("utf-8", "w", "<here>")
            assert [stream.writable(), stream.readable(), stream.seekable(), stream.isatty()] == [
                True,
                False,
                False,
                False,
            ]
        sys.stdout.writelines(["one\n", "two\n"])
        sys.stdout.buffer.write(memoryview(b"bytes\xff\n"))
        print("three \udc80")
    assert process.output.shown == b"one\ntwo\nbytes\xff\nthree \\udc80\n"
    assert logs_of(tmp_path, "job_1") == [("t", 1, "one\ntwo\nbytes\N{REPLACEMENT CHARACTER}\nthree \\udc80\n")]


def test_a_line_arrives_while_the_task_runs(process: Process, tmp_path: Path) -> None:
    """D60"""
    with process.runs("t"):
        print("begun")
        assert logs_of(tmp_path, "job_1") == [("t", 1, "begun\n")]
        assert process.output.shown == b"begun\n"


def test_a_task_that_closes_or_replaces_its_streams_harms_none_after_it(process: Process, tmp_path: Path) -> None:
    """D60"""
    with process.runs("closes"):
        print("closing")
        sys.stdout.close()
    with process.runs("replaces"):
        sys.stdout = io.StringIO()
        print("not seen")
    with process.runs("after"):
        print("still here")
    with process.prints():
        print("and here")
    told = {task: text for task, _, text in logs_of(tmp_path, "job_1")}
    assert told == {"closes": "closing\n", "after": "still here\n"}
    assert process.output.shown == b"closing\nstill here\nand here\n"


def test_a_stream_that_one_task_kept_writes_for_the_task_that_runs(process: Process, tmp_path: Path) -> None:
    """D60"""
    with process.runs("first"):
        kept = sys.stdout
    print("nobody's", file=kept)
    with process.runs("second"):
        print("its", file=kept)
    assert logs_of(tmp_path, "job_1") == [("second", 1, "its\n")]


def test_a_task_that_says_nothing_leaves_no_file(process: Process, tmp_path: Path) -> None:
    """D60"""
    with process.runs("t"):
        pass
    assert not list(tmp_path.iterdir())
