"""Checkpoints of component states: what comes back, what they are called, which ones stay, what is shared."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.values import same, values

from rayzyme.errors import CheckpointError, NotFound, ValidationError
from rayzyme.monitoring import get_metrics_collector
from rayzyme.storage.checkpoints import CheckpointManager
from rayzyme.storage.values import ArrayBlocks

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LARGE = 20_000
"""Float64 numbers of an array that gets a file of its own."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def ticking(start: datetime = NOON, step: timedelta = timedelta(seconds=1)) -> Callable[[], datetime]:
    """A clock that goes on by a step whenever it is read."""
    times = iter(start + number * step for number in range(1_000_000))
    return lambda: next(times)


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(LARGE)


def names(manager: CheckpointManager) -> list[str]:
    """Folder names, newest first."""
    return [Path(checkpoint["path"]).name for checkpoint in manager.list_checkpoints()]


def array_file(path: str, component: str = "a") -> Path:
    """The only large array of a component."""
    (file,) = Path(path, component).glob("*.npy")
    return file


def flip_a_bit(file: Path, position: int = -1, bit: int = 0) -> None:
    """In place, so that whoever shares the file sees it."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    with file.open("r+b") as stream:
        stream.write(content)


def test_a_checkpoint_is_a_folder_per_component_and_metadata(base: Path) -> None:
    """C52"""
    path = CheckpointManager(base, clock=ticking()).create_checkpoint("run", {"b": 1, "a": {"x": numbers(1)}})
    assert path == str(base / "checkpoint_run_20260301_120000")
    assert {item.name for item in Path(path).iterdir()} == {"a", "b", "metadata.json"}
    metadata = json.loads(Path(path, "metadata.json").read_text())
    assert set(metadata) == {
        "checkpoint_id", "timestamp", "components", "sizes", "digests", "rayzyme_version", "format",
    }  # fmt: skip
    assert metadata["checkpoint_id"] == "run"
    assert metadata["components"] == ["b", "a"]
    assert metadata["timestamp"] == "2026-03-01T12:00:00.000000+00:00"
    files = {file.relative_to(path).as_posix(): file.stat().st_size for file in Path(path).glob("*/*")}
    assert metadata["sizes"] == files
    assert metadata["digests"].keys() == files.keys()


def test_a_large_array_is_a_file_that_any_numpy_opens(base: Path) -> None:
    path = CheckpointManager(base).create_checkpoint("run", {"a": {"x": numbers(1)}})
    assert np.array_equal(np.load(array_file(path), allow_pickle=False), numbers(1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), values(), max_size=4))
def test_every_state_comes_back_as_it_was_and_in_order(base: Path, states: dict[str, Any]) -> None:
    """C53 C54 C66"""
    manager = CheckpointManager(base, max_checkpoints=2)
    path = manager.create_checkpoint("any", states)
    assert same(manager.load_checkpoint(path), states)
    assert same(CheckpointManager(base).load_checkpoint(Path(path)), states)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(30_000.0).reshape(100, 300).T,
        np.arange(90_000.0)[::3],
        np.arange(90_000.0).reshape(300, 300)[:, ::2],
        np.arange(30_000, dtype=">i4"),
        np.arange(30_000).astype("M8[ms]"),
        np.zeros(5_000, np.dtype([("x", "<f8", (2,)), ("y", "i2")], align=True)),
        np.zeros(5_000, [("x", "<f8", (2,)), ("α", "i2")]),
        np.zeros(5_000, [("x", "<f8", (2,)), ("y", "S3")]),
        np.zeros(100, [(f"a field with a long name, number {number}", "<f8") for number in range(500)]),
        np.array("x" * 50_000),
        np.broadcast_to(np.float32(3), (200, 200)),
        np.full(20_000, np.nan, np.complex64),
    ],
    ids=lambda array: f"{str(array.dtype)[:20]} {array.shape} {array.strides}",
)
def test_large_arrays_of_every_kind_come_back(base: Path, array: np.ndarray) -> None:
    """C54"""
    manager = CheckpointManager(base)
    loaded = manager.load_checkpoint(manager.create_checkpoint("run", {"a": array}))["a"]
    assert same(loaded, array)
    if array.flags.f_contiguous or array.flags.c_contiguous:
        assert loaded.flags.f_contiguous == array.flags.f_contiguous


def test_tensors_come_back(base: Path) -> None:
    """C1 C54"""
    torch = pytest.importorskip("torch")
    states = {"a": {"large": torch.arange(50_000.0), "small": torch.ones(3, dtype=torch.bfloat16)}}
    manager = CheckpointManager(base)
    loaded = manager.load_checkpoint(manager.create_checkpoint("run", states))
    for key, tensor in states["a"].items():
        assert loaded["a"][key].dtype == tensor.dtype
        assert torch.equal(loaded["a"][key], tensor)


def test_what_was_loaded_may_be_changed_and_changes_nothing_stored(base: Path) -> None:
    states = {"a": {"large": numbers(1), "again": numbers(1), "small": np.arange(3)}}
    manager = CheckpointManager(base)
    path = manager.create_checkpoint("run", states)
    loaded = manager.load_checkpoint(path)["a"]
    loaded["large"][:] = 0
    loaded["small"][:] = 0
    assert same(loaded["again"], numbers(1))
    assert same(manager.load_checkpoint(path), states)


def test_some_components_are_read_without_the_others(base: Path) -> None:
    """C54"""
    manager = CheckpointManager(base)
    path = manager.create_checkpoint("run", {"a": 1, "b": numbers(1), "c": 3})
    shutil.rmtree(Path(path, "b"))
    assert manager.load_checkpoint(path, components=["c", "a"]) == {"c": 3, "a": 1}
    with pytest.raises(NotFound, match="has no component 'd'; it has a, b, c"):
        manager.load_checkpoint(path, components=["d"])


@pytest.mark.parametrize(
    "name", ["../x", "", "a\0b", "/etc", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", "a" * 101, None, 3]
)
def test_names_of_another_form_are_refused_before_any_file_exists(base: Path, name: Any) -> None:
    """C53"""
    manager = CheckpointManager(base)
    with pytest.raises(ValueError, match="checkpoint_id must be a letter or digit"):
        manager.create_checkpoint(name, {})
    with pytest.raises(ValueError, match="the name of a component must be a letter or digit"):
        manager.create_checkpoint("run", {"fine": 1, name: 2})
    with pytest.raises(ValueError, match="checkpoint_id must be a letter or digit"):
        manager.latest(name) if name is not None else manager.latest("")
    assert not base.exists()


@pytest.mark.parametrize("name", ["metadata.json", "a..b", "0", "x" * 100, "state.bundle", "con", "A-_."])
def test_any_name_of_the_form_is_kept(base: Path, name: str) -> None:
    """C53"""
    manager = CheckpointManager(base)
    path = manager.create_checkpoint(name, {name: {"x": numbers(1)}, "other": 2})
    assert manager.verify_checkpoint(path)
    assert same(manager.load_checkpoint(path), {name: {"x": numbers(1)}, "other": 2})
    assert manager.latest(name) == path


def test_no_states_at_all_are_a_checkpoint(base: Path) -> None:
    """C53"""
    manager = CheckpointManager(base)
    path = manager.create_checkpoint("empty", {})
    assert manager.verify_checkpoint(path)
    assert manager.load_checkpoint(path) == {}


@pytest.mark.parametrize(
    ("states", "place"),
    [
        ({"a": {"b": [0, 1, 2, object()]}}, r"states\['a'\]\['b'\]\[3\]"),
        ({"fine": numbers(1), "a": np.array([None])}, r"states\['a'\]"),
        ({"a": (1, {2: lambda: 1})}, r"states\['a'\]\[1\]\[2\]"),
        ({"a": [ArrayBlocks(iter([np.ones(2)]))]}, r"states\['a'\]\[0\]"),
    ],
)
def test_what_cannot_be_stored_is_named_before_anything_is_written(
    base: Path, states: dict[str, Any], place: str
) -> None:
    """C4"""
    with pytest.raises(TypeError, match=place):
        CheckpointManager(base).create_checkpoint("run", states)
    assert not base.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_checkpoints": 0}, "max_checkpoints"),
        ({"max_checkpoints": -1}, "max_checkpoints"),
        ({"max_checkpoints": True}, "max_checkpoints"),
        ({"max_checkpoints": 2.0}, "max_checkpoints"),
        ({"auto_cleanup": 1}, "auto_cleanup"),
        ({"base_dir": 3}, "base_dir"),
        ({"base_dir": __file__}, "base_dir"),
    ],
)
def test_arguments_are_checked(base: Path, arguments: dict[str, Any], named: str) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=named):
        CheckpointManager(**{"base_dir": base, **arguments})


def test_states_that_are_no_dict_are_refused(base: Path) -> None:
    """C2"""
    with pytest.raises(ValidationError, match="component_states"):
        CheckpointManager(base).create_checkpoint("run", [1])  # type: ignore[arg-type]


def test_checkpoints_within_one_second_are_numbered_and_listed_newest_first(base: Path) -> None:
    """C52 C56"""
    manager = CheckpointManager(base, max_checkpoints=20, clock=lambda: NOON)
    for number in range(11):
        manager.create_checkpoint("run", {"a": number})
    name = "checkpoint_run_20260301_120000"
    assert names(manager) == [*(f"{name}_{number}" for number in range(11, 1, -1)), name]
    assert [manager.load_checkpoint(item["path"])["a"] for item in manager.list_checkpoints()] == list(
        range(10, -1, -1)
    )


def test_numbers_grow_though_old_checkpoints_of_the_second_were_removed(base: Path) -> None:
    manager = CheckpointManager(base, max_checkpoints=1, clock=lambda: NOON)
    made = [Path(manager.create_checkpoint("run", {})).name for _ in range(3)]
    name = "checkpoint_run_20260301_120000"
    assert made == [name, f"{name}_2", f"{name}_3"]
    assert names(manager) == [f"{name}_3"]


def test_ids_that_look_like_other_checkpoints_names_keep_apart(base: Path) -> None:
    """C53"""
    ids = ["a", "a_20260301_120000", "a_20260301_120000_2", "a_2", "a.b", "a_20260301_120000_20260301_120000"]
    manager = CheckpointManager(base, max_checkpoints=50, clock=lambda: NOON)
    made = {(name, copy): manager.create_checkpoint(name, {"which": [name, copy]}) for copy in range(2) for name in ids}
    assert len(set(made.values())) == len(made)
    assert [item["checkpoint_id"] for item in manager.list_checkpoints()] == ids[::-1] * 2
    for (name, copy), path in made.items():
        assert manager.load_checkpoint(path) == {"which": [name, copy]}
    for name in ids:
        assert manager.latest(name) == made[name, 1]


def test_a_clock_that_was_set_back_makes_no_checkpoint_older_than_those_before(base: Path) -> None:
    """C57"""
    times = [NOON, NOON - timedelta(days=1), NOON + timedelta(seconds=1)]
    clock = iter(times)
    manager = CheckpointManager(base, max_checkpoints=1, clock=lambda: next(clock))
    for number in range(3):
        path = manager.create_checkpoint("run", {"a": number})
        assert manager.latest() == path
    assert names(manager) == ["checkpoint_run_20260301_120001"]


def test_the_list_says_what_is_known_of_each(base: Path) -> None:
    """C56"""
    writer = CheckpointManager(base, clock=ticking())
    first, second, third = (writer.create_checkpoint(name, {"a": 1}, verify=name != "y") for name in "xyz")
    assert [item["valid"] for item in writer.list_checkpoints()] == [True, None, True]
    flip_a_bit(Path(first, "a", "state.bundle"))
    reader = CheckpointManager(base)
    assert [item["valid"] for item in reader.list_checkpoints()] == [None, None, None]
    assert [reader.verify_checkpoint(path) for path in (third, first)] == [True, False]
    assert [item["valid"] for item in reader.list_checkpoints()] == [True, None, False]
    assert [item["path"] for item in reader.list_checkpoints()] == [third, second, first]
    assert reader.list_checkpoints()[0]["digests"].keys() == {"a/state.bundle"}


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: flip_a_bit(array_file(path)),
        lambda path: os.truncate(Path(path, "a", "state.bundle"), 3),
        lambda path: array_file(path).unlink(),
        lambda path: Path(path, "a", "more").touch(),
        lambda path: shutil.copy2(array_file(path), Path(path).parent / "copy").replace(array_file(path)),
    ],
    ids=["altered", "torn", "removed", "added", "put in its place"],
)
@pytest.mark.parametrize("known_from", ["writing it", "verifying it"])
def test_what_was_found_of_a_checkpoint_is_forgotten_when_it_is_touched(
    base: Path, touch: Callable[[str], object], known_from: str
) -> None:
    """C56"""
    manager = CheckpointManager(base, clock=ticking())
    path = manager.create_checkpoint("x", {"a": numbers(1)}, verify=known_from == "writing it")
    if known_from == "verifying it":
        assert manager.verify_checkpoint(path)
    # Sharing its array with another one leaves it as it is.
    sharing = manager.create_checkpoint("y", {"a": {"other": numbers(1)}})
    assert array_file(sharing).samefile(array_file(path))
    assert [item["valid"] for item in manager.list_checkpoints()] == [True, True]
    touch(path)
    assert manager.list_checkpoints()[1]["valid"] is None
    outcome = manager.verify_checkpoint(path)
    assert manager.list_checkpoints()[1]["valid"] is outcome


def test_what_else_lies_there_is_neither_listed_nor_removed(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """C56"""
    manager = CheckpointManager(base, max_checkpoints=1, clock=ticking())
    assert manager.list_checkpoints() == []
    first = Path(manager.create_checkpoint("x", {"a": numbers(1)}))
    kept = [base / "checkpoint_copy_20260101_000000", base / "copy", base / "checkpoint_x_20260301_120000_old"]
    for folder in kept:
        shutil.copytree(first, folder)
    kept += [
        base / "checkpoint_notes",
        base / "checkpoint_x_20200101_000000",
        base / "metadata.json",
        base / "checkpoint_file",
    ]
    (base / "checkpoint_notes").mkdir()
    (base / "checkpoint_notes" / "metadata.json").write_text('{"format": {"version": 1}, "digests": {}}')
    (base / "checkpoint_x_20200101_000000").mkdir()
    (base / "metadata.json").write_text("{}")
    (base / "checkpoint_file").write_text("")
    elsewhere = base.parent / "elsewhere" / first.name
    shutil.move(first, elsewhere)
    first.symlink_to(elsewhere)
    kept += [first, elsewhere]
    assert manager.list_checkpoints() == []
    for number in range(3):
        manager.create_checkpoint("x", {"a": numbers(number)})
    assert names(manager) == ["checkpoint_x_20260301_120003"]
    assert all(os.path.lexists(path) for path in kept)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "checkpoint_notes/metadata.json is torn or was altered" in told[0]
    assert "neither listed nor ever removed: put that file back from a copy" in told[0]
    assert f"remove {base / 'checkpoint_notes'} by hand" in told[0]


def test_a_foreign_folder_of_the_next_name_is_stepped_over(base: Path) -> None:
    taken = base / "checkpoint_x_20260301_120000"
    taken.mkdir(parents=True)
    manager = CheckpointManager(base, clock=ticking())
    assert manager.create_checkpoint("x", {}) == f"{taken}_2"
    assert list(taken.iterdir()) == []


@pytest.mark.parametrize("limit", [1, 3])
def test_exactly_the_newest_remain(base: Path, limit: int) -> None:
    """C57"""
    manager = CheckpointManager(base, max_checkpoints=limit, clock=ticking())
    made = [manager.create_checkpoint(f"run{number % 2}", {"a": number}) for number in range(5)]
    assert [item["path"] for item in manager.list_checkpoints()] == made[: -limit - 1 : -1]
    assert {path.name for path in base.iterdir()} == {*names(manager), ".checkpoints.lock"}


def test_without_cleanup_nothing_is_removed(base: Path) -> None:
    """C57"""
    manager = CheckpointManager(base, max_checkpoints=1, auto_cleanup=False, clock=ticking())
    for number in range(4):
        manager.create_checkpoint("run", {"a": number})
    assert len(names(manager)) == 4


def test_the_newest_valid_one_stays_though_newer_ones_are_bad(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C57"""

    def lose_a_bit(descriptor: int) -> None:
        if (file := Path(f"/proc/self/fd/{descriptor}").resolve()).suffix == ".npy":
            flip_a_bit(file)

    manager = CheckpointManager(base, max_checkpoints=2, clock=ticking())
    oldest = manager.create_checkpoint("older", {"a": numbers(0)})
    good = manager.create_checkpoint("good", {"a": numbers(1)})
    bad = manager.create_checkpoint("bad", {"a": numbers(2)})
    flip_a_bit(array_file(bad))
    monkeypatch.setattr(os, "fsync", lose_a_bit)
    worse = manager.create_checkpoint("worse", {"a": numbers(2)}, verify=False)
    monkeypatch.undo()
    assert [item["path"] for item in manager.list_checkpoints()] == [worse, bad, good]
    assert not Path(oldest).exists()
    assert manager.latest() == good
    fresh = manager.create_checkpoint("fresh", {"a": numbers(3)}, verify=False)
    assert [item["path"] for item in manager.list_checkpoints()] == [fresh, worse]


