"""Who gets in over HTTP, and what surrounds every request: limits, headers, numbers, log lines, measurements."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import event, select
from tests.support.api_client import ApiClient, pieces
from tests.support.timing import Clock

from rayzyme.access import Caller, Role, TokenStore
from rayzyme.database import Database, open_database
from rayzyme.database.tables import JobEvent
from rayzyme.errors import DatabaseError, ValidationError
from rayzyme.monitoring import get_metrics_collector
from rayzyme.settings import Settings, load_settings
from rayzyme_serve import access, faults
from rayzyme_serve.api import create_api


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def database() -> Iterator[Database]:
    with closing(open_database()) as opened:
        yield opened


@pytest.fixture
def tokens(database: Database) -> TokenStore:
    return TokenStore(database)


Start = Callable[..., FastAPI]


@pytest.fixture
def start(database: Database, clock: Clock) -> Start:
    """Gives an application of few routes, with the settings of `serve` that are named."""

    def started(**serve: Any) -> FastAPI:
        api = FastAPI()
        api.state.service = SimpleNamespace(store=SimpleNamespace(database=database))

        @api.get("/who/{number}")
        async def who(number: int, caller: Annotated[Caller, Depends(access.require(Role.VIEWER))]) -> dict[str, str]:
            return {"name": caller.name, "owner": caller.owner, "role": caller.role}

        @api.post("/change")
        async def change(body: Body, caller: Annotated[Caller, Depends(access.require(Role.USER))]) -> int:
            return len(body.text)

        @api.get("/everything")
        def everything(caller: Annotated[Caller, Depends(access.require(Role.ADMIN))]) -> str:
            return caller.name

        @api.get("/broken")
        def broken() -> None:
            logging.getLogger("rayzyme_serve.test").warning("about to break")
            raise RuntimeError("a secret of the inside")

        @api.get("/events")
        async def events(request: Request) -> StreamingResponse:
            return StreamingResponse(_ticks(request), media_type="text/event-stream")

        faults.install(api)
        access.install(api, load_settings(overrides={"serve": serve}), clock)
        return api

    return started


class Body(BaseModel):
    text: str


async def _ticks(request: Request) -> AsyncIterator[str]:
    request.app.state.ended = False
    try:
        for number in range(10_000):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0)
    finally:
        request.app.state.ended = True


def refusals(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(JobEvent).where(JobEvent.subject == "access").order_by(JobEvent.seq)))


# Without tokens


def test_on_loopback_without_any_token_everybody_is_let_in(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4"""
    monkeypatch.setenv("LOGNAME", "alice")
    answer = ApiClient(start()).get("/who/1")
    assert (answer.status_code, answer.json()) == (200, {"name": "local", "owner": "alice", "role": "admin"})


