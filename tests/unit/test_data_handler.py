"""The data handler: what is stored comes back as it was, under the key that its name gives."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.values import same, values

import rayzyme
from rayzyme.errors import CacheEntryLost, ValidationError
from rayzyme.monitoring import get_metrics_collector
from rayzyme.storage import DataHandler


@pytest.fixture(params=[True, False], ids=["compressed", "plain"])
def handler(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DataHandler]:
    with DataHandler(tmp_path / "data", enable_compression=request.param) as opened:
        yield opened


@pytest.fixture
def trajectory() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "frames": rng.normal(size=(500, 12, 3)).astype(np.float32),
        "time": [0.1 * number for number in range(500)],
        "box": rng.normal(size=(500, 3, 3)),
    }


def test_keys_are_digests_of_kind_id_and_metadata(handler: DataHandler) -> None:
    """C22"""
    positions = {"positions": np.zeros((4, 3))}
    assert handler.store_structure(positions, "protein1", {"resolution": "high"}) == (
        "9ed470917e684ccb1a6ca2e98de41f07308767826dafa4274e2aff3e0d223aa3"
    )
    assert handler.store_structure(positions, "protein1") == (
        "b20c12a500c4016f757aa4fd593ba2c5234bbd55e091fa01f71d8945938fa61a"
    )
    frames = {"frames": np.zeros((2, 4, 3))}
    assert handler.store_trajectory(frames, "protein1_md", {"timestep": 2.0}) == (
        "87a08f715a065abb59c8851df59994b92ecc0cf569770bfca76102795a5fc8d6"
    )


def test_everything_comes_back_with_its_metadata(tmp_path: Path, handler: DataHandler) -> None:
    """C24"""
    data = {
        "positions": np.random.default_rng(0).normal(size=(7, 4, 3)),
        "plddt": np.array([1.5, np.nan, 3, 4, 5, 6, 7], dtype=">f4"),
        "pae": np.asfortranarray(np.arange(49.0).reshape(7, 7)),
        "time": [0.0, 0.5, 1.0],
        "scalar": np.float64(2.5),
        "zero_d": np.array(3),
        "empty": np.empty((0, 3), np.int8),
        "nested": {"chain": "A", "ids": (1, 2), 7: None},
    }
    loaded = handler.load_data(handler.store_structure(data, "protein1", {"resolution": "high"}))
    metadata = loaded.pop("metadata")
    assert same(loaded, data)
    assert loaded["pae"].flags.f_contiguous
    assert metadata.pop("timestamp").endswith("Z")
    assert metadata == {
        "resolution": "high", "data_id": "protein1", "kind": "structure", "rayzyme_version": rayzyme.__version__,
    }  # fmt: skip


@given(
    data=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name not in ("metadata", "positions", "plddt")), values()
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_data_comes_back(handler: DataHandler, data: dict[str, Any]) -> None:
    """C24, C66"""
    loaded = handler.load_data(handler.store_structure(data, "random"))
    del loaded["metadata"]
    assert same(loaded, data)


def test_a_second_handler_reads_what_the_first_stored_whatever_its_compression(tmp_path: Path) -> None:
    """C21"""
    data = {"positions": np.random.default_rng(0).normal(size=(50, 3))}
    with DataHandler(tmp_path, enable_compression=True) as one, DataHandler(tmp_path, enable_compression=False) as two:
        for writer, reader in ((one, two), (two, one)):
            key = writer.store_structure(data, "protein1")
            assert same(reader.load_data(key)["positions"], data["positions"])
            assert reader.get_cache_stats()["num_entries"] == 1


def test_the_home_folder_is_the_default(home: Path) -> None:
    """C21"""
    with DataHandler() as handler:
        handler.store_structure({}, "empty")
    assert (home / "data" / "index.sqlite").exists()


def test_a_structure_and_a_trajectory_of_one_name_do_not_hide_each_other(handler: DataHandler) -> None:
    """C23"""
    structure = handler.store_structure({"kind of": "structure"}, "protein1")
    trajectory = handler.store_trajectory({"frames": np.zeros((1, 1, 3))}, "protein1")
    assert handler.load_data(structure)["kind of"] == "structure"
    assert set(handler.load_data(trajectory)) == {"frames", "metadata"}


def test_storing_again_replaces(handler: DataHandler) -> None:
    """C23"""
    handler.store_structure({"positions": np.zeros((1000, 3))}, "protein1")
    key = handler.store_structure({"positions": np.ones((1, 3))}, "protein1")
    assert same(handler.load_data(key)["positions"], np.ones((1, 3)))
    assert handler.get_cache_stats()["num_entries"] == 1


@pytest.mark.parametrize("metadata", [{"a": object()}, {1: "a"}, {"a": (1, 2)}, {"a": float("nan")}, {"a": {1}}])
def test_metadata_must_be_json(handler: DataHandler, metadata: dict[Any, Any]) -> None:
    """C23"""
    with pytest.raises(TypeError, match="metadata of 'protein1' is not JSON"):
        handler.store_structure({}, "protein1", metadata)
    assert handler.list_entries() == []


def test_the_name_metadata_is_reserved_and_so_are_the_stores_own(handler: DataHandler) -> None:
    """C24"""
    with pytest.raises(ValueError, match="'metadata' is reserved; give it as metadata="):
        handler.store_structure({"metadata": {}}, "protein1")
    with pytest.raises(ValueError, match="metadata may not hold kind, timestamp"):
        handler.store_structure({}, "protein1", {"kind": "x", "timestamp": 1})


def test_what_cannot_be_stored_is_named_and_nothing_is_written(handler: DataHandler) -> None:
    """C4"""
    with pytest.raises(TypeError, match=r"structure_data\['a'\]\['b'\]\[1\] is of type builtins\.object"):
        handler.store_structure({"a": {"b": [1, object()]}}, "protein1")
    assert handler.list_entries() == []


@pytest.mark.parametrize(
    "data_id", ["../../etc/passwd", "a\0b", "/", "ä\ud800", "\ud83d\ude00", ".", "x" * 512, "'; DROP TABLE entry; --"]
)
def test_hostile_ids_are_only_names(handler: DataHandler, data_id: str) -> None:
    """C29"""
    key = handler.store_structure({"positions": np.zeros((1, 3))}, data_id)
    assert handler.load_data(key)["metadata"]["data_id"] == data_id
    assert handler.list_entries()[0]["data_id"] == data_id
    assert sorted(path.name for path in handler.cache_dir.iterdir() if path.is_dir()) == ["entries"]


@pytest.mark.parametrize("data_id", ["", "x" * 513, None, 7])
def test_an_id_is_a_text_of_reasonable_length(handler: DataHandler, data_id: Any) -> None:
    """C29"""
    with pytest.raises(ValueError, match="data_id must be a text of 1 to 512 characters"):
        handler.store_structure({}, data_id)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4, 4), (2, 2, 2, 3)])
def test_positions_have_three_coordinates(handler: DataHandler, shape: tuple[int, ...]) -> None:
    """C29"""
    with pytest.raises(ValueError, match=r"positions must be \(residues, atoms, 3\) or \(atoms, 3\)"):
        handler.store_structure({"positions": np.zeros(shape)}, "protein1")


def test_confidences_of_another_length_are_stored_and_warned_about(
    handler: DataHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """C29"""
    with caplog.at_level(logging.WARNING, "rayzyme"):
        key = handler.store_structure({"positions": np.zeros((5, 4, 3)), "plddt": np.ones(4)}, "protein1")
    assert "plddt has shape (4,) for 5 residues" in caplog.text
    assert len(handler.load_data(key)["plddt"]) == 4


def test_a_trajectory_needs_frames(handler: DataHandler) -> None:
    with pytest.raises(ValueError, match="must be a dict with an entry 'frames'"):
        handler.store_trajectory({"time": [1]}, "md")
    with pytest.raises(ValueError, match="frames must be an array with the frames along its first axis"):
        handler.store_trajectory({"frames": 1.0}, "md")


def test_arrays_stored_plainly_are_maps_and_changing_any_leaves_the_store_alone(handler: DataHandler) -> None:
    """C25"""
    positions = np.arange(3000.0).reshape(1000, 3)
    key = handler.store_structure({"positions": positions.copy()}, "protein1")
    loaded = handler.load_data(key)["positions"]
    if isinstance(loaded, np.memmap):
        with pytest.raises(ValueError, match="read-only"):
            loaded[0] = 7
    else:
        loaded[0] = 7
    assert same(np.asarray(handler.load_data(key)["positions"]), positions)


def test_only_a_store_without_compression_gives_maps(tmp_path: Path) -> None:
    """C25"""
    for compress in (True, False):
        with DataHandler(tmp_path / str(compress), enable_compression=compress) as handler:
            key = handler.store_structure({"positions": np.arange(3000.0).reshape(1000, 3)}, "protein1")
            assert isinstance(handler.load_data(key)["positions"], np.memmap) is not compress


def test_frames_are_read_in_part(handler: DataHandler, trajectory: dict[str, Any]) -> None:
    """C27"""
    key = handler.store_trajectory(trajectory, "md")
    assert same(handler.load_frames(key, 10, 20), trajectory["frames"][10:20])
    assert same(handler.load_frames(key, 100, 400, 7), np.ascontiguousarray(trajectory["frames"][100:400:7]))
    assert same(handler.load_frames(key, 3, 5, name="box"), trajectory["box"][3:5])
    assert len(handler.load_frames(key, 490, 9999)) == 10
    with pytest.raises(KeyError, match="has no 'velocities'; it has frames, time, box"):
        handler.load_frames(key, 0, 1, name="velocities")
    with pytest.raises(ValueError, match="'time' was not stored as an array"):
        handler.load_frames(key, 0, 1, name="time")


def test_frames_are_streamed(handler: DataHandler, trajectory: dict[str, Any]) -> None:
    """C27"""
    key = handler.store_trajectory(trajectory, "md")
    blocks = list(handler.iter_frames(key, 130))
    assert [len(block) for block in blocks] == [130, 130, 130, 110]
    assert same(np.concatenate(blocks), trajectory["frames"])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        next(handler.iter_frames(key, 0))


def test_ten_of_ten_thousand_frames_touch_less_than_two_percent_of_the_file(
    handler: DataHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C27"""
    frames = np.random.default_rng(0).normal(size=(10_000, 230, 3)).astype(np.float32)
    key = handler.store_trajectory({"frames": frames}, "md")
    read: list[int] = []
    import os

    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda *args: (lambda content: (read.append(len(content)), content)[1])(real(*args))
    )
    assert same(handler.load_frames(key, 4_315, 4_325), frames[4_315:4_325])
    assert sum(read) < 0.02 * handler.list_entries()[0]["size"]