def test_a_cleanup_that_fails_warns_and_the_checkpoint_stands(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """C57"""
    manager = CheckpointManager(base, max_checkpoints=1, clock=ticking())
    manager.create_checkpoint("first", {"a": 1})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        path = manager.create_checkpoint("second", {"a": 2})
    assert manager.load_checkpoint(path) == {"a": 2}
    assert "cannot remove the old checkpoint" in caplog.text
    assert len(list(base.glob(".tmp-*"))) == 1
    CheckpointManager(base)
    assert not list(base.glob(".tmp-*"))


def test_a_checkpoint_that_is_being_read_is_removed_later(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = CheckpointManager(base, max_checkpoints=1, clock=ticking())
    first = manager.create_checkpoint("first", {"a": 1})
    reader = os.open(first, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    second = manager.create_checkpoint("second", {"a": 2})
    assert [item["path"] for item in manager.list_checkpoints()] == [second, first]
    assert manager.load_checkpoint(first) == {"a": 1}
    assert not caplog.records
    os.close(reader)
    third = manager.create_checkpoint("third", {"a": 3})
    assert [item["path"] for item in manager.list_checkpoints()] == [third]


def test_latest_passes_over_what_is_bad(base: Path) -> None:
    """C59"""
    manager = CheckpointManager(base, clock=ticking())
    assert manager.latest() is None
    first, second, third = (manager.create_checkpoint(name, {"a": numbers(seed)}) for seed, name in enumerate("xyx"))
    assert (manager.latest(), manager.latest("y"), manager.latest("z")) == (third, second, None)
    array_file(third).unlink()
    assert (manager.latest(), manager.latest("x")) == (second, first)
    flip_a_bit(Path(second, "metadata.json"), 5)
    flip_a_bit(array_file(first))
    assert manager.latest() is None


def test_unchanged_arrays_are_stored_once(base: Path) -> None:
    """C60"""
    manager = CheckpointManager(base, max_checkpoints=3, clock=ticking())
    constant = numbers(1)
    made = [manager.create_checkpoint("run", {"a": {"x": constant}, "b": {"y": numbers(10 + n)}}) for n in range(3)]
    assert len({array_file(path).stat().st_ino for path in made}) == 1
    on_disk = {file.stat().st_ino: file.stat().st_size for file in base.rglob("*.npy")}
    assert sum(on_disk.values()) == 4 * (constant.nbytes + 128)
    assert array_file(made[0]).stat().st_nlink == 3
    manager.create_checkpoint("run", {"a": {"x": numbers(2)}})
    manager.create_checkpoint("run", {"a": {"x": numbers(3)}})
    assert array_file(made[2]).stat().st_nlink == 1
    assert same(manager.load_checkpoint(made[2])["a"]["x"], constant)


def test_an_array_that_several_components_hold_is_stored_once(base: Path) -> None:
    """C60"""
    manager = CheckpointManager(base)
    path = manager.create_checkpoint("run", {"a": [numbers(1), numbers(1)], "b": numbers(1)})
    assert array_file(path, "a").samefile(array_file(path, "b"))
    assert manager.verify_checkpoint(path)


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_array_is_written_afresh_not_linked(base: Path, verify: bool) -> None:
    """C58 C60"""
    manager = CheckpointManager(base, clock=ticking())
    bad = manager.create_checkpoint("run", {"a": numbers(1)})
    flip_a_bit(array_file(bad))
    path = manager.create_checkpoint("run", {"a": numbers(1)}, verify=verify)
    assert manager.verify_checkpoint(path)
    assert not manager.verify_checkpoint(bad)
    # The second lends its file from now on.
    assert array_file(manager.create_checkpoint("run", {"a": numbers(1)})).samefile(array_file(path))


def test_a_torn_array_is_not_linked_even_without_reading_back(base: Path) -> None:
    """C60"""
    manager = CheckpointManager(base, clock=ticking())
    os.truncate(array_file(manager.create_checkpoint("run", {"a": numbers(1)})), 1000)
    assert manager.verify_checkpoint(manager.create_checkpoint("run", {"a": numbers(1)}, verify=False))


def test_where_links_are_refused_arrays_are_written(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C60"""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    manager = CheckpointManager(base, clock=ticking())
    first, second = (manager.create_checkpoint("run", {"a": numbers(1)}) for _ in range(2))
    assert not array_file(first).samefile(array_file(second))
    assert manager.verify_checkpoint(second)


def test_threads_may_share_a_manager(base: Path) -> None:
    """C3"""
    manager = CheckpointManager(base, max_checkpoints=4)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                manager.create_checkpoint(f"thread{number}", {"a": numbers(turn)})
                assert manager.latest() is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    manager.create_checkpoint("last", {})
    assert len(names(manager)) == 4
    assert all(manager.verify_checkpoint(item["path"]) for item in manager.list_checkpoints())


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208
    yield
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert threading.active_count() == threads


def test_no_descriptor_or_thread_is_left(base: Path, nothing_is_left: None) -> None:
    """C3"""
    manager = CheckpointManager(base, max_checkpoints=1)
    for number in range(3):
        path = manager.create_checkpoint("run", {"a": [numbers(number), np.arange(3)]})
    loaded = manager.load_checkpoint(path)
    manager.latest()
    flip_a_bit(array_file(path))
    with pytest.raises(CheckpointError):
        manager.load_checkpoint(path)
    with pytest.raises(TypeError):
        manager.create_checkpoint("run", {"a": object()})
    assert len(loaded["a"]) == 2


def test_metrics_count_what_was_written_and_what_was_bad(base: Path) -> None:
    """C62"""
    collector = get_metrics_collector()
    written, corrupt = "rayzyme_checkpoints_total", "rayzyme_checkpoints_corrupt_total"
    before = collector.get_counter(written), collector.get_counter(corrupt)
    manager = CheckpointManager(base)
    path = manager.create_checkpoint("run", {"a": numbers(1)})
    flip_a_bit(array_file(path))
    manager.verify_checkpoint(path)
    with pytest.raises(CheckpointError):
        manager.load_checkpoint(path)
    assert (collector.get_counter(written) - before[0], collector.get_counter(corrupt) - before[1]) == (1, 2)
