"""Fetching large files over connections that break.

What is found at a destination is complete and verified: bytes gather in `<destination>.part`, and move into place in
one step after size and digests were checked. A later run resumes the part where it can be proven that the rest belongs
to it. One process at a time works on a destination; others wait and take the finished file.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import unquote, urlsplit

import httpx

from rayzyme import __version__
from rayzyme.errors import DownloadFailed, InvalidInput
from rayzyme.models.http_answers import Answer, ConnectionBroke, Refused, WrongBytes, read_answer
from rayzyme.storage.disk import flush_to_disk, require_space, sole_owner, writing

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk and the bytes in total (None while unknown). Falls back when a download starts over."""

_BLOCK: Final = 1 << 20
_FRESH_STARTS: Final = 1  # wrong bytes are fetched again once: a proxy may have mangled them, but 2.4 GB are not a toy


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A complete file on disk.

    Attributes:
        path: Where it is.
        size: Bytes.
        sha256: Hexadecimal digest of those bytes.
        md5: Hexadecimal digest of those bytes.
    """

    path: Path
    size: int
    sha256: str
    md5: str


@dataclass(frozen=True, slots=True)
class Retries:
    """How patiently a broken connection is taken up again.

    Attributes:
        attempts: Tries in a row that bring no new byte before giving up; every new byte starts the count again.
        first_pause_s: Seconds before the second try; doubles with each further one.
        longest_pause_s: Longest pause in seconds, also where the server asks for more (Retry-After).
        timeout_s: Seconds of silence after which a connection counts as broken.
        sleep: Does the waiting.
    """

    attempts: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    timeout_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int, retry_after_s: float = 0.0) -> None:
        """Wait before the try that follows `failures` failed ones."""
        self.sleep(min(max(self.first_pause_s * 2 ** (failures - 1), retry_after_s), self.longest_pause_s))


DEFAULT_RETRIES: Final = Retries()


@dataclass(frozen=True, slots=True)
class _Expected:
    size: int | None
    md5: str | None
    sha256: str | None

    @property
    def has_digest(self) -> bool:
        return self.md5 is not None or self.sha256 is not None

    def fault_in(self, file: DownloadedFile) -> str | None:
        if self.size is not None and file.size != self.size:
            return f"expected {self.size:,} bytes, got {file.size:,}"
        if self.sha256 is not None and file.sha256 != self.sha256.lower():
            return f"expected SHA-256 {self.sha256.lower()}, got {file.sha256}"
        if self.md5 is not None and file.md5 != self.md5.lower():
            return f"expected MD5 {self.md5.lower()}, got {file.md5}"
        return None


def download(
    url: str,
    destination: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    retries: Retries = DEFAULT_RETRIES,
) -> DownloadedFile:
    """Fetch a file completely and correctly, or say why not.

    A `.part` file left by a broken or killed run is resumed where the server's validator (ETag, Last-Modified) or a
    given digest can prove that the rest belongs to it. A file already at the destination that agrees with `size`, `md5`
    and `sha256` is taken as it is; without any of these that is every file.

    Args:
        url: `https://`, `file://`, or `http://` on this machine's loopback.
        destination: Path of the finished file; its folder is made. `.part`, `.part.json` and `.lock` appear beside it.
        size: Bytes the file must have.
        md5: Hexadecimal digest it must have.
        sha256: Hexadecimal digest it must have.
        progress: Told about every block received.
        retries: Patience.

    Raises:
        DownloadFailed: The message names the URL, what was expected and got, and what to do.
        InsufficientSpace: The disk cannot hold the file; said before the transfer where the size is known.
        InvalidInput: The URL is of a kind that is not fetched.
    """
    check_url(url)
    expected = _Expected(size, md5, sha256)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with sole_owner(destination):
        if destination.is_file():
            present = file_digests(destination)
            if expected.fault_in(present) is None:
                return present
        transfer = _Transfer(url, destination, expected, progress or (lambda _done, _total: None), retries)
        return transfer.run()


def check_url(url: str) -> None:
    """Refuse addresses that are not fetched.

    Raises:
        InvalidInput: Neither https, file, nor http on loopback.
    """
    parts = urlsplit(url)
    if parts.scheme in ("https", "file") or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    if parts.scheme == "http":
        raise InvalidInput(f"{url} is plain http, which anyone on the way can alter; use https.")
    raise InvalidInput(f"{url} cannot be fetched; use an https:// or file:// address.")


def file_digests(path: Path) -> DownloadedFile:
    """Size, SHA-256 and MD5 of a file, read once."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return DownloadedFile(path, size, sha256.hexdigest(), md5.hexdigest())


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


