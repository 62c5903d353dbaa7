"""Log lines: one format for people, one for machines, each line once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rayzyme.monitoring import configure_logging, log_context


@pytest.fixture(autouse=True)
def restored() -> object:
    yield
    configure_logging("WARNING")


def test_a_structured_line_holds_fields_context_and_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", structured=True)
    with log_context(job_id="job_1"):
        try:
            raise ValueError("no such thing")
        except ValueError:
            logging.getLogger("rayzyme.test").exception("it broke %d times", 2, extra={"attempt": 3})
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "it broke 2 times"
    assert (line["level"], line["logger"], line["function"]) == (
        "ERROR", "rayzyme.test", "test_a_structured_line_holds_fields_context_and_exception",
    )  # fmt: skip
    assert (line["job_id"], line["attempt"]) == ("job_1", 3)
    assert line["timestamp"].endswith("Z")
    assert "ValueError: no such thing" in line["exception"]


def test_context_ends_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", structured=True)
    with log_context(job_id="job_1"):
        pass
    logging.getLogger("rayzyme.test").info("after")
    assert "job_id" not in json.loads(capsys.readouterr().err)


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    configure_logging("INFO")
    logging.getLogger("rayzyme_actors.test").info("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logging.getLogger("rayzyme").info("chatter")
    assert capsys.readouterr().err == ""


def test_the_file_is_in_the_home_folder(home: Path) -> None:
    configure_logging("INFO", console=False, file=True)
    logging.getLogger("rayzyme.test").info("kept")
    assert "kept" in (home / "logs" / "rayzyme.log").read_text()
