"""Refusals in the audit log: thinned, so that whoever knocks without end cannot fill the database."""

from __future__ import annotations

from typing import Final

from rayzyme.access.rates import RateLimiter
from rayzyme.database.database import Database
from rayzyme.database.events import record_event

_EVERYBODY: Final = ""
_MOST_A_MINUTE: Final = 60


class RefusalThinning:
    """Which refusals are noted: one a minute of each token or address, and 60 of everybody together."""

    def __init__(self) -> None:
        self._each = RateLimiter(1)
        self._all = RateLimiter(_MOST_A_MINUTE)

    def is_due(self, who: str, now: float) -> bool:
        """Whether a refusal is to be noted; yes counts as having noted it.

        Args:
            who: Token or address.
            now: Seconds of any clock that never goes back.
        """
        return self._each.wait_s(who, now) == 0 and self._all.wait_s(_EVERYBODY, now) == 0


def note_refusal(database: Database, who: str, reason: str, data: dict[str, str]) -> None:
    """Write a line with the subject `access`.

    Args:
        database: Where the audit log is.
        who: Token or address.
        reason: Why they were refused.
        data: Anything more.

    Raises:
        DatabaseError: The database cannot be used.
    """
    with database.begin() as connection:
        record_event(connection, "access", reason, actor=who, to_state="refused", data=data)
