"""Progress on disk: written by itself, whole or not at all, and gone on from in another process."""

from __future__ import annotations

import copy
import gc
import json
import logging
import math
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.killing import survives_step
from tests.support.timing import Clock, wait_until

from rayzyme.errors import CheckpointError, InsufficientSpace, ValidationError
from rayzyme.monitoring import delayed_writer, progress_file
from rayzyme.monitoring.delayed_writer import DelayedWriter
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


UNCLOSED = """
import sys
from rayzyme.monitoring.progress import ProgressTracker
def main():
    tracker = ProgressTracker(checkpoint_dir=sys.argv[1])
    tracker.update(41)
    if sys.argv[2] == "error":
        raise RuntimeError("in the middle of it")
    return tracker
kept = None
if sys.argv[2] == "dropped":
    main()
else:
    kept = main()
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


def test_a_tracker_that_has_not_begun_is_restored_as_such(tmp_path: Path) -> None:
    """C48"""
    clock = Clock()
    one, other = ProgressTracker(clock=clock), ProgressTracker(clock=clock)
    clock.now += 100
    other.load_checkpoint(one.save_checkpoint(tmp_path / "progress.json"))
    for tracker in (one, other):
        assert tracker.get_progress()["elapsed_time"] == 0.0
        tracker.start_task("a", "A", 10)
        assert tracker.get_progress()["elapsed_time"] == 0.0
    clock.now += 3
    for tracker in (one, other):
        tracker.update_task("a")
    assert all_told(other) == all_told(one)
    assert other.get_progress()["elapsed_time"] == 3.0


def test_a_closed_tracker_shows_the_time_that_it_loads(tmp_path: Path) -> None:
    """C48"""
    clock = Clock()
    one, other = ProgressTracker(clock=clock), ProgressTracker(clock=clock)
    one.start_task("a", "A", 10)
    clock.now += 6
    other.close()
    other.load_checkpoint(one.save_checkpoint(tmp_path / "progress.json"))
    clock.now += 5
    assert other.get_progress()["elapsed_time"] == 6.0


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
    # One second and one more are promised; a busy machine gets eight.
    assert 1.0 <= time.monotonic() - begin <= 10.0
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


@pytest.mark.parametrize("how", ["kept", "dropped", "error"])
def test_what_is_pending_is_written_when_the_interpreter_ends(tmp_path: Path, how: str) -> None:
    """C47"""
    ended = subprocess.run([sys.executable, "-c", UNCLOSED, tmp_path, how], capture_output=True, text=True, check=False)
    assert (ended.returncode, "in the middle of it" in ended.stderr) == (int(how == "error"), how == "error")
    fresh = ProgressTracker(checkpoint_dir=tmp_path)
    assert fresh.load_latest() is not None
    assert fresh.get_progress()["percent"] == 41.0
    assert len(files_in(tmp_path)) == 1


def test_what_is_pending_is_written_when_the_tracker_is_dropped(tmp_path: Path) -> None:
    """C47"""

    def use() -> None:
        tracker = ProgressTracker(checkpoint_dir=tmp_path, callback=lambda _percent, _message: tracker.start())
        tracker.update(41)

    use()  # a cycle, through the callback
    gc.collect()
    wait_until(lambda: any(name.startswith("checkpoint_") for name in files_in(tmp_path)))
    fresh = ProgressTracker(checkpoint_dir=tmp_path)
    fresh.load_latest()
    assert fresh.get_progress()["percent"] == 41.0


class QueueInTime:
    """A queue of which nobody waits longer than the clock says: what does not come at once does not come."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._queue = clock, queue.SimpleQueue[bool]()
        self.put = self._queue.put

    def get(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return self._queue.get()
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            self._clock.now += timeout
            raise


def test_a_change_is_written_after_exactly_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """C47"""
    clock, written = Clock(), queue.SimpleQueue[float]()
    in_time = SimpleNamespace(SimpleQueue=lambda: QueueInTime(clock), Empty=queue.Empty)
    monkeypatch.setattr(delayed_writer, "queue", in_time)
    monkeypatch.setattr(delayed_writer, "time", SimpleNamespace(monotonic=clock))
    writer = DelayedWriter("progress-test", lambda: written.put(clock.now), 7.0)
    for expected in (7.0, 14.0):
        writer.changed()
        assert written.get(timeout=20) == expected
    clock.now = 100.0
    writer.changed()
    assert written.get(timeout=20) == 107.0
    writer.close()
    assert written.empty()


def test_an_interval_beyond_any_clock_writes_at_close(tmp_path: Path) -> None:
    with ProgressTracker(checkpoint_dir=tmp_path, checkpoint_interval=1e300) as tracker:
        tracker.update(1)
        (writer,) = [thread for thread in threading.enumerate() if thread.name == "progress-checkpoints"]
        writer.join(0.1)
        assert writer.is_alive()
    assert len(files_in(tmp_path)) == 1


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


def places_in(saved: Any) -> Iterator[tuple[Any, Any]]:
    """Every value below `saved`, as what holds it and where."""
    for place in saved if isinstance(saved, dict) else range(len(saved)):
        yield saved, place
        if isinstance(saved[place], (dict, list)):
            yield from places_in(saved[place])


def saved_by(tracker: ProgressTracker, path: Path) -> dict[str, Any]:
    tracker.save_checkpoint(path)
    return progress_file.read_checkpoint(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["state", "percent"], "a"),
        (["state", "percent"], 100.5),
        (["state", "own", "current"], "x"),
        (["state", "tasks", 0, "current"], 10**30),
        (["state", "tasks", 0, "total"], True),
        (["state", "tasks", 0, "total"], 10**400),
        (["state", "tasks", 0, "weight"], 0),
        (["state", "tasks", 0, "closed"], "sometime"),
        (["state", "tasks", 1, "id"], "all"),
        (["state", "tasks", 1, "parent"], "nobody"),
        (["state", "tasks", 2, "messages"], [[1.0, 7]]),
        (["state", "tasks", 2, "times", 0], 0),
        (["state", "gains", 0], [0.0, 1.0, 1]),
        (["state", "gains", 0], [0.1, math.nan, 1]),
        (["state", "heard"], None),
        (["measures", "gpu_utilization"], [1, None, 2.0]),
        (["now"], math.inf),
        (["begun"], 1),
    ],
)
def test_values_that_cannot_be_are_refused_at_loading(tmp_path: Path, where: list[Any], value: Any) -> None:
    """C48"""
    saved = saved_by(busy_tracker(), tmp_path / "good.json")
    *way, last = where
    place: Any = saved
    for step in way:
        place = place[step]
    place[last] = value
    progress_file.write_checkpoint(tmp_path / "bad.json", saved)
    tracker = ProgressTracker()
    with pytest.raises(CheckpointError, match=r"bad\.json is not a progress checkpoint"):
        tracker.load_checkpoint(tmp_path / "bad.json")
    assert tracker.get_progress()["task_progress"] == {}


@pytest.mark.parametrize("value", [None, True, -1, 0, 1.5, 1e99, 10**400, math.nan, "x", [], {}, [[1]]])
def test_whatever_is_loaded_can_be_answered_from(tmp_path: Path, value: Any) -> None:
    """C48"""
    path = tmp_path / "progress.json"
    whole = saved_by(busy_tracker(history={"Part": {"mean": 1.5, "deviation": 0.5, "count": 8}}), path)
    loaded = refused = 0
    for number in range(len(list(places_in(whole)))):
        saved = copy.deepcopy(whole)
        holder, place = list(places_in(saved))[number]
        holder[place] = value
        tracker = ProgressTracker(clock=Clock())
        try:
            tracker._run.restore(saved, path)
        except CheckpointError:
            refused += 1
            continue
        loaded += 1
        all_told(tracker)
        for task in list(tracker.get_progress()["task_progress"]):
            tracker.update_task(task, 3, "on")
        tracker.start_task("new", "New", 5)
        all_told(tracker)
    assert refused > loaded / 5


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
