"""A real HTTP server on loopback that misbehaves as told, for tests of downloads.

Each file it serves has a script of faults: the first request meets the first fault, and so on; once the script is used
up the server behaves (ranges, validators, lengths). Every request is recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

BODY = bytes(range(256)) * 4096
"""A megabyte to serve."""
HALF = len(BODY) // 2
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; the fields combine.

    Attributes:
        cut_after: Close the connection after this many bytes of the body.
        announce: Content-Length to claim, whatever is sent.
        ignore_range: Answer 200 with everything, even to a range request.
        ignore_if_range: Answer 206 although the validator does not fit.
        shift_range: Answer 206 with a part that starts this many bytes away from the one asked for.
        content_range: Claim this Content-Range for a part, whatever is sent.
        body: Serve these bytes instead.
        etag: Claim this validator.
        status: Answer with this status and no body.
        headers: Add these.
        redirect: Answer 302 to this address.
        chunked: Send without a length, in chunks.
        until_close: Send neither length nor chunks: the end is where the connection closes.
        hang_after: Send this many bytes and then nothing more until the server is closed or `release` is set.
        release: Ends the hanging; the rest of the body follows.
    """

    cut_after: int | None = None
    announce: int | None = None
    ignore_range: bool = False
    ignore_if_range: bool = False
    shift_range: int = 0
    content_range: str | None = None
    body: bytes | None = None
    etag: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    redirect: str | None = None
    chunked: bool = False
    until_close: bool = False
    hang_after: int | None = None
    release: threading.Event | None = None


@dataclass
class ServedFile:
    """A file on the server.

    Attributes:
        body: Its bytes.
        etag: Its validator; None serves none.
        faults: What the next requests meet, in order.
    """

    body: bytes
    etag: str | None
    faults: list[Fault]


@dataclass(frozen=True)
class Request:
    """A request that arrived."""

    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class BrokenServer:
    """The server. Use as a context manager.

    Attributes:
        files: Served files by path.
        requests: Every request so far, in order of arrival.
    """

    def __init__(self) -> None:
        self.files: dict[str, ServedFile] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._arrived = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def serve(self, path: str, body: bytes, *faults: Fault, etag: str | None = '"v1"') -> str:
        """Serve a file; returns its address."""
        self.files[path] = ServedFile(body, etag, list(faults))
        return self.url + path

    def serve_record(self, record: int, files: Mapping[str, bytes], *, wrong_md5: bool = False) -> str:
        """Serve a Zenodo-like record: its metadata under /api/records/N and its files; returns the API's address."""
        entries = []
        for key, body in files.items():
            link = self.serve(f"/api/records/{record}/files/{key}/content", body)
            md5 = hashlib.md5(b"another" if wrong_md5 else body).hexdigest()
            entries.append({"key": key, "size": len(body), "checksum": f"md5:{md5}", "links": {"self": link}})
        self.serve(f"/api/records/{record}", json.dumps({"id": record, "files": entries}).encode())
        return f"{self.url}/api"

    def wait_for_requests(self, count: int, timeout: float = 20) -> None:
        """Block until that many requests have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, timeout), self.requests

    def record(self, request: Request) -> None:
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every request for a path."""
        return [request.range for request in self.requests if request.path == path]

    def __enter__(self) -> BrokenServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


def _handler_of(server: BrokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.record(Request(self.path, {name.lower(): value for name, value in self.headers.items()}))
            file = server.files.get(self.path)
            self.close_connection = True
            if file is None:
                self._status(404, {})
                return
            fault = file.faults.pop(0) if file.faults else Fault()
            if fault.redirect is not None:
                self._status(302, {"Location": fault.redirect, **fault.headers})
            elif fault.status is not None:
                self._status(fault.status, fault.headers)
            else:
                self._serve(file, fault)

        def _serve(self, file: ServedFile, fault: Fault) -> None:
            body = file.body if fault.body is None else fault.body
            etag = file.etag if fault.etag is None else fault.etag
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            validator = self.headers.get("If-Range")
            start = int(asked[1]) if asked and not fault.ignore_range else 0
            if asked and validator not in (None, etag) and not fault.ignore_if_range:
                start, asked = 0, None
            if start and start >= len(body):
                self._status(416, {"Content-Range": f"bytes */{len(body)}"})
                return
            part = bool(asked) and not fault.ignore_range
            start += fault.shift_range if part else 0
            rest = body[start:]
            self.send_response(206 if part else 200)
            if part:
                sent = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.send_header("Content-Range", fault.content_range or sent)
            if etag is not None:
                self.send_header("ETag", etag)
            if fault.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif not fault.until_close:
                self.send_header("Content-Length", str(len(rest) if fault.announce is None else fault.announce))
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self._send(rest, fault)

        def _send(self, rest: bytes, fault: Fault) -> None:
            if fault.hang_after is not None:
                self._write(rest[: fault.hang_after], fault)
                rest = rest[fault.hang_after :]
                while not server.closing.is_set() and not (fault.release and fault.release.wait(0.01)):
                    server.closing.wait(0.01)
                if server.closing.is_set():
                    return
            self._write(rest if fault.cut_after is None else rest[: fault.cut_after], fault)
            if fault.chunked and fault.cut_after is None:
                self._raw(b"0\r\n\r\n")

        def _write(self, block: bytes, fault: Fault) -> None:
            self._raw(b"%x\r\n%b\r\n" % (len(block), block) if fault.chunked and block else block)

        def _raw(self, block: bytes) -> None:
            try:
                self.wfile.write(block)
                self.wfile.flush()
            except ConnectionError:
                self.close_connection = True

        def _status(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet: the tests read `requests`."""

    return Handler
