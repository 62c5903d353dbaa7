"""`rayzyme token`, each as if in a process of its own."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rayzyme.access import Caller, Role, TokenStore
from rayzyme.database import open_database


def whose(secret: str) -> Caller | None:
    with closing(open_database()) as database:
        return TokenStore(database).find(secret)


@pytest.mark.parametrize("form", ["table", "quiet"])
def test_the_secret_alone_is_on_standard_output(run: Any, form: str) -> None:
    """D74"""
    code, out, err = run("token", "create", "laptop", "--owner", "alice", "--role", "viewer", "--output", form)
    assert code == 0
    assert whose(out.removesuffix("\n")) == Caller("laptop", "alice", Role.VIEWER)
    assert out.strip() not in err


def test_it_is_shown_once_and_never_again(run: Any, home: Path) -> None:
    """D74"""
    _, secret, _ = run("token", "create", "laptop", "-o", "quiet")
    later = [run("token", "list"), run("token", "list", "-o", "json"), run("token", "revoke", "laptop", "-o", "json")]
    assert secret.strip() not in repr(later)
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    assert secret.strip().encode() not in kept


def test_programs_get_a_document(run: Any) -> None:
    _, out, _ = run("--output", "json", "token", "create", "laptop", "--owner", "alice", "--expires", "30d")
    made = json.loads(out)
    assert whose(made["secret"]) == Caller("laptop", "alice", Role.USER)
    assert made["token"]["expires_at"][:4].isdecimal()
    _, out, _ = run("token", "list", "-o", "json")
    listed = json.loads(out)
    assert listed == {"schema": made["schema"], "tokens": [made["token"]]}
    assert set(made["token"]) == {
        "id", "name", "owner", "role", "state", "created_at", "expires_at", "revoked_at",
    }  # fmt: skip


def test_without_an_owner_it_is_the_user_who_makes_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "carol")
    _, secret, _ = run("token", "create", "laptop", "-o", "quiet")
    assert whose(secret.strip()) == Caller("laptop", "carol", Role.USER)


def test_a_revoked_token_is_shown_as_that_and_lets_nobody_in(run: Any) -> None:
    """D74"""
    _, secret, _ = run("token", "create", "laptop", "-o", "quiet")
    run("token", "create", "desktop")
    code, _, err = run("token", "revoke", "laptop")
    assert (code, whose(secret.strip())) == (0, None)
    assert "laptop" in err
    _, out, _ = run("token", "list")
    assert "revoked" in out
    assert run("token", "list", "-o", "quiet")[1] == "desktop\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["create", "two words"], 2, "two words"),
        (["create", "laptop", "--expires", "soon"], 2, "30d"),
        (["create", "laptop", "--expires", "0d"], 2, "0 s"),
        (["create", "laptop", "--role", "root"], 2, "viewer"),
        (["create", "taken"], 2, "in force"),
        (["revoke", "nobody"], 3, "nobody"),
    ],
)
def test_mistakes_are_named(run: Any, arguments: list[str], code: int, told: str) -> None:
    run("token", "create", "taken")
    got, out, err = run("token", *arguments)
    assert (got, out) == (code, "")
    assert told in err


def test_no_tokens_are_an_empty_list(run: Any) -> None:
    code, out, err = run("token", "list")
    assert (code, out) == (0, "")
    assert "rayzyme token create" in err
    assert json.loads(run("token", "list", "-o", "json")[1])["tokens"] == []