@pytest.mark.parametrize("auth", ["auto", "open"])
@pytest.mark.parametrize(
    ("caller", "told"),
    [
        ({"address": "10.0.0.7"}, "only its own machine"),
        ({"address": "testclient"}, "only its own machine"),
        ({"headers": {"X-Forwarded-For": "10.0.0.7"}}, "only its own machine"),
        ({"base_url": "http://attacker.example:8000"}, "attacker.example"),
        ({"base_url": "http://127.0.0.1.attacker.example"}, "attacker.example"),
        ({"headers": {"Host": ""}}, "only as localhost"),
        ({"headers": {"Host": "[::1"}}, "only as localhost"),
        ({"headers": {"Sec-Fetch-Site": "cross-site"}}, "another origin"),
        ({"headers": {"Sec-Fetch-Site": "same-site"}}, "another origin"),
        ({"headers": {"Origin": "http://attacker.example"}}, "another origin"),
        ({"headers": {"Origin": "http://127.0.0.1:3000"}}, "another origin"),
        ({"headers": {"Origin": "null"}}, "another origin"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_open_doors_are_closed_to_others_and_to_pages_of_others(
    start: Start, auth: str, caller: dict[str, Any], told: str, method: str
) -> None:
    client = ApiClient(start(auth=auth), **caller)
    answer = client.get("/who/1") if method == "GET" else client.post("/change", json={"text": "x"})
    assert answer.status_code == 403
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(
    "caller",
    [
        {"base_url": "http://localhost:8000"},
        {"base_url": "http://[::1]:8000", "address": "::1"},
        {"headers": {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}},
        {"headers": {"Sec-Fetch-Site": "none"}},
    ],
)
def test_open_doors_are_open_to_programs_and_to_the_page_itself(start: Start, caller: dict[str, Any]) -> None:
    assert ApiClient(start(), **caller).post("/change", json={"text": "abc"}).json() == 3


def test_the_first_token_closes_the_doors_and_revoking_it_does_not_open_them(
    start: Start, tokens: TokenStore, clock: Clock
) -> None:
    """P4"""
    client = ApiClient(start())
    assert client.get("/who/1").status_code == 200
    tokens.create("laptop", "alice")
    clock.now += access.REMEMBERED_S
    assert client.get("/who/1").status_code == 401
    tokens.revoke("laptop")
    clock.now += 3600
    assert client.get("/who/1").status_code == 401


@pytest.mark.parametrize("serve", [{"auth": "tokens"}, {"host": "0.0.0.0"}, {"host": "0.0.0.0", "auth": "open"}])
def test_beyond_loopback_and_where_tokens_are_asked_for_nobody_gets_in_without_one(
    start: Start, serve: dict[str, str]
) -> None:
    """P4"""
    assert ApiClient(start(**serve)).get("/who/1").status_code == 401


# With tokens


def test_a_token_tells_who_asks(start: Start, tokens: TokenStore) -> None:
    """P4, P7"""
    _, secret = tokens.create("laptop", "alice", Role.VIEWER)
    client = ApiClient(start(), secret, address="10.0.0.7", base_url="https://rayzyme.example")
    assert client.get("/who/1").json() == {"name": "laptop", "owner": "alice", "role": "viewer"}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Bearer rzt_" + "a" * 40, "Basic {}", "{}"])
def test_without_a_known_token_it_is_401(start: Start, tokens: TokenStore, header: str) -> None:
    """P2, P4"""
    _, secret = tokens.create("laptop", "alice", Role.ADMIN)
    answer = ApiClient(start()).get("/who/1", headers={"Authorization": header.format(secret)})
    assert (answer.status_code, answer.json()["code"]) == (401, "NotIdentified")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("role", "statuses"),
    [(Role.VIEWER, [200, 403, 403]), (Role.USER, [200, 200, 403]), (Role.ADMIN, [200, 200, 200])],
)
def test_a_role_that_is_too_small_is_403(start: Start, tokens: TokenStore, role: Role, statuses: list[int]) -> None:
    """P4, D74"""
    _, secret = tokens.create("laptop", "alice", role)
    client = ApiClient(start(), secret)
    answers = [client.get("/who/1"), client.post("/change", json={"text": ""}), client.get("/everything")]
    assert [answer.status_code for answer in answers] == statuses
    assert all(role in answer.json()["detail"] for answer in answers if answer.status_code == 403)


def test_a_revocation_counts_within_five_seconds_and_until_then_the_database_is_left_alone(
    start: Start, tokens: TokenStore, database: Database, clock: Clock
) -> None:
    """D74"""
    _, secret = tokens.create("laptop", "alice")
    client = ApiClient(start(auth="tokens"), secret)
    assert client.get("/who/1").status_code == 200
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    tokens.revoke("laptop")
    statements.clear()
    clock.now += access.REMEMBERED_S - 0.1
    assert client.get("/who/1").status_code == 200
    assert statements == []
    clock.now += 0.1
    assert client.get("/who/1").status_code == 401


def test_many_who_come_at_once_with_a_token_are_one_question_to_the_database(
    start: Start, tokens: TokenStore, database: Database
) -> None:
    _, secret = tokens.create("laptop", "alice")
    doorkeeper: access.Doorkeeper = start(auth="tokens").state.doorkeeper
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))

    async def ask() -> list[Caller]:
        request: Any = SimpleNamespace(client=None, state=SimpleNamespace())
        return await asyncio.gather(*(doorkeeper.let_in(request, secret, Role.USER) for _ in range(50)))

    assert asyncio.run(ask()) == [Caller("laptop", "alice", Role.USER)] * 50
    assert sum(statement.startswith("SELECT") for statement in statements) == 1


def test_a_database_that_cannot_be_asked_lets_nobody_in(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: TokenStore, *_: str) -> None:
        raise DatabaseError("the database is gone")

    monkeypatch.setattr(TokenStore, "find", gone)
    monkeypatch.setattr(TokenStore, "any", gone)
    for auth in ("auto", "tokens"):
        answer = ApiClient(start(auth=auth), "rzt_" + "a" * 40).get("/who/1")
        assert (answer.status_code, answer.json()["code"]) == (503, "DatabaseError")


