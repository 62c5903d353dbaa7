"""Downloads over a server that lies, refuses and sends other bytes than it should."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.broken_http_server import BODY, HALF, MD5, SHA256, BrokenServer, Fault

from rayzyme.errors import DownloadFailed, InsufficientSpace, InvalidInput
from rayzyme.models.download import Retries, download


def test_a_whole_file_arrives_with_its_digests_and_nothing_else_is_left(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY)
    seen: list[tuple[int, int | None]] = []
    file = download(
        url,
        tmp_path / "deep" / "model",
        size=len(BODY),
        md5=MD5,
        sha256=SHA256.upper(),
        progress=lambda done, total: seen.append((done, total)),
        retries=retries,
    )
    assert file.path.read_bytes() == BODY
    assert (file.size, file.sha256, file.md5) == (len(BODY), SHA256, MD5)
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["model", "model.lock"]


def test_corrupt_bytes_are_fetched_again_once(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, Fault(body=BODY[::-1]))
    assert download(url, tmp_path / "model", sha256=SHA256, retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, None]


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"md5": MD5}, f"expected MD5 {MD5}, got {hashlib.md5(BODY[::-1]).hexdigest()}"),
        ({"sha256": SHA256}, f"expected SHA-256 {SHA256}, got {hashlib.sha256(BODY[::-1]).hexdigest()}"),
    ],
)
def test_a_source_that_stays_corrupt_is_refused_with_both_digests(
    server: BrokenServer, tmp_path: Path, retries: Retries, expected: dict[str, str], words: str
) -> None:
    url = server.serve("/model", BODY[::-1])
    with pytest.raises(DownloadFailed) as failure:
        download(url, tmp_path / "model", retries=retries, **expected)  # type: ignore[arg-type]
    assert words in str(failure.value)
    assert "The bytes were thrown away" in str(failure.value)
    assert "check the address and the configured size and digests" in str(failure.value)
    assert len(server.requests) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.lock"]


def test_an_announced_size_other_than_the_known_one_is_refused_before_the_body(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY)
    with pytest.raises(DownloadFailed, match=f"expected 1,000 bytes, the server announces {len(BODY):,}"):
        download(url, tmp_path / "model", size=1000, retries=retries)


def test_a_length_announced_too_short_is_caught_by_the_digest(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, *[Fault(announce=HALF)] * 2)
    with pytest.raises(DownloadFailed, match=f"expected SHA-256 {SHA256}"):
        download(url, tmp_path / "model", sha256=SHA256, retries=retries)


def test_a_length_announced_too_long_ends_in_an_error_with_both_figures(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, *[Fault(announce=len(BODY) + 9)] * 9)
    with pytest.raises(DownloadFailed) as failure:
        download(url, tmp_path / "model", retries=retries)
    assert f"416 Requested Range Not Satisfiable: it has no bytes after {len(BODY):,}" in str(failure.value) or (
        f"Got {len(BODY):,} of {len(BODY) + 9:,} bytes" in str(failure.value)
    )


def test_more_bytes_than_expected_stop_the_transfer(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, *[Fault(chunked=True)] * 9)
    with pytest.raises(DownloadFailed, match="expected 1,000 bytes, the server sent more"):
        download(url, tmp_path / "model", size=1000, retries=retries)


def test_chunks_without_a_length_are_complete_at_their_end_mark(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(chunked=True, cut_after=HALF), Fault(chunked=True, ignore_range=True))
    seen: list[int | None] = []
    file = download(url, tmp_path / "model", progress=lambda _done, total: seen.append(total), retries=retries)
    assert file.sha256 == SHA256
    assert set(seen) == {None}


def test_an_end_that_cannot_be_told_from_a_break_needs_a_size_or_digest(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, *[Fault(until_close=True)] * 2)
    with pytest.raises(DownloadFailed, match=r"does not say how long the file is. Give its size or a digest"):
        download(url, tmp_path / "model", retries=retries)
    assert download(url, tmp_path / "model", sha256=SHA256, retries=retries).size == len(BODY)


def test_compression_nobody_asked_for_is_refused(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, *[Fault(headers={"Content-Encoding": "gzip"})] * 2)
    with pytest.raises(DownloadFailed, match="the server sent gzip though none was asked for"):
        download(url, tmp_path / "model", retries=retries)
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_a_server_error_is_tried_again_and_its_wish_to_wait_respected(
    server: BrokenServer, tmp_path: Path, retries: Retries, pauses: list[float]
) -> None:
    faults = [Fault(status=503, headers={"Retry-After": "7"}), Fault(status=429, headers={"Retry-After": "9999"})]
    url = server.serve("/model", BODY, *faults)
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert pauses == [7.0, 30.0]


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_refusal_is_final(
    server: BrokenServer, tmp_path: Path, retries: Retries, pauses: list[float], status: int
) -> None:
    url = server.serve("/model", BODY, Fault(status=status))
    with pytest.raises(DownloadFailed, match=f"answered {status} .*whether it needs a login"):
        download(url, tmp_path / "model", retries=retries)
    assert pauses == []


def test_an_unknown_address_is_final(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    with pytest.raises(DownloadFailed, match=f"Could not download {server.url}/nothing: the server answered 404"):
        download(f"{server.url}/nothing", tmp_path / "model", retries=retries)
    assert len(server.requests) == 1


def test_a_server_that_only_hangs_is_given_up(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, *[Fault(hang_after=0)] * 9)
    with pytest.raises(DownloadFailed, match="ReadTimeout"):
        download(url, tmp_path / "model", retries=replace(retries, timeout_s=0.1))


def test_nobody_listening_is_reported_with_the_address(tmp_path: Path, retries: Retries) -> None:
    with BrokenServer() as gone:
        url = gone.url + "/model"
    with pytest.raises(DownloadFailed, match=rf"{url}: ConnectError.*Got 0 of an unknown number of bytes"):
        download(url, tmp_path / "model", retries=retries)


def test_a_redirect_to_plain_http_elsewhere_is_not_followed(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(redirect="http://mirror.invalid/model"))
    with pytest.raises(DownloadFailed, match=r"redirects to http://mirror.invalid/model, which is not https"):
        download(url, tmp_path / "model", retries=retries)


def test_a_circle_of_redirects_is_final(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, *[Fault(redirect="/model")] * 50)
    with pytest.raises(DownloadFailed, match="redirects in a circle"):
        download(url, tmp_path / "model", retries=retries)


def test_a_finished_file_that_agrees_is_not_fetched_again(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY)
    (tmp_path / "model").write_bytes(BODY)
    assert download(url, tmp_path / "model", sha256=SHA256, retries=retries).sha256 == SHA256
    assert server.requests == []


def test_a_finished_file_that_disagrees_is_replaced(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY)
    (tmp_path / "model").write_bytes(b"other")
    assert download(url, tmp_path / "model", sha256=SHA256, retries=retries).path.read_bytes() == BODY


def test_a_disk_too_small_is_said_with_both_figures_before_anything_is_asked(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY)
    with pytest.raises(InsufficientSpace, match=r"needs 1,000,000,000,000,000,000 bytes in .*, where [\d,]+ are free"):
        download(url, tmp_path / "model", size=10**18, retries=retries)
    assert server.requests == []


def test_a_disk_too_small_for_what_the_server_announces_is_said_before_the_body(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(announce=10**18))
    with pytest.raises(InsufficientSpace, match="RAYZYME_HOME to a larger disk"):
        download(url, tmp_path / "model", retries=retries)
    assert not (tmp_path / "model.part").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux: /dev/full and /proc/self/fd")
def test_a_disk_that_fills_up_on_the_way_is_said(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY)

    def fill_the_disk(done: int, _total: int | None) -> None:
        # Another writer took the space after the check: from here on the part's descriptor leads to a full device.
        for descriptor in Path("/proc/self/fd").iterdir():
            if descriptor.exists() and descriptor.readlink() == tmp_path / "model.part":
                with Path("/dev/full").open("wb") as full:
                    os.dup2(full.fileno(), int(descriptor.name))
        assert done < len(BODY), "the file arrived in one block: the disk filled too late"

    with pytest.raises(InsufficientSpace, match=r"/model needs [\d,]+ bytes in .*, where [\d,]+ are free"):
        download(url, tmp_path / "model", progress=fill_the_disk, retries=retries)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/model", "plain http, which anyone on the way can alter; use https"),
        ("ftp://example.org/model", "cannot be fetched; use an https:// or file:// address"),
        ("model.ckpt", "cannot be fetched; use an https:// or file:// address"),
    ],
)
def test_other_kinds_of_addresses_are_refused(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        download(url, tmp_path / "model")


def test_a_file_address_is_copied_and_verified(tmp_path: Path) -> None:
    source = tmp_path / "with space.bin"
    source.write_bytes(BODY)
    assert download(source.as_uri(), tmp_path / "copy", sha256=SHA256).path.read_bytes() == BODY
    with pytest.raises(DownloadFailed, match="expected MD5 0000, got"):
        download(source.as_uri(), tmp_path / "again", md5="0000")
    with pytest.raises(DownloadFailed, match="there is no file at"):
        download((tmp_path / "absent").as_uri(), tmp_path / "third")
