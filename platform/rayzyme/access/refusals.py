"""Refusals in the audit log: thinned, so that whoever knocks without end cannot fill the database."""

from __future__ import annotations

from typing import Final

from rayzyme.access.rates import RateLimiter
from rayzyme.database.database import Database
from rayzyme.database.events import record_event

_EVERYBODY: Final = ""
_MOST_A_MINUTE: Final = 60


class RefusalLog:
    """Lines with the subject `access`: one a minute of each token or address, and 60 of everybody together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._each = RateLimiter(1)
        self._all = RateLimiter(_MOST_A_MINUTE)

    def is_due(self, who: str, now: float) -> bool:
        """Whether a refusal of `who` is to be noted; asking counts as noting it.

        Args:
            who: Token or address.
            now: Seconds of any clock that never goes back.
        """
        return self._each.wait_s(who, now) == 0.0 and self._all.wait_s(_EVERYBODY, now) == 0.0

    def note(self, who: str, reason: str, data: dict[str, str]) -> None:
        """Write the line.

        Raises:
            DatabaseError: The database cannot be used.
        """
        with self._database.begin() as connection:
            record_event(connection, "access", reason, actor=who, to_state="refused", data=data)