# Limits


def test_each_token_has_a_rate_of_its_own(start: Start, tokens: TokenStore, clock: Clock) -> None:
    """P2"""
    api = start(requests_per_minute=2)
    alice, bob = (ApiClient(api, tokens.create(name, name)[1]) for name in ("alice", "bob"))
    assert [alice.get("/who/1").status_code for _ in range(3)] == [200, 200, 429]
    assert bob.get("/who/1").status_code == 200
    clock.now += 12
    refused = alice.get("/who/1")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "18")
    clock.now += 18
    assert alice.get("/who/1").status_code == 200


def test_without_tokens_the_rate_is_that_of_an_address(start: Start) -> None:
    api = start(requests_per_minute=1)
    statuses = [ApiClient(api, address=a).get("/who/1").status_code for a in ("127.0.0.1", "127.0.0.1", "127.0.0.2")]
    assert statuses == [200, 429, 200]


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_413(start: Start, told: bool) -> None:
    """P6"""
    client = ApiClient(start())
    fits, large = (json.dumps({"text": "x" * (2**20 - 12 + more)}).encode() for more in (0, 1))
    assert (len(fits), len(large)) == (2**20, 2**20 + 1)
    headers = {"Content-Type": "application/json"}
    for body, status in ((fits, 200), (large, 413)):
        content = body if told else pieces(body[:1000], body[1000:])
        answer = client.post("/change", content=content, headers=headers)
        assert answer.status_code == status
    assert (answer.json()["code"], "1,048,576" in answer.json()["detail"]) == ("TooLarge", True)


