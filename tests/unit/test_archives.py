"""Archives that try to escape, explode or pass off damage."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from tests.support.broken_http_server import BODY, HALF

from rayzyme.errors import CheckpointError
from rayzyme.models.archives import extract_zip


def _zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in entries.items():
            archive.writestr(name, body)
    return path


def test_an_archive_is_unpacked_whole(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", {"files/model.ckpt": BODY, "README": b"hello"}, zipfile.ZIP_DEFLATED)
    folder = extract_zip(archive, tmp_path / "out")
    assert (folder / "files" / "model.ckpt").read_bytes() == BODY
    assert (folder / "README").read_bytes() == b"hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out", "out.lock"]


def test_unpacking_again_replaces_what_was_there(tmp_path: Path) -> None:
    extract_zip(_zip(tmp_path / "a.zip", {"old": b"1"}), tmp_path / "out")
    extract_zip(_zip(tmp_path / "b.zip", {"new": b"2"}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil", "c:evil"])
def test_an_entry_that_would_leave_the_folder_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    archive = _zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(CheckpointError) as failure:
        extract_zip(archive, tmp_path / "nest" / "out")
    assert f"entry {name!r} would be written outside of the folder" in str(failure.value)
    assert [path.name for path in (tmp_path / "nest").iterdir()] == ["out.lock"]
    assert not list(tmp_path.rglob("evil"))


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("weights")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(CheckpointError, match="entry 'weights' is a link or special file"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


def test_an_entry_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("weights", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("weights", b"2")
    with pytest.raises(CheckpointError, match="entry 'weights' occurs twice"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


def test_a_bomb_is_refused_with_both_figures(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", {"zeros": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"its [\d,]+ bytes would unpack to 20,000,000, more than 100 times"):
        extract_zip(archive, tmp_path / "out")


def test_a_flipped_byte_in_an_archive_is_found_and_nothing_is_published(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", {"weights": BODY})
    content = bytearray(archive.read_bytes())
    content[HALF] ^= 1
    archive.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated or corrupt and was not unpacked \(.* bytes\): Bad CRC-32"):
        extract_zip(archive, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out.lock"]


def test_a_truncated_archive_is_said_with_its_size(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", {"weights": BODY})
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"truncated or corrupt and was not unpacked \(1,000 bytes\)"):
        extract_zip(archive, tmp_path / "out")


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not unpacked: it is empty"):
        extract_zip(_zip(tmp_path / "a.zip", {}), tmp_path / "out")
