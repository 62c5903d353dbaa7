"""What a pickled file may hold, and that nothing in it ever runs."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayzyme.errors import CheckpointError, NotFound
from rayzyme.models.safe_loading import load_tensor_pickle, load_torch_checkpoint


class Hostile:
    """Pickles to a call: unpickling it makes a file, which is how the tests know that something ran."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def _hostile_objects(marker: Path) -> dict[str, tuple[Any, str]]:
    return {
        "os.system": (Hostile(os.system, f"touch {marker}"), "posix.system"),
        "eval": (Hostile(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        "open": (Hostile(open, str(marker), "w"), "io.open"),
        "getattr": (Hostile(getattr, "text", "upper"), "builtins.getattr"),
        "numpy.load": (Hostile(np.save, str(marker), np.zeros(1)), "numpy.save"),
        "torch.load": (Hostile(torch.load, str(marker)), "torch.serialization.load"),
        "a class of ours": (Hostile(Path, str(marker)), "pathlib.Path"),
    }


HOSTILE = sorted(_hostile_objects(Path("m")))


def _checkpoint(**more: object) -> dict[str, object]:
    return {
        "hyper_parameters": {"args": argparse.Namespace(protein_dim=32, norm_feats=True)},
        "state_dict": collections.OrderedDict({"model.weight": torch.arange(6.0).reshape(2, 3)}),
        **more,
    }


def test_a_checkpoint_in_the_published_layout_is_read(tmp_path: Path) -> None:
    torch.save(_checkpoint(epoch=3, loops=None), tmp_path / "model.ckpt")
    content = load_torch_checkpoint(tmp_path / "model.ckpt")
    assert content["hyper_parameters"]["args"].protein_dim == 32
    assert torch.equal(content["state_dict"]["model.weight"], torch.arange(6.0).reshape(2, 3))
    assert content["epoch"] == 3


@pytest.mark.shared
def test_the_published_fixture_is_read(shared: Path) -> None:
    content = load_torch_checkpoint(shared / "fixtures" / "clipzyme" / "checkpoint.ckpt")
    assert content["hyper_parameters"]["args"].model_name == "enzyme_reaction_clip"
    assert all(name.startswith("model.") for name in content["state_dict"])


def test_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    torch.save(_checkpoint(), tmp_path / "model.ckpt", _use_new_zipfile_serialization=False)
    weight = load_torch_checkpoint(tmp_path / "model.ckpt")["state_dict"]["model.weight"]
    assert torch.equal(weight, torch.arange(6.0).reshape(2, 3))


def test_numbers_in_the_old_format_are_not_mistaken_for_names(tmp_path: Path) -> None:
    # 'c' followed by two lines is how a pickle asks for a name; here it is part of the weights.
    bytes_like_a_request = b"cos\nsystem\n(S'x'\ntR." * 4
    weights = torch.frombuffer(bytearray(bytes_like_a_request), dtype=torch.uint8)
    first = struct.unpack("<I", b"cos\n")[0]
    torch.save(
        {"state_dict": {"w": weights, "n": torch.zeros(99), "first": first}},
        tmp_path / "model.ckpt",
        _use_new_zipfile_serialization=False,
    )
    assert torch.equal(load_torch_checkpoint(tmp_path / "model.ckpt")["state_dict"]["w"], weights)


def test_the_weights_are_mapped_and_writing_to_them_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(_checkpoint(), path)
    before = path.read_bytes()
    load_torch_checkpoint(path)["state_dict"]["model.weight"].zero_()
    assert path.read_bytes() == before


def test_loading_leaves_no_name_allowed_for_others(tmp_path: Path) -> None:
    torch.save(_checkpoint(), tmp_path / "model.ckpt")
    before = set(torch.serialization.get_safe_globals())
    load_torch_checkpoint(tmp_path / "model.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old format"])
def test_a_checkpoint_that_asks_for_more_is_refused_by_name_and_does_not_run(
    tmp_path: Path, marker: Path, kind: str, new_format: bool
) -> None:
    hostile, asked = _hostile_objects(marker)[kind]
    path = tmp_path / "model.ckpt"
    torch.save(_checkpoint(callbacks=hostile), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError) as failure:
        load_torch_checkpoint(path)
    wanted = asked.replace("builtins.", "__builtin__.").replace("io.open", "__builtin__.open")
    assert str(failure.value).startswith(f"{path} asks for ")
    assert wanted in str(failure.value) or asked in str(failure.value)
    assert "nothing in it has run" in str(failure.value)
    assert not marker.exists()


def test_what_others_have_allowed_in_this_process_is_still_refused(tmp_path: Path) -> None:
    torch.save(_checkpoint(place=Path("/tmp")), tmp_path / "model.ckpt")
    with (
        torch.serialization.safe_globals([type(Path("/tmp")), Path]),  # type: ignore[list-item]
        pytest.raises(CheckpointError, match=r"asks for pathlib\._?\w*\.?\w*Path"),
    ):
        load_torch_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_in_place_of_a_checkpoint_does_not_run(tmp_path: Path, marker: Path, protocol: int) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(Hostile(os.system, f"touch {marker}"), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"asks for posix\.system|is not a checkpoint"):
        load_torch_checkpoint(path)
    assert not marker.exists()


def test_a_name_taken_from_the_memo_is_found_too(tmp_path: Path, marker: Path) -> None:
    opcodes = b"\x80\x04" + b"\x8c\x05posix\x94" + b"0" + b"\x8c\x06system\x94" + b"0" + b"h\x00h\x01\x93"
    call = b"\x8c" + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode() + b"\x85R."
    path = tmp_path / "model.ckpt"
    path.write_bytes(opcodes + call)
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_torch_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_tensor_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [5, 300, -30])
def test_a_truncated_checkpoint_is_said_with_its_size(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(_checkpoint(), path)
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as failure:
        load_torch_checkpoint(path)
    assert f"{path} is truncated or corrupt ({len(content):,} bytes)" in str(failure.value)
    assert "Fetch or copy the file again" in str(failure.value)


def test_a_truncated_file_of_the_old_format_is_said_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(_checkpoint(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"is truncated or corrupt \([\d,]+ bytes\)"):
        load_torch_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html>", "is not a checkpoint: it starts with b'<!DO'"),
        (pickle.dumps([1, 2], 2), "holds a list where a checkpoint holds a dictionary"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.ckpt"
    if content.startswith(b"\x80"):
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as failure:
        load_torch_checkpoint(path)
    assert words in str(failure.value)


def test_a_zip_archive_around_a_checkpoint_is_not_a_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("clipzyme_model.ckpt", b"...")
    with pytest.raises(CheckpointError, match=r"holds clipzyme_model.ckpt and no data.pkl .* unpack the archive first"):
        load_torch_checkpoint(tmp_path / "model.zip")


def test_a_torchscript_archive_is_refused_as_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(CheckpointError, match="is a TorchScript archive, which holds code"):
        load_torch_checkpoint(path)


def test_a_checkpoint_packed_again_with_compression_is_refused(tmp_path: Path) -> None:
    torch.save(_checkpoint(), tmp_path / "model.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "model.ckpt") as source,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match=r"has compressed entries, which torch.save never writes"):
        load_torch_checkpoint(tmp_path / "packed.ckpt")


@pytest.mark.parametrize("read", [load_torch_checkpoint, load_tensor_pickle])
def test_a_missing_file_or_a_folder_is_not_found(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(NotFound, match=r"There is no file at .*absent"):
        read(tmp_path / "absent")
    with pytest.raises(NotFound, match="it is a directory"):
        read(tmp_path)


def _write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_arrays_and_plain_containers_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    content = {
        "hiddens": matrix,
        "column": matrix[:, 1],
        "transposed": matrix.t(),
        "halves": [torch.ones(2, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(2))],
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "array": np.arange(6.0).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3), np.float16),
        "number": np.float32(2.5),
        "uniprots": ["P69905", "P68871"],
        "names": np.array(["a", "bc"]),
        "objects": np.array([["a", "bc"], ["d", "e"]], dtype=object, order="F"),
        "plain": (1, 2.5, None, True, b"bytes", b"", collections.OrderedDict(a=1)),
    }
    read = load_tensor_pickle(_write(tmp_path / "set.p", content, protocol))
    assert list(read) == list(content)
    for name in ("hiddens", "column", "transposed", "scalar", "empty"):
        assert torch.equal(read[name], content[name]), name  # type: ignore[arg-type]
    assert [half.tolist() for half in read["halves"]] == [[1, 1], [1, 1]]
    assert read["halves"][0].dtype == torch.bfloat16
    for name in ("array", "big-endian", "flags", "none", "number", "names", "objects"):
        assert type(read[name]) is type(content[name])
        assert read[name].dtype == content[name].dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(read[name], content[name])  # type: ignore[arg-type]
    assert read["uniprots"] == ["P69905", "P68871"]
    assert read["plain"] == content["plain"]


def test_arrays_pickled_by_numpy_1_are_read(tmp_path: Path) -> None:
    modern = pickle.dumps({"hiddens": np.ones((2, 3), np.float32), "n": np.float64(2)}, protocol=2)
    path = tmp_path / "set.p"
    path.write_bytes(modern.replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert load_tensor_pickle(path)["hiddens"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_asks_for_more_is_refused_by_name_and_does_not_run(
    tmp_path: Path, marker: Path, kind: str, protocol: int
) -> None:
    hostile, asked = _hostile_objects(marker)[kind]
    path = _write(tmp_path / "set.p", {"hiddens": torch.ones(2), "uniprots": [hostile]}, protocol)
    with pytest.raises(CheckpointError) as failure:
        load_tensor_pickle(path)
    old_names = {"builtins.": "__builtin__.", "io.open": "__builtin__.open"}
    wanted = [asked, *(asked.replace(new, old) for new, old in old_names.items())]
    assert any(f"{path} asks for {name};" in str(failure.value) for name in wanted), str(failure.value)
    assert "nothing in it has run" in str(failure.value)
    assert not marker.exists()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old format"])
def test_a_hostile_stream_inside_a_tensor_is_refused_by_name_and_does_not_run(
    tmp_path: Path, marker: Path, new_format: bool
) -> None:
    inner = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {marker}"), inner, _use_new_zipfile_serialization=new_format)
    outer = Hostile(torch.storage._load_from_bytes, inner.getvalue())
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_tensor_pickle(_write(tmp_path / "set.p", {"hiddens": outer}))
    assert not marker.exists()


def test_a_stream_inside_a_tensor_that_is_no_storage_gives_no_tensor(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save([1, 2], inner)
    storage = Hostile(torch.storage._load_from_bytes, inner.getvalue())
    tensor = Hostile(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, {})
    with pytest.raises(CheckpointError, match="holds a tensor without a storage"):
        load_tensor_pickle(_write(tmp_path / "set.p", tensor))


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "words"),
    [
        (0, (1_000_000,), (0,), r"a tensor of shape \(1000000,\) in 4 stored values"),
        (0, (5,), (1,), r"a tensor of shape \(5,\) in 4 stored values"),
        (3, (2,), (1,), r"a tensor of shape \(2,\) in 4 stored values"),
        (0, (2,), (-1,), "a negative size, stride or offset"),
        (-1, (2,), (1,), "a negative size, stride or offset"),
        (0, (2, 2), (1,), "a negative size, stride or offset|shape"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], words: str
) -> None:
    storage = torch.ones(4).storage()
    tensor = Hostile(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, {})
    with pytest.raises(CheckpointError, match=words):
        load_tensor_pickle(_write(tmp_path / "set.p", tensor))


def test_an_array_of_other_objects_than_strings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="an array of Python objects other than strings"):
        load_tensor_pickle(_write(tmp_path / "set.p", np.array(["a", {"b": 1}], dtype=object)))


def test_a_structured_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only numbers and text are read"):
        load_tensor_pickle(_write(tmp_path / "set.p", np.zeros(2, dtype=[("a", "f4")])))


def test_a_set_or_another_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a set outside of an array or tensor"):
        load_tensor_pickle(_write(tmp_path / "set.p", {"uniprots": {"a"}}))
    with pytest.raises(CheckpointError, match=r"asks for argparse\.Namespace; only tensors, numpy arrays"):
        load_tensor_pickle(_write(tmp_path / "set.p", argparse.Namespace()))


def test_a_file_cannot_alter_the_functions_that_read_it(tmp_path: Path) -> None:
    # GLOBAL pushes our own builder; BUILD would set its attributes.
    builder = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    path = tmp_path / "set.p"
    path.write_bytes(builder + b"}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xsb.")
    with pytest.raises(CheckpointError, match="the file tries to alter a function"):
        load_tensor_pickle(path)
    path.write_bytes(builder + b".")
    with pytest.raises(CheckpointError, match="it holds a Admitted outside of an array or tensor"):
        load_tensor_pickle(path)
    path.write_bytes(b"\x80\x02}" + builder[2:] + b"K\x01s.")
    with pytest.raises(CheckpointError, match="it holds a dict with a Admitted as key"):
        load_tensor_pickle(path)


def test_a_container_that_holds_itself_does_not_hang(tmp_path: Path) -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    read = load_tensor_pickle(_write(tmp_path / "set.p", circle))
    assert read[1] is read


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.", id="claims an exabyte"),
        pytest.param(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", id="nested too deeply"),
        pytest.param(b"\x80\x04h\x07.", id="memo that was never set"),
        pytest.param(b"\x80\x04\x95", id="cut in a frame"),
        pytest.param(b"uniprot,embedding\n", id="text"),
    ],
)
def test_nonsense_is_reported_as_such_with_the_size(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.p"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as failure:
        load_tensor_pickle(path)
    assert "truncated, corrupt or of another kind" in str(failure.value)
    assert f"({len(content):,} bytes)" in str(failure.value)


def test_a_truncated_pickle_is_said_with_its_size(tmp_path: Path) -> None:
    path = _write(tmp_path / "set.p", {"hiddens": torch.ones(100), "uniprots": ["a"]})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"truncated, corrupt or of another kind \(200 bytes\)"):
        load_tensor_pickle(path)