def test_of_a_body_that_tells_its_length_nothing_is_read(start: Start) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    scope = {
        "type": "http", "method": "POST", "path": "/change", "query_string": b"",
        "headers": [(b"content-length", b"9" * 30), (b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1),
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(start()(scope, receive, send))
    assert sent[0]["status"] == 413


# The audit log


def test_refusals_are_in_the_audit_log_but_a_flood_of_them_is_not(
    start: Start, tokens: TokenStore, database: Database, clock: Clock
) -> None:
    """D74"""
    _, secret = tokens.create("laptop", "alice", Role.VIEWER)
    api = start()
    for _ in range(20):
        ApiClient(api, "wrong", address="10.0.0.7").get("/who/1", headers={"X-Request-ID": "first"})
        ApiClient(api, secret).get("/everything")
    unknown, too_small = refusals(database)
    assert (unknown.actor, unknown.to_state) == ("10.0.0.7", "refused")
    assert unknown.data == {"address": "10.0.0.7", "method": "GET", "path": "/who/1", "request_id": "first"}
    assert (too_small.actor, "role viewer" in too_small.reason) == ("laptop", True)
    clock.now += 60
    ApiClient(api, "wrong", address="10.0.0.7").get("/who/1")
    assert len(refusals(database)) == 3


def test_a_refusal_that_cannot_be_noted_is_a_refusal_all_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(access, "note_refusal", full)
    monkeypatch.setattr(logging.getLogger("rayzyme_serve"), "propagate", True)
    assert ApiClient(start(auth="tokens")).get("/who/1").status_code == 401
    assert "the disk is full" in caplog.text


# What surrounds a request


@pytest.mark.parametrize("path", ["/who/1", "/who/x", "/nowhere", "/broken", "/docs", "/openapi.json"])
def test_every_answer_has_the_headers_that_browsers_heed(start: Start, path: str) -> None:
    headers = ApiClient(start()).get(path, headers={"X-Request-ID": "abc-1"}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert ("'unsafe-inline'" in headers["Content-Security-Policy"]) == (path == "/docs")
    assert headers["Cache-Control"] == "no-store"
    assert headers.get_list("X-Request-ID") == ["abc-1"]


@pytest.mark.parametrize("given", ["", "a b", "a\u00e9", "x" * 129, "<script>"])
def test_a_request_without_a_sane_number_gets_one(start: Start, given: str) -> None:
    client = ApiClient(start())
    first, second = (client.get("/who/1", headers={"X-Request-ID": given.encode()}) for _ in range(2))  # type: ignore[dict-item]
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert len(first.headers["X-Request-ID"]) == 32


def test_an_incident_is_told_without_what_is_inside_and_logged_with_the_number_of_the_request(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """P2"""
    lines = logged(lambda: ApiClient(start()).get("/broken", headers={"X-Request-ID": "abc"}), capsys)
    assert {line["request_id"] for line in lines} == {"abc"}
    assert [line["level"] for line in lines] == ["WARNING", "ERROR", "INFO"]
    assert "a secret of the inside" in lines[1]["exception"]


def logged(work: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines that `work` logs, as JSON."""
    from rayzyme.monitoring import configure_logging

    capsys.readouterr()
    configure_logging("INFO", structured=True)
    try:
        answer = work()
    finally:
        configure_logging(console=False)
    assert "a secret of the inside" not in answer.text
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_request_is_a_log_line_without_token_or_query(
    start: Start, tokens: TokenStore, capsys: pytest.CaptureFixture[str]
) -> None:
    _, secret = tokens.create("laptop", "alice")
    client = ApiClient(start(), secret, address="10.0.0.7")
    (line,) = logged(lambda: client.get("/who/1?key=hidden", headers={"X-Request-ID": "abc"}), capsys)
    assert line["message"] == "GET /who/1 200"
    assert (line["route"], line["status"], line["caller"]) == ("/who/{number}", 200, "laptop")
    assert (line["client"], line["request_id"]) == ("10.0.0.7", "abc")
    assert line["seconds"] >= 0
    assert secret not in str(line)
    assert "hidden" not in str(line)


def test_requests_are_measured_by_route_and_not_by_path(start: Start) -> None:
    client, metrics = ApiClient(start()), get_metrics_collector()
    wanted = [
        {"route": "/who/{number}", "method": "GET", "status": "200"},
        {"route": "unmatched", "method": "other", "status": "404"},
    ]

    def counts() -> list[int]:
        return [metrics.get_stats("rayzyme_http_request_seconds", tags).get("count", 0) for tags in wanted]

    before = counts()
    for number in range(3):
        client.get(f"/who/{number}")
        client.request("BREW", f"/pot/{number}")
    assert [after - then for after, then in zip(counts(), before, strict=True)] == [3, 3]


def test_a_stream_is_passed_on_piece_by_piece_and_ends_when_the_caller_hangs_up(start: Start) -> None:
    """P56"""
    api, sent = start(), list[Any]()

    async def ask() -> None:
        hung_up = asyncio.Event()

        async def receive() -> Any:
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 4:
                hung_up.set()

        scope = {
            "type": "http", "method": "GET", "path": "/events", "query_string": b"", "headers": [],
            "client": ("127.0.0.1", 1), "asgi": {"spec_version": "2.3"},
        }  # fmt: skip
        await api(scope, receive, send)

    asyncio.run(ask())
    assert [message["body"] for message in sent[1:4]] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert len(sent) < 1000
    assert api.state.ended


# Listening


@pytest.mark.parametrize("auth", ["auto", "tokens", "open"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_listened_on_without_asking_for_tokens(host: str, auth: str) -> None:
    """P4"""
    access.check_listening(_settings(host=host, auth=auth))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_beyond_loopback_nothing_is_listened_on_before_there_is_a_token(host: str, tokens: TokenStore) -> None:
    """P4"""
    for auth in ("auto", "tokens", "open"):
        with pytest.raises(ValidationError, match=host):
            access.check_listening(_settings(host=host, auth=auth))
    tokens.create("laptop", "alice")
    access.check_listening(_settings(host=host), tokens)
    access.check_listening(_settings(host=host, auth="tokens"))
    with pytest.raises(ValidationError, match="auth open"):
        access.check_listening(_settings(host=host, auth="open"), tokens)


def _settings(**serve: Any) -> Settings:
    return load_settings(overrides={"serve": serve})


# The whole API


def test_nothing_under_v1_is_answered_without_a_token() -> None:
    """P4"""
    api = create_api(_settings(auth="tokens"))
    client, routes = ApiClient(api), list(api.openapi()["paths"].items())
    asked = [(method.upper(), path) for path, methods in routes if path.startswith("/v1/") for method in methods]
    assert ("POST", "/v1/screen") in asked
    statuses = {f"{method} {path}": client.request(method, path, json={}).status_code for method, path in asked}
    assert {route: status for route, status in statuses.items() if status != 401} == {}


def test_the_page_and_the_description_are_there_for_everybody() -> None:
    client = ApiClient(create_api(_settings(auth="tokens")), address="10.0.0.7")
    assert [client.get(path).status_code for path in ("/", "/docs", "/openapi.json")] == [200, 200, 200]
