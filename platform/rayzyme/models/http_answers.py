"""What an HTTP answer says about a file: which bytes of it follow, how many it has, and what proves it is the same file.

Faults come in three kinds, by what is to be done next: ask again, throw the bytes away, or give up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx


class ConnectionBroke(Exception):
    """The bytes so far are good; more are to be asked for, after `retry_after_s` seconds if the server wishes so."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class WrongBytes(Exception):
    """What was received, or is about to be, is not the file; it has to be thrown away."""


class Refused(Exception):
    """Asking again is of no use."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a good answer.

    Attributes:
        start: Position in the file of the body's first byte.
        total: Bytes of the whole file; None where the server does not say.
        validator: What the server calls this version of the file, where it promises the same bytes; else None.
        marks_its_end: A file that was cut off can be told from a whole one.
    """

    start: int
    total: int | None
    validator: str | None
    marks_its_end: bool


def read_answer(response: httpx.Response, asked_from: int) -> Answer:
    """Read the head of the answer to a request for a file's bytes from `asked_from` on.

    Raises:
        ConnectionBroke: The server is in trouble or asks for patience.
        WrongBytes: It answers with other bytes than those asked for.
        Refused: It does not give the file.
    """
    _check_status(response, asked_from)
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WrongBytes(f"the server sent {encoding} though none was asked for")
    if response.status_code == 206:
        part = response.headers.get("content-range", "no range")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", part)
        if match is None or int(match[1]) != asked_from:
            raise WrongBytes(f"asked for the bytes from {asked_from:,}, got {part!r}")
        total = None if match[2] == "*" else int(match[2])
        return Answer(asked_from, total, _validator(response), marks_its_end=total is not None)
    length = response.headers.get("content-length", "")
    marks_its_end = (
        length.isdigit()
        or "chunked" in response.headers.get("transfer-encoding", "")
        or response.http_version == "HTTP/2"
    )
    return Answer(0, int(length) if length.isdigit() else None, _validator(response), marks_its_end)


def _check_status(response: httpx.Response, asked_from: int) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    words = f"the server answered {status} {response.reason_phrase}"
    if status == 416:
        raise WrongBytes(f"{words}: it has no bytes after {asked_from:,}")
    if status in (408, 425, 429) or status >= 500:
        seconds = response.headers.get("retry-after", "")
        raise ConnectionBroke(words, float(seconds) if seconds.isdigit() else 0.0)
    raise Refused(f"{words}. Check the address and whether it needs a login")


def _validator(response: httpx.Response) -> str | None:
    # Only a strong validator promises the same bytes; RFC 9110 forbids a weak one in If-Range.
    etag: str | None = response.headers.get("etag")
    if etag is not None and not etag.startswith("W/"):
        return etag
    last_modified: str | None = response.headers.get("last-modified")
    return last_modified
