"""Downloads that break, hang or are killed: what is taken up again, and what is thrown away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.broken_http_server import BODY, HALF, MD5, SHA256, BrokenServer, Fault

from rayzyme.errors import DownloadFailed
from rayzyme.models.download import Retries, download


def test_a_broken_connection_is_resumed_where_it_broke(
    server: BrokenServer, tmp_path: Path, retries: Retries, pauses: list[float]
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=1000), Fault(cut_after=5000))
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, "bytes=1000-", "bytes=6000-"]
    assert [request.headers.get("if-range") for request in server.requests] == [None, '"v1"', '"v1"']
    assert pauses == [0.5, 0.5], "a connection that brings new bytes does not count as a failure in a row"


def test_pauses_double_and_the_error_says_how_far_it_came_and_how_to_go_on(
    server: BrokenServer, tmp_path: Path, retries: Retries, pauses: list[float]
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=1000), *[Fault(cut_after=0)] * 3)
    with pytest.raises(DownloadFailed) as failure:
        download(url, tmp_path / "model", retries=replace(retries, attempts=4))
    part = tmp_path / "model.part"
    assert url in str(failure.value)
    assert f"4 tries in a row without a new byte). Got 1,000 of {len(BODY):,} bytes, kept in {part}" in str(
        failure.value
    )
    assert "run the same command again to resume" in str(failure.value)
    assert pauses == [0.5, 1.0, 2.0]
    assert part.stat().st_size == 1000
    assert not (tmp_path / "model").exists()

    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model")[-1] == "bytes=1000-"


def test_a_server_that_ignores_ranges_makes_it_start_over(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), Fault(ignore_range=True))
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={HALF}-"]


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, *[Fault(cut_after=HALF, ignore_range=True)] * 9)
    with pytest.raises(DownloadFailed, match="3 tries in a row without a new byte"):
        download(url, tmp_path / "model", retries=retries)
    assert len(server.requests) == 3


def test_a_file_that_changed_between_two_parts_is_never_mixed(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    new = BODY[::-1]
    url = server.serve("/model", new, Fault(cut_after=HALF, body=BODY, etag='"old"'), etag='"new"')
    assert download(url, tmp_path / "model", retries=retries).path.read_bytes() == new
    assert server.ranges("/model") == [None, f"bytes={HALF}-"]


def test_a_changed_file_is_noticed_even_where_the_server_ignores_if_range(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    new = BODY[::-1]
    url = server.serve(
        "/model", new, Fault(cut_after=HALF, body=BODY, etag='"old"'), Fault(ignore_if_range=True), etag='"new"'
    )
    assert download(url, tmp_path / "model", retries=retries).path.read_bytes() == new
    assert server.ranges("/model") == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("shift", [-7, 7])
def test_a_part_that_starts_elsewhere_than_asked_is_thrown_away(
    server: BrokenServer, tmp_path: Path, retries: Retries, shift: int
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), Fault(shift_range=shift))
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={HALF}-", None]


def test_without_validator_and_digest_two_halves_are_not_put_together(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), etag=None)
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, None]


def test_a_known_digest_allows_resuming_without_a_validator(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), etag=None)
    assert download(url, tmp_path / "model", md5=MD5, retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={HALF}-"]


def test_what_could_not_be_resumed_is_thrown_away_and_the_error_does_not_promise_to_resume(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), etag=None)
    with pytest.raises(DownloadFailed) as failure:
        download(url, tmp_path / "model", retries=replace(retries, attempts=1))
    assert str(failure.value).endswith(
        f"Got {HALF:,} of {len(BODY):,} bytes and threw them away, because neither a validator from the server nor a "
        "known digest could prove that a rest belongs to them: run the same command again to start over, or give the "
        "file's digest."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, None]


def test_where_nothing_arrived_there_is_nothing_to_resume(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, *[Fault(cut_after=0)] * 3)
    with pytest.raises(DownloadFailed, match=rf"Got 0 of {len(BODY):,} bytes: run the same command again later\.$"):
        download(url, tmp_path / "model", retries=retries)


def test_a_part_of_a_file_of_unknown_length_is_not_taken_for_its_end(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    fault = Fault(content_range=f"bytes {HALF}-{len(BODY) - 2}/*", body=BODY[:-1])
    url = server.serve("/model", BODY, Fault(cut_after=HALF), fault)
    with pytest.raises(DownloadFailed, match="does not say how long the file is"):
        download(url, tmp_path / "model", retries=retries)
    assert not (tmp_path / "model").exists()


def test_a_weak_validator_is_not_taken_as_proof(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF), etag='W/"v1"')
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, None]


def test_a_part_that_is_longer_than_the_server_s_file_is_started_over(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF))
    with pytest.raises(DownloadFailed):
        download(url, tmp_path / "model", retries=replace(retries, attempts=1))
    (tmp_path / "model.part").write_bytes(BODY + b"tail")
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={len(BODY) + 4}-", None]


def test_silence_counts_as_a_broken_connection(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    url = server.serve("/model", BODY, Fault(hang_after=HALF))
    assert download(url, tmp_path / "model", retries=replace(retries, timeout_s=0.2)).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={HALF}-"]


def test_redirects_are_followed_also_when_resuming(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    target = server.serve("/store", BODY, Fault(cut_after=HALF))
    url = server.serve("/model", b"", Fault(redirect=target), Fault(redirect=target))
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/store") == [None, f"bytes={HALF}-"]


def test_a_complete_part_of_a_killed_run_is_verified_and_published_without_asking(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF))
    with pytest.raises(DownloadFailed):
        download(url, tmp_path / "model", size=len(BODY), retries=replace(retries, attempts=1))
    (tmp_path / "model.part").write_bytes(BODY)
    assert download(url, tmp_path / "model", size=len(BODY), sha256=SHA256, retries=retries).sha256 == SHA256
    assert len(server.requests) == 1


def test_a_part_longer_than_the_known_size_is_not_even_asked_about(
    server: BrokenServer, tmp_path: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(cut_after=HALF))
    with pytest.raises(DownloadFailed):
        download(url, tmp_path / "model", size=len(BODY), retries=replace(retries, attempts=1))
    (tmp_path / "model.part").write_bytes(BODY + b"tail")
    assert download(url, tmp_path / "model", size=len(BODY), retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, None]


def test_a_part_from_another_address_is_not_continued(server: BrokenServer, tmp_path: Path, retries: Retries) -> None:
    other = server.serve("/other", BODY[::-1], Fault(cut_after=HALF))
    with pytest.raises(DownloadFailed):
        download(other, tmp_path / "model", retries=replace(retries, attempts=1))
    url = server.serve("/model", BODY)
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None]


_CHILD = textwrap.dedent(
    """
    import logging, sys
    from pathlib import Path
    from rayzyme.models.download import download

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def progress(done, total):
        sys.stdout.write(f"{done}\\n")
        sys.stdout.flush()

    file = download(sys.argv[1], Path(sys.argv[2]), progress=progress)
    sys.stdout.write(f"finished {file.sha256}\\n")
    """
)


def _start_download(url: str, destination: Path, repository: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(repository / "platform"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, url, str(destination)], stdout=subprocess.PIPE, text=True, env=environment
    )


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the process ended without saying {words!r}")


def test_two_processes_that_want_one_file_download_it_once(
    server: BrokenServer, tmp_path: Path, repository: Path
) -> None:
    release = threading.Event()
    url = server.serve("/model", BODY, Fault(hang_after=HALF, release=release))
    with _start_download(url, tmp_path / "model", repository) as first:
        server.wait_for_requests(1)
        with _start_download(url, tmp_path / "model", repository) as second:
            _read_until(second, "waiting for another process that works on")
            release.set()
            assert SHA256 in _read_until(first, "finished")
            assert SHA256 in _read_until(second, "finished")
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.requests) == 1


def test_a_killed_download_is_resumed_by_the_next_one(
    server: BrokenServer, tmp_path: Path, repository: Path, retries: Retries
) -> None:
    url = server.serve("/model", BODY, Fault(hang_after=HALF))
    with _start_download(url, tmp_path / "model", repository) as process:
        _read_until(process, str(HALF))
        process.send_signal(signal.SIGKILL)
    kept = (tmp_path / "model.part").stat().st_size
    assert 0 < kept <= HALF
    assert not (tmp_path / "model").exists()
    assert download(url, tmp_path / "model", retries=retries).sha256 == SHA256
    assert server.ranges("/model") == [None, f"bytes={kept}-"]
