"""One holder's door to the ledger of this process, opened when it is first needed.

A process has one ledger per database, so that two managers of one process know of each other's allocations.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayzyme.errors import DatabaseError, ValidationError
from rayzyme.resources.leases import Accept, Decide, DecideTogether, Holding, OnLost, Share
from rayzyme.resources.ledger import LeaseLedger

if TYPE_CHECKING:
    from rayzyme.database import Database

logger = logging.getLogger(__name__)


class Account:
    """What one manager holds. Given back by `close`, by garbage collection and at the interpreter's normal end."""

    def __init__(self, store: Database | LeaseLedger | None) -> None:
        """Hold in `store`; None is the settings' database, which is opened with the first lease that is asked about.

        Raises:
            ValidationError: `store` is neither a database nor a ledger.
        """
        if store is not None and not isinstance(store, LeaseLedger):
            from rayzyme.database import Database

            if not isinstance(store, Database):
                raise ValidationError(
                    f"store must be what rayzyme.database.open_database gives, or None, not {store!r}"
                )
        self._store = store
        self._ledger: LeaseLedger | None = None
        self._user = object()
        self._finalizer: weakref.finalize[Any, Account] | None = None

    def held(self, key: Hashable) -> Holding | None:
        """What this process holds under `key`."""
        return self._opened().held(key)

    def shares(self, purpose: str) -> list[Share]:
        """The leases of this process for one purpose, those held longest first."""
        return self._opened().shares(purpose)

    def live(self, resources: Sequence[str]) -> list[Share]:
        """Live leases of everybody; see `LeaseLedger.live`."""
        return self._opened().live(resources)

    def acquire(
        self,
        resources: Sequence[str],
        decide: Decide,
        *,
        purpose: str,
        key: Hashable = None,
        accept: Accept | None = None,
        on_lost: OnLost | None = None,
    ) -> tuple[Hashable, Holding]:
        """Take what `decide` says; see `LeaseLedger.acquire`."""
        ledger = self._opened()
        return ledger.acquire(
            resources, decide, purpose=purpose, user=self._user, key=key, accept=accept, on_lost=on_lost
        )

    def acquire_together(
        self,
        resources: Sequence[str],
        decide: DecideTogether,
        purposes: Mapping[Hashable, str],
        *,
        accept: Accept | None = None,
        on_lost: Mapping[Hashable, OnLost] | None = None,
    ) -> dict[Hashable, Holding]:
        """Take what is missing under several keys; see `LeaseLedger.acquire_together`."""
        ledger = self._opened()
        return ledger.acquire_together(resources, decide, purposes, user=self._user, accept=accept, on_lost=on_lost)

    def release(self, key: Hashable) -> bool:
        """Give back what this process holds under `key`; False where that is nothing."""
        return self._ledger is not None and self._ledger.release(key)

    def close(self) -> None:
        """Give back what nobody else in this process needs. Using the account again opens it again."""
        with _opening:
            ledger, self._ledger = self._ledger, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if ledger is None:
            return
        try:
            ledger.leave(self._user)
        except DatabaseError as error:
            logger.warning("leases could not be given back, they lapse by themselves: %s", error)

    def _opened(self) -> LeaseLedger:
        with _opening:
            if self._ledger is None:
                self._ledger = self._store if isinstance(self._store, LeaseLedger) else _shared_ledger(self._store)
                self._finalizer = weakref.finalize(self, self._ledger.leave_later, self._user)
                # At the interpreter's end the ledger gives everything back by itself.
                self._finalizer.atexit = False
            return self._ledger


_opening = threading.Lock()
_ledgers: weakref.WeakValueDictionary[Hashable, LeaseLedger] = weakref.WeakValueDictionary()


def _shared_ledger(store: Database | None) -> LeaseLedger:
    from rayzyme.database import open_database
    from rayzyme.settings import get_settings

    database = open_database() if store is None else store
    place = (database.url, str(database.engine.get_execution_options().get("schema_translate_map")))
    ledger = _ledgers.get(place)
    if ledger is None:
        leases = get_settings().leases
        ledger = _ledgers[place] = LeaseLedger(database, ttl=leases.ttl, renew=leases.renew)
        if store is None:
            weakref.finalize(ledger, database.close).atexit = False
    elif store is None:
        database.close()
    return ledger


def _unlock_after_fork() -> None:
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_unlock_after_fork)