def test_frames_may_come_as_an_iterator(handler: DataHandler, trajectory: dict[str, Any]) -> None:
    """C28"""
    blocks = iter(np.array_split(trajectory["frames"], 9))
    key = handler.store_trajectory({**trajectory, "frames": blocks}, "md")
    loaded = handler.load_data(key)
    assert list(loaded) == ["frames", "time", "box", "metadata"]
    assert same(np.asarray(loaded["frames"]), trajectory["frames"])


def test_an_iterator_that_raises_stores_nothing(handler: DataHandler) -> None:
    """C28"""

    def blocks() -> Iterator[Any]:
        yield np.zeros((100, 5, 3))
        raise RuntimeError("the simulation broke off")

    before = handler.store_trajectory({"frames": np.ones((1, 1, 3))}, "md")
    with pytest.raises(RuntimeError, match="the simulation broke off"):
        handler.store_trajectory({"frames": blocks()}, "md")
    assert same(np.asarray(handler.load_data(before)["frames"]), np.ones((1, 1, 3)))
    assert len([path for path in (handler.cache_dir / "entries").rglob("*") if path.is_file()]) == 1


def test_a_precision_is_kept_and_told(handler: DataHandler, trajectory: dict[str, Any]) -> None:
    """C34"""
    key = handler.store_trajectory(trajectory, "md", precision=0.001)
    loaded = handler.load_data(key)
    assert loaded["metadata"]["precision"] == 0.001
    error = np.abs(loaded["frames"].astype(np.float64) - trajectory["frames"])
    assert 0 < error.max() <= 0.0005


