"""Access tokens, roles and limits, without HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from rayzyme.access import Caller, RateLimiter, Role, TokenStore, is_loopback, local_caller
from rayzyme.access.refusals import RefusalThinning, note_refusal
from rayzyme.database import Database, open_database
from rayzyme.database.administration import first_altered
from rayzyme.database.tables import JobEvent, Token
from rayzyme.errors import InvalidInput, NotFound


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(open_database(database_url)) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(database: Database, clock: Clock) -> TokenStore:
    return TokenStore(database, clock)


def events(database: Database, subject: str) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(JobEvent).where(JobEvent.subject == subject).order_by(JobEvent.seq)))


def test_a_token_lets_in_as_what_it_was_made_for(tokens: TokenStore) -> None:
    """D74"""
    record, secret = tokens.create("laptop", "alice", Role.VIEWER)
    assert tokens.find(secret) == Caller("laptop", "alice", Role.VIEWER)
    assert (record.name, record.owner, record.role, record.expires_at) == ("laptop", "alice", Role.VIEWER, None)
    assert tokens.list() == [record]


def test_secrets_are_long_random_and_never_the_same(tokens: TokenStore) -> None:
    secrets = {tokens.create(f"token-{number}", "alice")[1] for number in range(20)}
    assert len(secrets) == 20
    assert all(re.fullmatch(r"rzt_[A-Za-z0-9]{40}", secret) for secret in secrets)


def test_neither_a_secret_nor_its_digest_is_in_what_is_kept_or_shown(tokens: TokenStore, database: Database) -> None:
    """D74"""
    record, secret = tokens.create("laptop", "alice")
    with database.read() as connection:
        row = connection.execute(select(Token)).one()
        lines = list(connection.execute(select(JobEvent)))
    assert secret not in repr((row, lines, record, tokens))
    assert row.digest not in repr((lines, record, tokens))


@pytest.mark.parametrize("secret", ["", "rzt_", "rzt_" + "a" * 40, "rzt_" + "é" * 40, "x" * 100_000, "' OR 1=1 --"])
def test_what_was_never_given_out_lets_nobody_in(tokens: TokenStore, secret: str) -> None:
    tokens.create("laptop", "alice")
    assert tokens.find(secret) is None


def test_a_token_is_refused_from_the_moment_it_expires(tokens: TokenStore, clock: Clock) -> None:
    """D74"""
    record, secret = tokens.create("laptop", "alice", expires_in_s=60)
    clock.advance(59.9)
    assert tokens.find(secret) is not None
    assert record.state(clock.now) == "valid"
    clock.advance(0.1)
    assert tokens.find(secret) is None
    assert record.state(clock.now) == "expired"


@pytest.mark.parametrize("by_number", [True, False])
def test_a_revoked_token_is_refused_and_the_others_are_not(tokens: TokenStore, by_number: bool) -> None:
    """D74"""
    record, secret = tokens.create("laptop", "alice")
    _, other = tokens.create("desktop", "alice")
    revoked = tokens.revoke(str(record.id) if by_number else "laptop")
    assert revoked.revoked_at is not None
    assert tokens.find(secret) is None
    assert tokens.find(other) is not None
    with pytest.raises(NotFound, match="laptop"):
        tokens.revoke("laptop")


@pytest.mark.parametrize("unknown", ["nothing", 77, "9" * 40])
def test_what_does_not_exist_cannot_be_revoked(tokens: TokenStore, unknown: str | int) -> None:
    with pytest.raises(NotFound, match=str(unknown)):
        tokens.revoke(unknown)


def test_a_name_is_free_again_once_its_token_is_over(tokens: TokenStore, clock: Clock) -> None:
    _, first = tokens.create("laptop", "alice", expires_in_s=60)
    with pytest.raises(InvalidInput, match="in force"):
        tokens.create("laptop", "bob")
    clock.advance(61)
    _, second = tokens.create("laptop", "bob")
    tokens.revoke("laptop")
    assert tokens.find(first) is tokens.find(second) is None
    _, third = tokens.create("laptop", "carol")
    assert tokens.find(third) == Caller("laptop", "carol", Role.USER)


@pytest.mark.parametrize(
    ("name", "owner", "expires_in_s"),
    [
        ("", "alice", None),
        ("123", "alice", None),
        ("-rf", "alice", None),
        ("two words", "alice", None),
        ("a" * 101, "alice", None),
        ("laptop", " ", None),
        ("laptop", "a\x00b", None),
        ("laptop", "a" * 257, None),
        ("laptop", "alice", 0.0),
        ("laptop", "alice", float("nan")),
        ("laptop", "alice", 1e12),
    ],
)
def test_what_cannot_be_a_token_is_refused(
    tokens: TokenStore, name: str, owner: str, expires_in_s: float | None
) -> None:
    with pytest.raises(InvalidInput):
        tokens.create(name, owner, expires_in_s=expires_in_s)
    assert not tokens.any()


def test_revoking_the_last_token_does_not_count_as_having_none(tokens: TokenStore) -> None:
    assert not tokens.any()
    tokens.create("laptop", "alice")
    tokens.revoke("laptop")
    assert tokens.any()


def test_each_change_is_a_line_of_the_audit_log(tokens: TokenStore, database: Database) -> None:
    """D74"""
    tokens.create("laptop", "alice", Role.ADMIN, expires_in_s=60)
    tokens.revoke("laptop")
    created, revoked = events(database, "token:laptop")
    assert (created.reason, created.to_state) == ("created", "valid")
    assert created.data == {"owner": "alice", "role": "admin", "expires_at": "2026-03-01T12:01:00Z"}
    assert (revoked.reason, revoked.from_state, revoked.to_state) == ("revoked", "valid", "revoked")
    assert first_altered(database) == (2, None)


def test_a_refusal_is_a_line_of_the_audit_log(database: Database) -> None:
    """D74"""
    note_refusal(database, "10.0.0.7", "unknown token", {"path": "/v1/jobs"})
    (line,) = events(database, "access")
    assert (line.actor, line.reason, line.to_state) == ("10.0.0.7", "unknown token", "refused")
    assert line.data == {"path": "/v1/jobs"}


def test_one_refusal_a_minute_of_each_is_noted_and_sixty_of_all() -> None:
    thinning = RefusalThinning()
    assert [thinning.is_due("10.0.0.7", second) for second in (0.0, 1.0, 59.0, 60.0)] == [True, False, False, True]
    noted = sum(thinning.is_due(f"host {number}", 60.0) for number in range(1000))
    assert noted == 59


def test_roles_include_those_before_them() -> None:
    """D74"""
    included = {role: [other for other in Role if role.includes(other)] for role in Role}
    assert included == {
        Role.VIEWER: [Role.VIEWER],
        Role.USER: [Role.VIEWER, Role.USER],
        Role.ADMIN: [Role.VIEWER, Role.USER, Role.ADMIN],
    }


def test_where_the_doors_are_open_everybody_is_the_user_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    assert local_caller() == Caller("local", "alice", Role.ADMIN)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_grants_come_back_with_time() -> None:
    limiter = RateLimiter(per_minute=6)
    assert [limiter.wait_s("a", 0.0) for _ in range(7)] == [0.0] * 6 + [10.0]
    assert limiter.wait_s("a", 5.0) == pytest.approx(5.0)
    assert limiter.wait_s("a", 10.0) == 0.0
    assert limiter.wait_s("b", 10.0) == 0.0


@given(
    st.integers(1, 60),
    st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_no_span_has_more_grants_than_a_bucket_and_what_flowed_into_it(per_minute: int, pauses: list[float]) -> None:
    limiter, now, granted = RateLimiter(per_minute), 0.0, []
    for pause in pauses:
        now += pause
        wait = limiter.wait_s("a", now)
        if wait == 0.0:
            granted.append(now)
        else:
            # Whoever waits so long is let in.
            assert 0 < wait <= 60 / per_minute + 1e-6
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            span = granted[last] - granted[first]
            assert last - first + 1 <= per_minute + span * per_minute / 60 + 1e-6


def test_a_limiter_remembers_only_so_many() -> None:
    limiter = RateLimiter(per_minute=1, most_keys=3)
    for key in "abcd":
        limiter.wait_s(key, 0.0)
    assert [limiter.wait_s(key, 0.0) > 0 for key in "dcb"] == [True, True, True]
    assert limiter.wait_s("a", 0.0) == 0.0
