"""Progress on disk: written by itself, whole or not at all, and gone on from in another process."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.killing import survives_step
from tests.support.timing import Clock, wait_until

from rayzyme.errors import CheckpointError, InsufficientSpace, ValidationError
from rayzyme.monitoring import progress_file
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.monitoring.progress import ProgressTracker

READER = """
import json, sys
from rayzyme.monitoring.progress import ProgressTracker
tracker = ProgressTracker(clock=lambda: 77.0)
tracker.load_checkpoint(sys.argv[1])
tasks = list(tracker.get_progress()["task_progress"])
told = [tracker.get_progress(), {name: tracker.get_task_progress(name) for name in tasks}]
told += [tracker.get_messages(), tracker.history]
told.append({name: figure for name, figure in tracker.get_performance_metrics().items() if name != "memory_usage"})
print(json.dumps(told))
"""
WRITER = """
import sys
from rayzyme.monitoring.progress import ProgressTracker
tracker = ProgressTracker(10**9, sys.argv[1], checkpoint_interval=0.001)
print("started", flush=True)
while True:
    tracker.update(1, "on")
"""


def busy_tracker(**arguments: Any) -> ProgressTracker:
    """A tracker in the middle of everything."""
    clock = Clock()
    tracker = ProgressTracker(10, clock=clock, **arguments)
    tracker.start_task("all", "All", 3, weight=0.3)
    for number in range(4):
        tracker.start_task(f"part {number}", "Part", 9, "all")
        for step in range(number):
            clock.now += 0.7 + step / 3
            tracker.update_task(f"part {number}", 2, f"é {step} \0 \ud800")
    tracker.start_task("other", "Other", 5)
    tracker.complete_task("part 1", "done")
    tracker.fail_task("part 2", "broken")
    clock.now += 0.3
    tracker.update(3, "own", {"gpu_utilization": 50.0})
    tracker.update_task("other", 50)
    return tracker


def all_told(tracker: ProgressTracker) -> list[Any]:
    progress = tracker.get_progress()
    tasks = {name: tracker.get_task_progress(name) for name in progress["task_progress"]}
    metrics = {name: figure for name, figure in tracker.get_performance_metrics().items() if name != "memory_usage"}
    return [progress, tasks, tracker.get_messages(), tracker.history, metrics]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_fresh_process_goes_on_from_the_same_figures(tmp_path: Path) -> None:
    """C48"""
    tracker = busy_tracker(history={"Part": {"mean": 1.5, "deviation": 0.5, "count": 8}})
    path = tracker.save_checkpoint(tmp_path / "deep" / "progress.json")
    read = subprocess.run([sys.executable, "-c", READER, path], capture_output=True, text=True, check=True)
    told = all_told(tracker)
    assert json.loads(read.stdout) == told
    assert isinstance(tracker.get_task_progress("all")["subtasks"], list)


def test_a_restored_tracker_goes_on(tmp_path: Path) -> None:
    """C48"""
    clock = Clock()
    one, other = ProgressTracker(clock=clock), ProgressTracker(clock=clock)
    one.start_task("a", "A", 10)
    clock.now += 6
    one.update_task("a", 3)
    one.start_task("b", "B", 10)
    path = one.save_checkpoint(tmp_path / "progress.json")
    clock.now += 1000
    other.load_checkpoint(path)
    clock.now += 2
    assert other.get_progress()["elapsed_time"] == 8.0
    assert (other.get_progress()["percent"], other.get_progress()["raw_percent"]) == (30.0, 15.0)
    other.update_task("a", 7)
    other.start_task("c", "C", 10, "a")
    other.update_task("b", 10)
    progress = other.get_progress()
    assert (progress["raw_percent"], progress["estimated_remaining"]) == (100.0, 0.0)
    with pytest.raises(ValueError, match="was started before"):
        other.start_task("a", "A", 1)


def test_the_range_is_restored(tmp_path: Path) -> None:
    """C48"""
    clock = Clock()
    tracker = ProgressTracker(50, clock=clock)
    for seconds in [1.0, 1.0, 5.0, 5.0] * 6:
        clock.now += seconds
        tracker.update()
    fresh = ProgressTracker(clock=clock)
    fresh.load_checkpoint(tracker.save_checkpoint(tmp_path / "progress.json"))
    for each in (tracker, fresh):
        each.update()
    assert fresh.get_progress() == tracker.get_progress()


def test_a_checkpoint_appears_by_itself(tmp_path: Path) -> None:
    """C47"""
    folder = tmp_path / "checkpoints"
    tracker = ProgressTracker(checkpoint_dir=str(folder), checkpoint_interval=1)
    assert files_in(folder) == []
    begin = time.monotonic()
    tracker.update(30)
    wait_until(lambda: files_in(folder))
    assert time.monotonic() - begin >= 1.0
    wait_until(lambda: any(name.startswith("checkpoint_") for name in files_in(folder)))
    names = files_in(folder)
    assert len(names) == 1
    assert re.fullmatch(r"checkpoint_\d{13}\.json", names[0])
    wait_until(lambda: get_metrics_collector().get_latest("rayzyme_progress_percent") == 30.0)
    tracker.close()
    assert files_in(folder) == names, "nothing changed, so there was nothing to write"
    fresh = ProgressTracker(checkpoint_dir=folder)
    assert fresh.load_latest() == str(folder / names[0])
    assert fresh.get_progress()["percent"] == 30.0


def test_what_changed_last_is_written_at_close(tmp_path: Path) -> None:
    """C47"""
    with ProgressTracker(checkpoint_dir=tmp_path) as tracker:
        tracker.update(41)
        assert files_in(tmp_path) == []
    fresh = ProgressTracker(checkpoint_dir=tmp_path)
    fresh.load_latest()
    assert fresh.get_progress()["percent"] == 41.0


@pytest.mark.parametrize("arguments", [{"auto_checkpoint": False}, {"checkpoint_dir": None}])
def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    """C47"""
    monkeypatch.chdir(tmp_path)
    before = threading.active_count()
    with ProgressTracker(**{"checkpoint_dir": tmp_path, "checkpoint_interval": 0.001} | arguments) as tracker:
        tracker.update(1)
        assert threading.active_count() == before
    assert files_in(tmp_path) == []
    with pytest.raises(ValidationError, match="path must be given"):
        ProgressTracker().save_checkpoint()
    with pytest.raises(ValidationError, match="checkpoint_dir"):
        ProgressTracker().load_latest()


def test_the_newest_five_are_kept_and_other_files_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C47"""
    for name in ("checkpoint_1.json.bak", "checkpoint_x.json", "notes.txt"):
        (tmp_path / name).write_text("mine")
    moments = iter([5.0, 5.0, 9.0, 2.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(progress_file.time, "time", lambda: next(moments))
    tracker = ProgressTracker(checkpoint_dir=tmp_path, auto_checkpoint=False)
    paths = [tracker.save_checkpoint() for _ in range(7)]
    numbers = [5000, 5001, 9000, 9001, 9002, 9003, 9004]
    assert paths == [str(tmp_path / f"checkpoint_{number}.json") for number in numbers]
    kept = [f"checkpoint_{number}.json" for number in numbers[2:]]
    assert files_in(tmp_path) == sorted([*kept, "checkpoint_1.json.bak", "checkpoint_x.json", "notes.txt"])


def test_every_flipped_bit_and_every_missing_end_is_noticed(tmp_path: Path) -> None:
    """C48"""
    path = tmp_path / "progress.json"
    tracker = ProgressTracker(clock=lambda: 1e-5)
    tracker.start_task("a", "\u00e9", 3)
    tracker.save_checkpoint(path)
    written, reader = path.read_bytes(), ProgressTracker()
    damaged = [written[:cut] for cut in range(len(written))] + [written + b"\n"]
    for place in range(len(written)):
        damaged += [written[:place] + bytes([written[place] ^ bit]) + written[place + 1 :] for bit in (1, 0x20, 0x80)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"progress\.json"):
            reader.load_checkpoint(path)
    assert reader.get_progress()["task_progress"] == {}
    path.write_bytes(written)
    reader.load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"format":1}', b"[" * 100_000])
def test_files_of_others_are_refused(tmp_path: Path, content: bytes) -> None:
    """C48"""
    path = tmp_path / "progress.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"progress\.json is torn or altered"):
        ProgressTracker().load_checkpoint(path)


def test_whole_files_without_a_progress_state_are_refused(tmp_path: Path) -> None:
    """C48"""
    path = tmp_path / "progress.json"
    progress_file.write_checkpoint(path, {"state": {"tasks": 7}})
    with pytest.raises(CheckpointError, match=r"progress\.json is not a progress checkpoint"):
        ProgressTracker().load_checkpoint(path)
    path.write_bytes(progress_file._encode({}, 2))
    with pytest.raises(CheckpointError, match="format 2"):
        ProgressTracker().load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        ProgressTracker().load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        ProgressTracker().load_checkpoint(tmp_path / "absent.json")


def test_the_newest_valid_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C48"""
    tracker = ProgressTracker(checkpoint_dir=tmp_path, auto_checkpoint=False)
    assert tracker.load_latest() is None
    paths = []
    for _ in range(3):
        tracker.update(10)
        paths.append(Path(tracker.save_checkpoint()))
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    fresh = ProgressTracker(checkpoint_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert fresh.load_latest() == str(paths[1])
    assert paths[2].name in caplog.text
    assert fresh.get_progress()["percent"] == 20.0


def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """C5"""
    for number in range(progress_file.KEPT):
        tracker = ProgressTracker(checkpoint_dir=tmp_path, auto_checkpoint=False)
        tracker.update(number)
        tracker.save_checkpoint()
    tracker.update(96)
    step, seen = 0, set()
    while not survives_step(tracker.save_checkpoint, step):
        step += 1
        fresh = ProgressTracker(checkpoint_dir=tmp_path, auto_checkpoint=False)
        assert not any(name.startswith(".tmp-") for name in files_in(tmp_path)), "left over"
        for path in tmp_path.iterdir():
            fresh.load_checkpoint(path)
        fresh.load_latest()
        seen.add(fresh.get_progress()["percent"])
    assert step >= 3
    assert seen == {4.0, 100.0}


def test_a_killed_writer_leaves_its_newest_file_readable(tmp_path: Path) -> None:
    """C5, C47"""
    for _ in range(5):
        written_before = set(files_in(tmp_path))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "started\n"
        wait_until(lambda before=written_before: len(set(files_in(tmp_path)) - before) >= 3)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        fresh = ProgressTracker(checkpoint_dir=tmp_path, auto_checkpoint=False)
        assert fresh.load_latest() == str(progress_file.checkpoints_in(tmp_path)[0])
        assert fresh.get_progress()["current_step"] > 0
        assert 1 <= len(files_in(tmp_path)) <= progress_file.KEPT + 1


def test_a_full_disk_is_said_and_the_old_file_stands(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C5"""
    tracker = ProgressTracker(1000, checkpoint_dir=small_disk, checkpoint_interval=0.01)
    path = Path(tracker.save_checkpoint())
    (small_disk / "filler").write_bytes(bytes(200 * 1024))
    for number in range(1000):
        tracker.update(1, f"{number} {'long message ' * 20}")
    with pytest.raises(InsufficientSpace):
        tracker.save_checkpoint()
    with caplog.at_level(logging.ERROR):
        tracker.close()
    assert "progress-checkpoints: writing failed" in caplog.text
    assert [name for name in files_in(small_disk) if name != "filler"] == [path.name]
    ProgressTracker().load_checkpoint(path)
