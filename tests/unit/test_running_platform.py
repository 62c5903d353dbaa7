"""What `rayzyme up` refuses before it starts anything, and what it writes down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayzyme.database import open_database
from rayzyme.errors import DamagedFile, InvalidInput, WorkerLost
from rayzyme.jobs.role import ProcessIdentity, identity_of, process_identity
from rayzyme.jobs.store import JobStore
from rayzyme.settings import load_settings
from rayzyme_actors.connection import names_cluster
from rayzyme_actors.platform_record import PlatformRecord, read_record, record_file, remove_record, write_record
from rayzyme_serve import running_platform
from rayzyme_serve.cli import main
from rayzyme_serve.cli.up import _stay, platform_rows
from rayzyme_serve.running_platform import Wishes, start_platform, stop_platform


@pytest.fixture
def listener() -> Any:
    """A socket that listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


@pytest.fixture
def starts_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes as far as to start Ray has failed."""

    def begin(*_: Any) -> PlatformRecord:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(running_platform, "start_own_ray", begin)


def place_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def recorded(home: Path, **values: Any) -> PlatformRecord:
    record = PlatformRecord(**values)
    record_file(home).parent.mkdir(parents=True)
    write_record(home, record)
    return record


def said() -> Any:
    return [].append


def test_a_record_is_read_as_it_was_written(home: Path) -> None:
    record = recorded(
        home, address="10.0.0.1:6379", dashboard="http://127.0.0.1:8265", authentication={"RAY_AUTH_MODE": "token"},
        process=process_identity(), folder=Path("/tmp/rayzyme-1"), endpoint="http://127.0.0.1:8000",
    )  # fmt: skip
    assert read_record(home) == record
    remove_record(home)
    assert read_record(home) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "process": 3, "folder": null}'])
def test_a_damaged_record_is_told_with_its_place(home: Path, text: str) -> None:
    recorded(home)
    record_file(home).write_text(text)
    with pytest.raises(DamagedFile, match=r"up-.*\.json"):
        read_record(home)


def test_it_runs_while_its_address_answers_and_its_process_lives(listener: socket.socket) -> None:
    address = place_of(listener)
    assert PlatformRecord(address=address).is_running()
    assert PlatformRecord(address=address, process=process_identity()).is_running()
    assert not PlatformRecord().is_running()
    listener.close()
    assert not PlatformRecord(address=address, process=process_identity()).is_running()


def test_another_program_on_its_port_is_not_taken_for_it(listener: socket.socket) -> None:
    gone: ProcessIdentity = replace(process_identity(), start_time=1)
    assert not PlatformRecord(address=place_of(listener), process=gone).is_running()


def test_a_process_is_known_by_its_number(home: Path) -> None:
    assert identity_of(os.getpid()) == process_identity()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert identity_of(child.pid) is None


def test_other_programs_find_the_ray_that_runs_and_none_that_is_gone(home: Path, listener: socket.socket) -> None:
    settings = load_settings()
    assert not names_cluster(settings)
    recorded(home, address=place_of(listener))
    assert names_cluster(settings)
    listener.close()
    assert not names_cluster(settings)


def test_listening_beyond_loopback_is_refused_while_there_are_no_tokens(starts_nothing: None) -> None:
    """P4"""
    with pytest.raises(InvalidInput, match=r"0\.0\.0\.0"):
        start_platform(load_settings(), Wishes(host="0.0.0.0"), said())


def test_a_port_that_is_taken_is_told_before_anything_is_started(starts_nothing: None, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(InvalidInput, match=f"port {port}.*--port"):
        start_platform(load_settings(), Wishes(port=port), said())


def test_a_scheduler_that_lives_elsewhere_is_not_joined_by_a_second_one(home: Path, starts_nothing: None) -> None:
    with closing(open_database()) as database:
        info = {"address": "10.0.0.1:1", "namespace": "rayzyme", "host": "elsewhere", "pid": 7}
        JobStore(database).take_role(process_identity(), info, lambda _: False)
    with pytest.raises(InvalidInput, match=r"elsewhere as process 7.*rayzyme stop"):
        start_platform(load_settings(), Wishes(port=1), said())


def test_another_cluster_than_the_one_in_use_is_refused(
    home: Path, starts_nothing: None, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(home, address=place_of(listener))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InvalidInput, match=r"not 10\.0\.0\.1:6379.*rayzyme down"):
        start_platform(load_settings(), Wishes(), said())


def test_what_a_start_that_was_killed_has_left_is_cleared_away(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "of-ray"
    (folder / "ray").mkdir(parents=True)
    recorded(home, folder=folder)
    environment = {**os.environ, "RAY_TMPDIR": str(folder)}
    orphan = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    try:
        assert stop_platform(load_settings(), 0.0, said())
        assert orphan.wait(timeout=10) != 0
    finally:
        orphan.kill()
    assert not folder.exists()
    assert read_record(home) is None
    assert not stop_platform(load_settings(), 0.0, said())


def test_down_without_anything_running_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rayzyme", "down"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "nothing runs" in capsys.readouterr().err


def test_what_was_lost_comes_back_where_its_clients_know_it(home: Path) -> None:
    """A plain `up`; what is asked for counts more."""
    lost = recorded(home, address="127.0.0.1:1", endpoint="http://127.0.0.1:8123", host="0.0.0.0")
    settings = load_settings()
    again = running_platform._with_wishes(settings, Wishes(), None, lost).serve
    assert (again.host, again.port) == ("0.0.0.0", 8123)
    other = running_platform._with_wishes(settings, Wishes(host="127.0.0.1", port=9000), None, lost).serve
    assert (other.host, other.port) == ("127.0.0.1", 9000)
    ended = running_platform._with_wishes(settings, Wishes(), None, replace(lost, is_ending=True)).serve
    assert ended == settings.serve


def test_the_status_tells_what_was_lost_from_what_was_never_there(home: Path) -> None:
    assert "not started" in platform_rows(load_settings())[1][0][1]
    recorded(home, address="127.0.0.1:1", endpoint="http://127.0.0.1:8123")
    assert platform_rows(load_settings()) == (
        {"running": False}, [["Ray", "lost; `rayzyme up` starts it again"], ["HTTP endpoint", "not running"]],
    )  # fmt: skip


def test_whoever_stays_ends_well_when_down_was_asked_for_and_badly_when_ray_was_lost(home: Path) -> None:
    lost = recorded(home, address="127.0.0.1:1", endpoint="http://127.0.0.1:8123")
    with pytest.raises(WorkerLost, match="Ray is gone"):
        _stay(load_settings(), lost)
    write_record(home, replace(lost, is_ending=True))
    _stay(load_settings(), lost)
    remove_record(home)
    _stay(load_settings(), lost)