def test_float64_becomes_float32_only_where_asked() -> None:
    """C34"""
    data = {"a": np.ones(3), "b": np.ones(3), "c": np.ones(3, np.int64), "d": "text"}
    assert DataHandler.optimize_memory(data)["a"].dtype == np.float32
    some = DataHandler.optimize_memory(data, ["a"])
    assert (some["a"].dtype, some["b"].dtype, some["c"].dtype, some["d"]) == (np.float32, np.float64, np.int64, "text")


def test_an_unknown_key_is_named(handler: DataHandler) -> None:
    """C26"""
    with pytest.raises(KeyError, match="no entry has the key 'abc'; see list_entries"):
        handler.load_data("abc")
    with pytest.raises(KeyError, match="no entry has the key None"):
        handler.load_data(None)  # type: ignore[arg-type]


def entry_file(handler: DataHandler, key: str) -> Path:
    return handler.cache_dir / "entries" / key[:2] / key


def test_a_file_that_is_gone_is_told_and_forgotten(handler: DataHandler) -> None:
    """C26"""
    key = handler.store_structure({}, "protein1")
    entry_file(handler, key).unlink()
    with pytest.raises(CacheEntryLost, match=r"the file of entry .* \(protein1\) is gone"):
        handler.load_data(key)
    assert handler.list_entries() == []
    with pytest.raises(KeyError, match="no entry has the key"):
        handler.load_data(key)


