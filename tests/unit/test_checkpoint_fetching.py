"""Fetching checkpoints: through a record or an address, over servers that break, from publishers that changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.support.broken_http_server import BrokenServer, Fault
from tests.support.checkpoint_samples import WEIGHTS, packed, registry_of, saved

from rayzyme.errors import CheckpointError, DownloadFailed, NotFound


def test_the_published_model_is_found_through_its_record_and_unpacked(home: Path, server: BrokenServer) -> None:
    archive = packed({"files/clipzyme_model.ckpt": WEIGHTS})
    server.serve_record(11187895, {"clipzyme_data.zip": b"other", "clipzyme_model.zip": archive})
    registry = registry_of(home, server)
    seen: list[tuple[int, int | None]] = []
    path = registry.fetch("clipzyme_official_v1", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(home / "checkpoints" / "clipzyme_official_v1")
    assert seen[-1] == (len(archive), len(archive))
    manifest = json.loads((home / "checkpoints" / "clipzyme_official_v1" / "manifest.json").read_text())
    assert manifest.pop("fetched_at").startswith("20")
    assert manifest == {
        "name": "clipzyme_official_v1",
        "url": "https://zenodo.org/records/11187895",
        "file": "files/files/clipzyme_model.ckpt",
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "size": len(WEIGHTS),
    }
    assert not list(home.rglob("*.zip")), "the archive is not kept beside what it held"


def test_both_names_of_the_published_model_share_one_copy(home: Path, server: BrokenServer) -> None:
    server.serve_record(11187895, {"clipzyme_model.zip": packed({"m.ckpt": WEIGHTS})})
    registry = registry_of(home, server)
    path = registry.fetch("clipzyme_v1")
    asked = len(server.requests)
    assert registry.fetch("clipzyme_official_v1") == path == registry.resolve("clipzyme_v1")
    assert len(server.requests) == asked


def test_a_record_with_another_md5_is_refused(home: Path, server: BrokenServer) -> None:
    archive = packed({"m.ckpt": WEIGHTS})
    server.serve_record(11187895, {"clipzyme_model.zip": archive}, wrong_md5=True)
    wanted, got = hashlib.md5(b"another").hexdigest(), hashlib.md5(archive).hexdigest()
    with pytest.raises(DownloadFailed, match=f"expected MD5 {wanted}, got {got}"):
        registry_of(home, server).fetch("clipzyme_v1")
    assert not registry_of(home).list()[2].present


def test_a_record_without_the_file_says_where_to_look(home: Path, server: BrokenServer) -> None:
    server.serve_record(11187895, {"other.zip": b""})
    with pytest.raises(DownloadFailed) as failure:
        registry_of(home, server).fetch("clipzyme_v1")
    assert "does not describe clipzyme_model.zip" in str(failure.value)
    assert "Look at https://zenodo.org/records/11187895; if the file moved" in str(failure.value)


def test_a_record_with_another_kind_of_digest_is_refused(home: Path, server: BrokenServer) -> None:
    entry = {"key": "clipzyme_model.zip", "size": 3, "checksum": "crc32:00", "links": {"self": server.url + "/x"}}
    server.serve("/api/records/11187895", json.dumps({"files": [entry]}).encode())
    with pytest.raises(DownloadFailed, match=r"gives 'crc32' instead of an MD5 for clipzyme_model\.zip"):
        registry_of(home, server).fetch("clipzyme_v1")


def test_a_record_that_is_no_metadata_says_where_to_look(home: Path, server: BrokenServer) -> None:
    server.serve("/api/records/11187895", b"<html>maintenance</html>")
    with pytest.raises(DownloadFailed, match=r"does not describe clipzyme_model\.zip \(JSONDecodeError"):
        registry_of(home, server).fetch("clipzyme_v1")


def test_a_fetch_survives_a_server_that_breaks_on_the_record_and_on_the_file(home: Path, server: BrokenServer) -> None:
    server.serve_record(11187895, {"clipzyme_model.zip": packed({"m.ckpt": WEIGHTS})})
    server.files["/api/records/11187895"].faults = [Fault(status=502), Fault(cut_after=5)]
    server.files["/api/records/11187895/files/clipzyme_model.zip/content"].faults = [Fault(cut_after=99)] * 2
    assert registry_of(home, server).fetch("clipzyme_v1").read_bytes() == WEIGHTS


def test_an_interrupted_fetch_is_resumed_by_the_next_run(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS, Fault(cut_after=100), *[Fault(cut_after=0)] * 3)
    with pytest.raises(DownloadFailed, match="run the same command again to resume"):
        registry_of(home, server, mine=url).fetch("mine")
    assert registry_of(home, server, mine=url).fetch("mine").read_bytes() == WEIGHTS
    assert server.ranges("/mine.ckpt")[-1] == "bytes=100-"


def test_a_present_checkpoint_is_fetched_again_only_by_force(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    registry = registry_of(home, server, mine=url)
    registry.fetch("mine")
    newer = saved({"state_dict": {"model.weight": torch.zeros(5)}})
    server.serve("/mine.ckpt", newer, etag='"v2"')
    assert registry.fetch("mine").read_bytes() == WEIGHTS
    assert registry.fetch("mine", force=True).read_bytes() == newer
    assert registry.list()[-1].sha256 == hashlib.sha256(newer).hexdigest()


def test_a_forced_fetch_that_fails_leaves_the_present_checkpoint(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    registry = registry_of(home, server, mine=url)
    path = registry.fetch("mine")
    server.serve("/mine.ckpt", WEIGHTS, Fault(status=404))
    with pytest.raises(DownloadFailed, match="404"):
        registry.fetch("mine", force=True)
    assert registry.resolve("mine") == path
    assert registry.validate("mine").checks[0].ok


@pytest.mark.parametrize("body", [b"<!DOCTYPE html> down", packed({"readme": b"hello"}), packed({"a.ckpt": b"junk"})])
def test_a_forced_fetch_that_brings_no_checkpoint_leaves_the_present_one(
    home: Path, server: BrokenServer, body: bytes
) -> None:
    registry = registry_of(home, server, mine=server.serve("/mine.ckpt", WEIGHTS))
    path = registry.fetch("mine")
    server.serve("/mine.ckpt", body)
    with pytest.raises(CheckpointError):
        registry.fetch("mine", force=True)
    assert registry.resolve("mine") == path
    assert path.read_bytes() == WEIGHTS
    assert sorted(entry.name for entry in path.parent.parent.iterdir() if entry.suffix != ".lock") == [
        "files",
        "manifest.json",
    ]


def test_a_name_that_was_given_another_address_counts_as_not_fetched(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    registry_of(home, server, mine=url).fetch("mine")
    with pytest.raises(NotFound, match="'mine' is not fetched yet"):
        registry_of(home, server, mine=url + "?v=2").resolve("mine")


def test_the_digest_from_the_settings_is_demanded(home: Path, server: BrokenServer) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    setting = {"url": url, "sha256": "0" * 64, "description": "ours"}
    with pytest.raises(DownloadFailed, match=f"expected SHA-256 {'0' * 64}, got"):
        registry_of(home, server, mine=setting).fetch("mine")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html> not found", r"is not a checkpoint \(25 bytes, starts with b'<!DOCTYPE'\)"),
        (packed({"readme": b"hello"}), "should hold one checkpoint .* and holds 0: none"),
        (packed({"a.ckpt": WEIGHTS, "b.ckpt": WEIGHTS}), r"holds 2: a\.ckpt, b\.ckpt\. Name the file itself"),
        (packed({"../evil.ckpt": WEIGHTS}), "entry '../evil.ckpt' would be written outside of the folder"),
        (packed({"a.ckpt": b"junk"}), "is not a checkpoint"),
    ],
)
def test_what_arrives_and_is_no_checkpoint_is_refused_and_asked_for_again_next_time(
    home: Path, server: BrokenServer, body: bytes, words: str
) -> None:
    url = server.serve("/mine.ckpt", body)
    registry = registry_of(home, server, mine=url)
    with pytest.raises(CheckpointError, match=words):
        registry.fetch("mine")
    assert not registry.list()[-1].present
    assert not list(home.rglob("evil*"))
    server.serve("/mine.ckpt", WEIGHTS)
    assert registry.fetch("mine").read_bytes() == WEIGHTS


def test_a_file_address_is_copied_into_the_home(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.zip"
    source.write_bytes(packed({"model.ckpt": WEIGHTS}))
    path = registry_of(home, mine=source.as_uri()).fetch("mine")
    source.unlink()
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(home)


def test_two_processes_that_fetch_one_name_download_it_once(home: Path, server: BrokenServer, repository: Path) -> None:
    url = server.serve("/mine.ckpt", WEIGHTS)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from rayzyme.models.checkpoints import CheckpointRegistry\n"
        "CheckpointRegistry(Path(sys.argv[1]), {'mine': sys.argv[2]}).fetch('mine')"
    )
    arguments = [sys.executable, "-c", script, str(home), url, str(repository / "platform")]
    processes = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(server.requests) == 1


def test_a_manifest_that_was_tampered_with_says_how_to_mend_it(home: Path, server: BrokenServer) -> None:
    registry = registry_of(home, server, mine=server.serve("/mine.ckpt", WEIGHTS))
    registry.fetch("mine")
    (home / "checkpoints" / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint's manifest .*fetch mine --force"):
        registry.resolve("mine")
    assert registry.fetch("mine", force=True).read_bytes() == WEIGHTS