class _Transfer:
    """One file on its way from one URL to one destination."""

    def __init__(self, url: str, destination: Path, expected: _Expected, progress: Progress, retries: Retries) -> None:
        self._url = url
        self._destination = destination
        self._part = _beside(destination, ".part")
        self._origin = _beside(destination, ".part.json")
        self._expected = expected
        self._total = expected.size
        self._progress = progress
        self._retries = retries

    def run(self) -> DownloadedFile:
        self._require_space()
        is_file = urlsplit(self._url).scheme == "file"
        fresh_starts = 0 if is_file else _FRESH_STARTS
        failures, furthest = 0, self._done
        while True:
            retry_after_s = 0.0
            try:
                if is_file:
                    self._copy()
                elif self._expected.size is None or self._resumable() != self._expected.size:
                    self._ask()
                return self._publish()
            except Refused as refused:
                self._give_up(str(refused))
            except WrongBytes as wrong:
                self._discard()
                if fresh_starts == 0:
                    self._give_up(
                        f"{wrong}. The bytes were thrown away. The source serves another file than expected: "
                        "check the address and the configured size and digests"
                    )
                fresh_starts -= 1
                failures, furthest = 1, 0
                reason = str(wrong)
            except ConnectionBroke as broken:
                failures = 1 if self._done > furthest else failures + 1
                furthest, retry_after_s = max(furthest, self._done), broken.retry_after_s
                if failures >= self._retries.attempts:
                    self._give_up(f"{broken} ({failures} tries in a row without a new byte). {self._what_was_kept()}")
                reason = str(broken)
            logger.warning("download of %s: %s; trying again from byte %d", self._url, reason, self._resumable())
            self._retries.pause(failures, retry_after_s)

    def _ask(self) -> None:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"rayzyme/{__version__}"}
        have = self._resumable()
        if have:
            headers["Range"] = f"bytes={have}-"
            validator = self._known_origin().get("validator")
            if validator:
                headers["If-Range"] = validator
        # A proxy from the environment has no business with this machine's own loopback.
        trust_environment = not _is_loopback(urlsplit(self._url).hostname)
        try:
            with (
                httpx.Client(
                    follow_redirects=True,
                    timeout=self._retries.timeout_s,
                    trust_env=trust_environment,
                    event_hooks={"request": [self._refuse_insecure]},
                ) as client,
                client.stream("GET", self._url, headers=headers) as response,
            ):
                answer = read_answer(response, have)
                self._accept(answer)
                self._receive(response, answer.start)
        except httpx.TransportError as error:
            raise ConnectionBroke(f"{type(error).__name__}: {error}") from error
        except httpx.TooManyRedirects as error:
            raise Refused("it redirects in a circle. Check the address") from error

    def _refuse_insecure(self, request: httpx.Request) -> None:
        loopback_http = _is_loopback(urlsplit(self._url).hostname) and _is_loopback(request.url.host)
        if request.url.scheme != "https" and not loopback_http:
            raise Refused(f"it redirects to {request.url}, which is not https. Ask its owner for an https address")

    def _accept(self, answer: Answer) -> None:
        """Check that the body belongs to the file, and note what it is part of before its first byte is written."""
        known = self._known_origin().get("validator")
        if answer.start and known and answer.validator not in (None, known):
            raise WrongBytes("the file changed on the server between two parts of the download")
        if None not in (answer.total, self._expected.size) and answer.total != self._expected.size:
            raise WrongBytes(f"expected {self._expected.size:,} bytes, the server announces {answer.total:,}")
        if self._expected.size is None:
            if not self._expected.has_digest and not answer.marks_its_end:
                raise Refused("the server does not say how long the file is. Give its size or a digest to check it by")
            self._total = answer.total
        if answer.start == 0:
            self._discard()
        self._require_space()
        origin = {"url": self._url, "validator": answer.validator}
        self._origin.write_text(json.dumps(origin), encoding="utf-8")

    def _receive(self, response: httpx.Response, start: int) -> None:
        done = start
        with self._part.open("ab", buffering=0) as part:
            for block in response.iter_raw():
                if self._total is not None and done + len(block) > self._total:
                    raise WrongBytes(f"expected {self._total:,} bytes, the server sent more")
                done = self._write(part, done, block)
        if self._total is not None and done < self._total:
            raise ConnectionBroke(f"the server ended the file after {done:,} of {self._total:,} bytes")

    def _copy(self) -> None:
        source = Path(unquote(urlsplit(self._url).path))
        if not source.is_file():
            raise Refused(f"there is no file at {source}. Check the address")
        self._discard()
        self._total = source.stat().st_size
        self._require_space()
        done = 0
        with source.open("rb") as stream, self._part.open("wb", buffering=0) as part:
            while block := stream.read(_BLOCK):
                done = self._write(part, done, block)

    def _write(self, part: FileIO, done: int, block: bytes) -> int:
        # Unbuffered, so that a killed run keeps every byte it reported; such a write may take only a part.
        rest = memoryview(block)
        with writing(self._url, self._destination.parent, max((self._total or 0) - done, len(block))):
            while rest:
                rest = rest[part.write(rest) :]
        done += len(block)
        self._progress(done, self._total)
        return done

    def _publish(self) -> DownloadedFile:
        self._part.touch()  # a file of no bytes has no part yet
        received = file_digests(self._part)
        fault = self._expected.fault_in(received)
        if fault is not None:
            raise WrongBytes(fault)
        flush_to_disk(self._part)
        self._part.replace(self._destination)
        flush_to_disk(self._destination.parent)
        self._origin.unlink(missing_ok=True)
        return replace(received, path=self._destination)

    @property
    def _done(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _known_origin(self) -> dict[str, str | None]:
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return origin if isinstance(origin, dict) and origin.get("url") == self._url else {}

    def _resumable(self) -> int:
        """Bytes that the rest can be added to: 0 where nothing could prove that the two halves belong together."""
        origin = self._known_origin()
        provable = origin and (origin.get("validator") or self._expected.has_digest)
        if not provable or (self._expected.size is not None and self._done > self._expected.size):
            self._discard()
        return self._done

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def _what_was_kept(self) -> str:
        done = self._done
        got = f"Got {done:,} of {'an unknown number of' if self._total is None else f'{self._total:,}'} bytes"
        if done == 0:
            return f"{got}: run the same command again later"
        if self._resumable():
            return f"{got}, kept in {self._part}: run the same command again to resume"
        return (
            f"{got} and threw them away, because neither a validator from the server nor a known digest could prove that "
            "a rest belongs to them: run the same command again to start over, or give the file's digest"
        )

    def _require_space(self) -> None:
        if self._total is not None:
            require_space(self._url, self._destination.parent, self._total - self._done)

    def _give_up(self, reason: str) -> NoReturn:
        raise DownloadFailed(f"Could not download {self._url}: {reason}.")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
