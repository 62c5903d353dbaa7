"""Access tokens: made, listed, revoked and recognised. Only their digests are kept, so what is stored lets nobody in."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, exists, insert, or_, select, update

from rayzyme.access.callers import Caller, Role
from rayzyme.database.database import Database
from rayzyme.database.events import record_event
from rayzyme.database.tables import Token
from rayzyme.errors import InvalidInput, NotFound

_PREFIX: Final = "rzt_"
_LETTERS: Final = string.ascii_letters + string.digits
_LENGTH: Final = 40
_SECRET: Final = re.compile(rf"{_PREFIX}[A-Za-z0-9]{{{_LENGTH}}}")
# A name of digits alone could be mistaken for a number.
_NAME: Final = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_LONGEST_OWNER: Final = 256
_LONGEST_LIFE_S: Final = 3650 * 86400.0
_LARGEST_ID: Final = 2**63 - 1
_SECTION: Final = "access tokens"


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What is kept of a token; neither the secret nor its digest is in it.

    Attributes:
        id: Its number.
        name: What it is called; of the tokens in force one has it.
        owner: Who owns the jobs that are submitted with it.
        role: What it lets them do.
        created_at: When it was made.
        expires_at: From when on it is refused; None is never.
        revoked_at: When it was revoked.
    """

    id: int
    name: str
    owner: str
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """One of "valid", "expired", "revoked"."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"

    def document(self, now: datetime) -> dict[str, Any]:
        """As JSON, times in ISO 8601."""
        return {
            "id": self.id,
            "name": self.name,
            "owner": self.owner,
            "role": self.role.value,
            "state": self.state(now),
            "created_at": _iso(self.created_at),
            "expires_at": _iso(self.expires_at),
            "revoked_at": _iso(self.revoked_at),
        }


def _now() -> datetime:
    return datetime.now(UTC)


class TokenStore:
    """The tokens of a database. Each change is a line of the audit log with the subject `token:NAME`."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = _now) -> None:
        """Nothing is read yet.

        Args:
            database: Where they are.
            clock: What time it is, with its zone.
        """
        self.database = database
        self._clock = clock

    def create(
        self, name: str, owner: str, role: Role = Role.USER, expires_in_s: float | None = None
    ) -> tuple[AccessToken, str]:
        """Make a token.

        Args:
            name: Letters, digits and . _ @ -; not that of a token in force.
            owner: Who owns the jobs that are submitted with it.
            role: What it lets them do.
            expires_in_s: Seconds after which it is refused; None is never.

        Returns:
            What is kept, and the secret, which can never be seen again.

        Raises:
            InvalidInput: The name, the owner or the time cannot be, or a token in force has that name.
        """
        _check(name, owner, expires_in_s)
        secret = _PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
        now = self._clock()
        expires_at = None if expires_in_s is None else now + timedelta(seconds=expires_in_s)
        values = {
            "name": name,
            "owner": owner,
            "role": Role(role).value,
            "created_at": now,
            "expires_at": expires_at,
        }
        with self.database.begin(exclusive=_SECTION) as connection:
            if connection.execute(_TOKENS.where(_in_force(now), Token.name == name)).first() is not None:
                raise InvalidInput(f"a token {name!r} is in force; choose another name, or revoke that one first")
            number = connection.execute(insert(Token).values(digest=_digest(secret), **values)).inserted_primary_key
            told = {"owner": owner, "role": values["role"], "expires_at": _iso(expires_at)}
            record_event(connection, f"token:{name}", "created", to_state="valid", data=told, at=now)
            assert number is not None
        return AccessToken(number[0], name, owner, Role(role), now, expires_at), secret

    def list(self) -> list[AccessToken]:
        """All tokens that were ever made, the oldest first."""
        with self.database.read() as connection:
            return [_record(row) for row in connection.execute(_TOKENS.order_by(Token.id))]

    def revoke(self, name_or_id: str | int) -> AccessToken:
        """Have a token be refused from now on.

        Args:
            name_or_id: Its name, or its number, which `list` tells.

        Raises:
            NotFound: There is none that was not revoked before.
        """
        now = self._clock()
        asked = str(name_or_id)
        chosen = Token.id == min(int(asked), _LARGEST_ID) if asked.isdecimal() else Token.name == asked
        with self.database.begin(exclusive=_SECTION) as connection:
            # Of one name there may be expired ones too; the newest is meant.
            wanted = _TOKENS.where(chosen, Token.revoked_at.is_(None)).order_by(Token.id.desc()).limit(1)
            row = connection.execute(wanted).one_or_none()
            if row is None:
                raise NotFound(f"there is no token {name_or_id!r} to revoke; `rayzyme token list` shows all of them")
            connection.execute(update(Token).where(Token.id == row.id).values(revoked_at=now))
            found = _record(row)
            state = found.state(now)
            record_event(connection, f"token:{found.name}", "revoked", from_state=state, to_state="revoked", at=now)
        return replace(found, revoked_at=now)

    def find(self, secret: str) -> Caller | None:
        """Whose secret it is; None where it is nobody's, was revoked, or has expired.

        Only a digest is looked up, so the time that it takes tells nothing of any secret.
        """
        if not _SECRET.fullmatch(secret):
            return None
        with self.database.read() as connection:
            wanted = _TOKENS.where(_in_force(self._clock()), Token.digest == _digest(secret))
            row = connection.execute(wanted).one_or_none()
        return None if row is None else Caller(row.name, row.owner, Role(row.role))

    def any(self) -> bool:
        """Whether a token was ever made; revoking the last one does not open the doors again."""
        with self.database.read() as connection:
            return bool(connection.execute(select(exists(select(Token.id)))).scalar())


_TOKENS: Final = select(
    Token.id, Token.name, Token.owner, Token.role, Token.created_at, Token.expires_at, Token.revoked_at
)


def _in_force(now: datetime) -> ColumnElement[bool]:
    return and_(Token.revoked_at.is_(None), or_(Token.expires_at.is_(None), Token.expires_at > now))


def _record(row: Any) -> AccessToken:
    return AccessToken(row.id, row.name, row.owner, Role(row.role), row.created_at, row.expires_at, row.revoked_at)


def _digest(secret: str) -> str:
    # Secrets are drawn from 62^40, so neither salt nor a slow digest is needed.
    return hashlib.sha256(secret.encode()).hexdigest()


def _check(name: str, owner: str, expires_in_s: float | None) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be the name of a token; use 1 to 100 letters, digits and . _ @ -, not digits alone"
        )
    if not owner.strip() or len(owner) > _LONGEST_OWNER or not owner.isprintable():
        raise InvalidInput(f"{owner!r} cannot be the owner of a token; use 1 to {_LONGEST_OWNER} characters")
    if expires_in_s is not None and not 0 < expires_in_s <= _LONGEST_LIFE_S:
        raise InvalidInput(f"a token lasts more than 0 s and at most 10 years, not {expires_in_s:g} s")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
