"""What tasks give and share: stored, loaded, and known by digest."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayzyme.errors import DamagedFile, NotFound
from rayzyme.workflows import ModelRef
from rayzyme.workflows.outputs import (
    LARGEST_INLINE_BYTES,
    SharedState,
    as_record,
    is_durable,
    load_value,
    store_value,
)


def stored_as_row(value: Any, folder: Path) -> Any:
    return json.loads(json.dumps(as_record(store_value(value, folder, "value"))))


@pytest.mark.parametrize(
    "value",
    [None, 3, "text", float("inf"), {"a": [1, (2, 3)], 4: b"x"}, Path("/tmp/x"), {1, 2}, ModelRef("d", "host"),
     {"model": ModelRef("d", "host", dimension=3), "more": [ModelRef("e", "other")]}],
)  # fmt: skip
def test_small_values_stand_in_the_row_and_come_back_as_they_were(value: Any, tmp_path: Path) -> None:
    """D35, D38"""
    row = stored_as_row(value, tmp_path / "made-when-needed")
    assert row["kind"] == "inline"
    assert load_value(row) == value
    assert type(load_value(row)) is type(value)
    assert not (tmp_path / "made-when-needed").exists()


def test_arrays_and_large_values_are_files_that_come_back(tmp_path: Path) -> None:
    """D38"""
    large = {"text": "x" * LARGEST_INLINE_BYTES}
    array = {"scores": np.arange(6, dtype=np.float32).reshape(2, 3), "model": ModelRef("d", "host")}
    for value in (large, array):
        row = stored_as_row(value, tmp_path)
        assert (row["kind"], row["size"]) == ("bundle", Path(row["path"]).stat().st_size)
        assert is_durable(row)
    again = load_value(row)
    assert np.array_equal(again["scores"], array["scores"])
    assert again["model"] == array["model"]


def test_arrow_tables_are_files_that_come_back(tmp_path: Path) -> None:
    """D38"""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"id": ["a", "b"], "score": [1.0, 2.0]})
    row = stored_as_row(table, tmp_path)
    assert load_value(row).equals(table)
    with Path(row["path"]).open("r+b") as file:
        file.truncate(row["size"] // 2)
    with pytest.raises(DamagedFile, match=r"value\.arrow"):
        load_value(row)


def test_what_cannot_be_stored_is_transient_and_says_so_once_it_is_gone() -> None:
    """D38"""
    lock = threading.Lock()
    stored = store_value({"lock": lock}, Path(), "output")
    assert not is_durable(stored)
    assert load_value(stored)["lock"] is lock
    row = json.loads(json.dumps(as_record(stored)))
    with pytest.raises(NotFound, match=r"output\['lock'\] is of type _thread\.lock"):
        load_value(row)


def test_a_file_that_is_gone_or_altered_is_named(tmp_path: Path) -> None:
    """D20"""
    stored = store_value(np.arange(100), tmp_path, "output")
    path = Path(stored["path"])
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"output\.bundle"):
        load_value(stored)
    path.unlink()
    with pytest.raises(NotFound, match=r"output\.bundle"):
        load_value(stored)


def test_equal_values_have_equal_digests(tmp_path: Path) -> None:
    """D26"""
    for first, second, third in (({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}), *_arrays()):
        digests = [store_value(value, tmp_path, "x")["digest"] for value in (first, second, third)]
        assert digests[0] == digests[1] != digests[2]


def _arrays() -> list[tuple[Any, Any, Any]]:
    return [(np.arange(4), np.arange(4), np.arange(5))]


def test_only_what_a_task_wrote_counts_as_written(tmp_path: Path) -> None:
    """D35"""
    before = {key: store_value(value, tmp_path, key) for key, value in _shared().items()}
    shared = SharedState(before)
    assert shared["text"] == "x"
    assert shared["items"] == [1]
    assert shared["array"]["values"].tolist() == [0, 1, 2]
    shared["same"] = {"b": 2, "a": 1}
    assert shared.writes(tmp_path) == {}
    shared["new"] = 5
    shared["text"] = "y"
    shared["items"].append(2)
    shared["array"]["more"] = True
    del shared["untouched"]
    writes = shared.writes(tmp_path)
    assert set(writes) == {"new", "text", "items", "array", "untouched"}
    after = SharedState({**before, **writes})
    assert sorted(after) == ["array", "items", "new", "same", "text"]
    assert (after["new"], after["text"], after["items"], after["array"]["more"]) == (5, "y", [1, 2], True)


def _shared() -> dict[str, Any]:
    array = {"values": np.arange(3)}
    return {"text": "x", "items": [1], "same": {"a": 1, "b": 2}, "untouched": 3, "array": array}


def test_the_shared_state_behaves_as_a_dict(tmp_path: Path) -> None:
    """D23, D35"""
    shared = SharedState({"a": store_value(1, tmp_path, "a")})
    shared["b"] = 2
    assert dict(shared) == {"a": 1, "b": 2}
    assert (len(shared), "a" in shared, "c" in shared, shared.get("c", 3)) == (2, True, False, 3)
    assert shared.pop("a") == 1
    with pytest.raises(KeyError):
        _ = shared["a"]
    with pytest.raises(KeyError):
        del shared["a"]
    shared.setdefault("a", []).append(1)
    assert shared == {"a": [1], "b": 2}
