"""Log lines: one format for people, one for machines, each line once and whole, and no secret in any."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayzyme.database import open_database
from rayzyme.errors import DatabaseError, ValidationError
from rayzyme.monitoring import configure_logging, log_context
from rayzyme.monitoring.log_file import SharedLogFile
from rayzyme.monitoring.logs import with_log_context
from rayzyme.settings import load_settings

PASSWORD = "swordfish-7"
WRITER = """
import logging, sys, threading
from pathlib import Path
from rayzyme.monitoring.log_file import SharedLogFile
from rayzyme.monitoring.logs import JsonFormatter

path, name, lines = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
handler = SharedLogFile(path, largest=5_000, kept=1_000)
handler.setFormatter(JsonFormatter())
logger = logging.getLogger("rayzyme.writer")
logger.addHandler(handler)
logger.setLevel("INFO")

def write(thread):
    for number in range(lines):
        logger.info("x" * 80, extra={"who": f"{name}.{thread}.{number}"})

print("ready", flush=True)
sys.stdin.read()
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    configure_logging("WARNING")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    """Gives the structured lines written since the last call."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_structured_line_holds_fields_context_and_exception(lines: Any) -> None:
    """D72"""
    configure_logging(level=logging.INFO, structured=True)
    with log_context(job_id="job_1", task="screen", attempt=3):
        try:
            raise ValueError("no such thing")
        except ValueError:
            logging.getLogger("rayzyme.test").exception("it broke %d times", 2, extra={"shard": 4})
    (line,) = lines()
    assert line["message"] == "it broke 2 times"
    assert (line["level"], line["logger"], line["module"]) == ("ERROR", "rayzyme.test", "test_logs")
    assert line["function"] == "test_a_structured_line_holds_fields_context_and_exception"
    assert isinstance(line["line"], int)
    assert (line["job_id"], line["task"], line["attempt"], line["shard"]) == ("job_1", "screen", 3, 4)
    assert line["timestamp"].endswith("Z")
    assert "ValueError: no such thing" in line["exception"]


def test_a_line_without_an_error_has_the_documented_keys_and_no_more(lines: Any) -> None:
    """D72"""
    configure_logging(level=logging.INFO, structured=True)
    logging.getLogger("rayzyme.test").info("hello")
    (line,) = lines()
    assert list(line) == ["timestamp", "level", "logger", "message", "module", "function", "line"]


def test_an_extra_never_hides_a_standard_key(lines: Any) -> None:
    """D72"""
    configure_logging(level=logging.INFO, structured=True)
    with log_context(timestamp="now"):
        logging.getLogger("rayzyme.test").info("hello", extra={"level": 7, "logger": "mine"})
    (line,) = lines()
    assert (line["level"], line["logger"]) == ("INFO", "rayzyme.test")
    assert (line["extra_level"], line["extra_logger"], line["extra_timestamp"]) == (7, "mine", "now")


def test_what_json_cannot_say_is_written_as_text(lines: Any) -> None:
    configure_logging(level=logging.INFO, structured=True)
    endless: list[Any] = []
    endless.append(endless)
    extra = {"loss": float("nan"), "place": Path("a/b"), "pairs": {(1, 2): 3}, "endless": endless, "steps": 2.5}
    logging.getLogger("rayzyme.test").info("odd", extra=extra)
    (line,) = lines()
    assert (line["loss"], line["place"], line["pairs"], line["steps"]) == ("nan", "a/b", "{(1, 2): 3}", 2.5)
    assert line["endless"] == "[[...]]"


def test_context_ends_with_its_block_and_nests(lines: Any) -> None:
    configure_logging(level=logging.INFO, structured=True)
    with log_context(job_id="job_1", attempt=1):
        with log_context(attempt=2):
            logging.getLogger("rayzyme.test").info("inner")
        logging.getLogger("rayzyme.test").info("outer")
    logging.getLogger("rayzyme.test").info("after")
    inner, outer, after = lines()
    assert (inner["job_id"], inner["attempt"], outer["attempt"]) == ("job_1", 2, 1)
    assert "job_id" not in after


def test_context_goes_along_into_threads_that_are_given_it(lines: Any) -> None:
    """D72"""
    configure_logging(level=logging.INFO, structured=True)
    started = threading.Barrier(3)

    def work(number: int) -> int:
        started.wait(10)
        logging.getLogger("rayzyme.test").info("in thread %d", number)
        return number

    with ThreadPoolExecutor(3) as pool:
        with log_context(job_id="job_1"):
            carrying = with_log_context(work)
        done = [pool.submit(carrying, 1), pool.submit(carrying, 2), pool.submit(work, 3)]
        assert [future.result(10) for future in done] == [1, 2, 3]
        assert {line["message"]: line.get("job_id") for line in lines()} == {
            "in thread 1": "job_1", "in thread 2": "job_1", "in thread 3": None,
        }  # fmt: skip


def test_text_lines_show_the_context_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    with log_context(job_id="job_1", attempt=2):
        logging.getLogger("rayzyme.test").info("hello")
    assert capsys.readouterr().err.endswith("INFO    rayzyme.test: hello [job_id=job_1 attempt=2]\n")


def test_configuring_twice_writes_each_line_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D72"""
    for _ in range(2):
        configure_logging("INFO", file=True)
    logging.getLogger("rayzyme_actors.test").info("hello")
    assert capsys.readouterr().err.count("hello") == 1
    assert (home / "logs" / "rayzyme.log").read_text().count("hello") == 1