def test_a_flipped_bit_is_quarantined_and_never_given_out(handler: DataHandler) -> None:
    """C26"""
    key = handler.store_structure({"positions": np.random.default_rng(0).normal(size=(100, 3))}, "protein1")
    before = get_metrics_collector().get_counter("rayzyme_data_corrupt_total")
    file = entry_file(handler, key)
    content = bytearray(file.read_bytes())
    content[200] ^= 4
    file.write_bytes(content)
    with pytest.raises(CacheEntryLost, match=r"is damaged.*the damaged file is in .*bad"):
        handler.load_data(key)
    assert [path.name.partition(".")[0] for path in (handler.cache_dir / "bad").iterdir()] == [key]
    assert handler.list_entries() == []
    assert get_metrics_collector().get_counter("rayzyme_data_corrupt_total") == before + 1


def test_verify_finds_every_bad_entry(handler: DataHandler) -> None:
    """C35"""
    good, flipped, gone = (handler.store_structure({"positions": np.ones((50, 3))}, name) for name in "abc")
    content = bytearray(entry_file(handler, flipped).read_bytes())
    content[100] ^= 1
    entry_file(handler, flipped).write_bytes(content)
    entry_file(handler, gone).unlink()
    assert sorted(handler.verify()) == sorted([flipped, gone])
    assert [entry["key"] for entry in handler.list_entries()] == [good]
    assert handler.get_cache_stats()["hits"] == 0


def test_entries_are_listed_deleted_and_cleared(handler: DataHandler) -> None:
    """C35"""
    structure = handler.store_structure({}, "a", {"of": 1})
    trajectory = handler.store_trajectory({"frames": np.zeros((1, 1, 3))}, "b")
    assert [entry["key"] for entry in handler.list_entries("structure")] == [structure]
    assert handler.list_entries("trajectory")[0]["data_id"] == "b"
    assert handler.list_entries()[0]["metadata"] == {"of": 1}
    assert handler.delete(structure) is True
    assert handler.delete(structure) is False
    assert handler.clear_cache() == 1
    assert handler.list_entries() == []
    with pytest.raises(KeyError):
        handler.load_data(trajectory)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_cache_size": 0}, "max_cache_size"),
        ({"max_cache_size": True}, "max_cache_size"),
        ({"max_cache_size": "1"}, "max_cache_size"),
        ({"max_cache_size": float("inf")}, "max_cache_size"),
        ({"enable_compression": 1}, "enable_compression"),
        ({"cache_dir": 7}, "cache_dir"),
        ({"max_cache_size": 1e-12}, "max_cache_size"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=named):
        DataHandler(**arguments)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """C2"""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValidationError, match=r"cache_dir must be a folder, and .*file is a file"):
        DataHandler(tmp_path / "file" / "below")


def test_the_structure_of_a_real_protein_comes_back(handler: DataHandler, shared: Path) -> None:
    """C64"""
    import gemmi

    chain = gemmi.read_structure(str(shared / "data" / "AF-P69905-F1-model_v4.cif"))[0][0]
    positions = np.array(
        [[atom.pos.tolist() for atom in residue if atom.name in ("N", "CA", "C", "O")] for residue in chain]
    )
    plddt = np.array([residue[0].b_iso for residue in chain])
    loaded = handler.load_data(handler.store_structure({"positions": positions, "plddt": plddt}, "P69905"))
    assert positions.shape == (142, 4, 3)
    assert same(np.asarray(loaded["positions"]), positions)
    assert same(np.asarray(loaded["plddt"]), plddt)
    assert json.dumps(loaded["metadata"])


@pytest.mark.parametrize("metadata", [0, "", [], [("a", 1)], "ab"])
def test_metadata_is_a_dict(handler: DataHandler, metadata: Any) -> None:
    """C23"""
    with pytest.raises(TypeError, match="metadata of 'protein1' must be a dict"):
        handler.store_structure({}, "protein1", metadata)


@pytest.mark.parametrize("days", ["x", -1, True, float("nan")])
def test_an_age_is_a_number(handler: DataHandler, days: Any) -> None:
    """C2"""
    with pytest.raises(ValidationError, match="max_age_days"):
        handler.cleanup(days)


def test_what_is_closed_stays_closed(handler: DataHandler) -> None:
    """C3"""
    key = handler.store_structure({}, "protein1")
    handler.close()
    handler.close()
    with pytest.raises(ValueError, match="this data handler is closed"):
        handler.load_data(key)