def test_handlers_of_others_stay(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("rayzyme").addHandler(handler)
    try:
        configure_logging("INFO", console=False)
        logging.getLogger("rayzyme.test").info("hello")
    finally:
        logging.getLogger("rayzyme").removeHandler(handler)
    assert heard == ["hello"]
    assert capsys.readouterr().err == ""


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logging.getLogger("rayzyme").info("chatter")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("level", ["LOUD", None, True])
def test_an_unknown_level_is_refused_and_changes_nothing(lines: Any, level: Any) -> None:
    configure_logging(level=logging.INFO, structured=True)
    with pytest.raises(ValidationError, match="level must be a number or one of"):
        configure_logging(level)
    logging.getLogger("rayzyme.test").info("still here")
    assert [line["message"] for line in lines()] == ["still here"]


def test_the_file_is_in_the_home_folder(home: Path) -> None:
    """D72"""
    configure_logging("INFO", console=False, file=True)
    logging.getLogger("rayzyme.test").info("kept")
    assert "kept" in (home / "logs" / "rayzyme.log").read_text()


def test_the_file_is_rotated_and_the_oldest_forgotten(tmp_path: Path) -> None:
    """D72"""
    handler = SharedLogFile(tmp_path / "rayzyme.log", largest=25, kept=2)
    for number in range(9):
        handler.emit(logging.makeLogRecord({"msg": f"line {number} ..."}))
    written = {path.name: path.read_text().split("\n") for path in tmp_path.glob("rayzyme.log*") if path.stat().st_size}
    assert written == {
        "rayzyme.log": ["line 8 ...", ""],
        "rayzyme.log.1": ["line 6 ...", "line 7 ...", ""],
        "rayzyme.log.2": ["line 4 ...", "line 5 ...", ""],
    }


def test_a_line_longer_than_a_file_is_written_whole(tmp_path: Path) -> None:
    handler = SharedLogFile(tmp_path / "rayzyme.log", largest=25, kept=2)
    for text in ("a", "b" * 100, "\udc80"):
        handler.emit(logging.makeLogRecord({"msg": text}))
    assert (tmp_path / "rayzyme.log.1").read_text() == "b" * 100 + "\n"
    assert (tmp_path / "rayzyme.log").read_text() == "\\udc80\n"


def test_processes_that_share_a_file_lose_and_tear_no_line_while_it_is_rotated(tmp_path: Path) -> None:
    """D72"""
    path, lines = tmp_path / "rayzyme.log", 150
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number), str(lines)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    files = [file for file in tmp_path.iterdir() if file.stat().st_size]
    written = [json.loads(line)["who"] for file in files for line in file.read_text().splitlines()]
    expected = [f"{writer}.{thread}.{number}" for writer in range(3) for thread in range(2) for number in range(lines)]
    assert sorted(written) == sorted(expected)
    assert len(files) > 20
    assert max(file.stat().st_size for file in files) <= 5_000


def test_no_file_stays_open_between_two_lines(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    configure_logging("INFO", console=False, file=True, directory=tmp_path)
    logging.getLogger("rayzyme.test").info("kept")
    assert open_files() == before


def test_a_planted_password_never_appears(home: Path, lines: Any) -> None:
    configure_logging("DEBUG", file=True, structured=True)
    logger = logging.getLogger("rayzyme.test")
    url = f"postgresql://rayzyme:{PASSWORD}@localhost:1/nowhere"
    settings = load_settings(overrides={"database": {"host": "db", "user": "rayzyme", "password": PASSWORD}})
    with log_context(settings=settings.model_dump()):
        logger.info("settings %s", settings, extra={"database": settings.database, "all": vars(settings)})
    for wrong in ({"url": url, "host": "db"}, {"password": [PASSWORD], "host": "db"}, url, {"pasword": PASSWORD}):
        with pytest.raises(ValidationError) as refused:
            load_settings(overrides={"database": wrong})
        logger.error("refused", exc_info=refused.value)
    with pytest.raises(DatabaseError) as unreachable:
        open_database(url)
    logger.error("unreachable: %s", unreachable.value, exc_info=unreachable.value)

    assert len(lines()) >= 6
    assert PASSWORD not in (home / "logs" / "rayzyme.log").read_text()


def test_a_message_cannot_look_like_another_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("rayzyme").info("first\n2026-11-25 00:00:00,000 ERROR   rayzyme: forged")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("2026-11-25 00")] == []
