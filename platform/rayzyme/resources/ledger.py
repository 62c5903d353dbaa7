"""The ledger of what is held of something limited: rows in the database that lapse unless their holder renews them.

Nothing is counted anywhere else, so no crash can leave a count wrong: a holder that dies, however it dies, stops renewing.
Who asks for a share decides inside one transaction that sees every live lease and that no other process shares. While it
decides, all others wait; what it measures then, after the leases were read, cannot be out of date.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import queue
import socket
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rayzyme.checks import positive_number
from rayzyme.errors import DatabaseError, ValidationError
from rayzyme.resources.leases import Accept, Decide, DecideTogether, Holding, OnLost, Share

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from rayzyme.database import Database

logger = logging.getLogger(__name__)

_SECTION: Final = "leases"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LeaseLedger:
    """This process's side of the ledger. Safe under threads; a child made by `fork` starts with nothing held.

    One daemon thread renews what is held; when nothing is, there is no thread.
    """

    def __init__(
        self, database: Database, *, ttl: float = 30.0, renew: float = 10.0, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        """Keep the ledger in `database`.

        Args:
            database: Where the rows are.
            ttl: Seconds after which a lease lapses whose holder was not heard of.
            renew: Seconds between renewals.
            clock: Tells the time, with its zone. All holders of one resource must share it.

        Raises:
            ValidationError: `ttl` or `renew` is not a positive number, or `renew` is not below `ttl`.
        """
        self.database = database
        self._renew = positive_number("renew", renew)
        self._ttl = timedelta(seconds=positive_number("ttl", ttl))
        if renew >= ttl:
            raise ValidationError(f"renew must be below ttl, or leases lapse in good hands: {renew} s and {ttl} s")
        self._clock = clock
        self._independent = itertools.count()
        self._start_empty()
        _all_ledgers.add(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._holdings: dict[Hashable, Holding] = {}
        self._inbox: queue.SimpleQueue[Hashable] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: threading.Thread | None = None

    def held(self, key: Hashable) -> Holding | None:
        """What is held under `key`, if anything."""
        with self._lock:
            return self._holdings.get(key)

    def shares(self, purpose: str | None = None) -> list[Share]:
        """The leases of this process, for one purpose or for all, those held longest first."""
        with self._lock:
            held = [share for holding in self._holdings.values() for share in holding.shares]
        return [share for share in held if purpose is None or share.purpose == purpose]

    def acquire(
        self,
        resources: Sequence[str],
        decide: Decide,
        *,
        purpose: str,
        user: Hashable,
        key: Hashable = None,
        accept: Accept | None = None,
        on_lost: OnLost | None = None,
    ) -> tuple[Hashable, Holding]:
        """Take what `decide` says, all of it or nothing.

        Args:
            resources: What it decides about: it sees the live leases of these.
            decide: Says what to take.
            purpose: What the leases are for, in at most `LONGEST_PURPOSE` characters.
            user: Who needs them; see `leave`.
            key: Under which they are held; what is held under it already is given back as it is. None: a key of its own.
            accept: Asked about what is held already. Where it raises, `user` takes no part in that.
            on_lost: How to tell `user` when the leases are lost; replaces what it gave before for the same key.

        Returns:
            The key, and what is held under it. What is empty is not held.

        Raises:
            DatabaseError: The database cannot be used now; nothing is held.
        """
        key = ("independent", next(self._independent)) if key is None else key
        holdings = self.acquire_together(
            resources,
            lambda leases, _missing: {key: decide(leases)},
            {key: purpose},
            user=user,
            accept=accept,
            on_lost=None if on_lost is None else {key: on_lost},
        )
        return key, holdings[key]

    def acquire_together(
        self,
        resources: Sequence[str],
        decide: DecideTogether,
        purposes: Mapping[Hashable, str],
        *,
        user: Hashable,
        accept: Accept | None = None,
        on_lost: Mapping[Hashable, OnLost] | None = None,
    ) -> dict[Hashable, Holding]:
        """Take what is missing under several keys at once, all of it or nothing.

        Args:
            resources: As for `acquire`.
            decide: Says what to take under each key that it is given.
            purposes: Under which keys, and for what.
            user: As for `acquire`, as are `accept` and, by key, `on_lost`.

        Returns:
            What is held now under each key. What is empty is not held.

        Raises:
            DatabaseError: The database cannot be used now; nothing new is held.
        """
        with self._lock:
            holdings = {key: self._holdings[key] for key in purposes if key in self._holdings}
            for holding in holdings.values():
                if accept is not None:
                    accept(holding.shares)
            missing = {key: purpose for key, purpose in purposes.items() if key not in holdings}
            if missing:
                holdings |= {key: Holding(shares) for key, shares in self._take(resources, decide, missing).items()}
            for key, holding in holdings.items():
                if holding.shares:
                    self._holdings[key] = holding
                    holding.users[user] = (on_lost or {}).get(key) or holding.users.get(user)
            if self._holdings:
                self._keep_renewing()
            return holdings

    def _take(
        self, resources: Sequence[str], decide: DecideTogether, purposes: Mapping[Hashable, str]
    ) -> dict[Hashable, tuple[Share, ...]]:
        from sqlalchemy import delete, insert

        from rayzyme.database.events import current_actor
        from rayzyme.database.tables import Lease

        now, pid = self._clock(), os.getpid()
        common = {"owner": f"{current_actor()}:{pid}", "host": socket.gethostname(), "pid": pid}
        with self.database.begin(exclusive=_SECTION) as connection:
            # What lapsed is gone only now. Until somebody takes its place, a holder that overslept may renew it.
            connection.execute(delete(Lease).where(Lease.resource.in_(resources), Lease.expires_at <= now))
            wanted = decide(_live(connection, resources, now), purposes)
            taken: dict[Hashable, tuple[Share, ...]] = {}
            for key, purpose in purposes.items():
                shares = []
                for resource, amount in wanted[key]:
                    row: dict[str, Any] = {"resource": resource, "amount": amount, "purpose": purpose, **common}
                    row["expires_at"] = now + self._ttl
                    token = connection.execute(insert(Lease).values(**row).returning(Lease.token)).scalar_one()
                    shares.append(Share(token=token, **row))
                taken[key] = tuple(shares)
        return taken

    def live(self, resources: Sequence[str]) -> list[Share]:
        """The live leases of `resources`, of every holder, oldest first.

        Raises:
            DatabaseError: The database cannot be used now.
        """
        with self.database.read() as connection:
            return _live(connection, resources, self._clock())

    def release(self, key: Hashable) -> bool:
        """Give back what is held under `key`; False where nothing is. It never waits for the renewing thread.

        Raises:
            DatabaseError: The rows cannot be deleted now; they lapse by themselves.
        """
        with self._lock:
            holding = self._holdings.pop(key, None)
        if holding is None:
            return False
        try:
            self._delete([holding])
        finally:
            self._end_idle_thread()
        return True

    def leave(self, user: Hashable) -> None:
        """Give back what nobody but `user` needs. Where nothing is held any more, the renewing thread has ended too.

        Raises:
            DatabaseError: The rows cannot be deleted now; they lapse by themselves.
        """
        try:
            self._leave(user)
        finally:
            self._end_idle_thread()
            self._await_ended_thread()

    def leave_later(self, user: Hashable) -> None:
        """`leave`, in the renewing thread: for a garbage collector, which may interrupt any code, a transaction included."""
        self._inbox.put(user)

    def close(self) -> None:
        """Give back everything."""
        with self._lock:
            users = {user for holding in self._holdings.values() for user in holding.users}
        for user in users:
            self.leave(user)
        # What was held may have been lost, and then it has no users.
        self._end_idle_thread()
        self._await_ended_thread()

    def renew(self) -> None:
        """Renew what is held, and tell those who lost theirs. The thread does this; a test may.

        Raises:
            DatabaseError: The database cannot be used now.
        """
        from sqlalchemy import update

        from rayzyme.database.tables import Lease

        with self._lock:
            tokens = [share.token for holding in self._holdings.values() for share in holding.shares]
            if not tokens:
                return
            renewed = update(Lease).where(Lease.token.in_(tokens)).values(expires_at=self._clock() + self._ttl)
            with self.database.begin(exclusive=_SECTION) as connection:
                kept = set(connection.execute(renewed.returning(Lease.token)).scalars())
            lost = {
                key: holding
                for key, holding in self._holdings.items()
                if any(share.token not in kept for share in holding.shares)
            }
            for key in lost:
                del self._holdings[key]
            self._delete(lost.values())
        for holding in lost.values():
            _tell(holding)

    def _leave(self, user: Hashable) -> None:
        with self._lock:
            for holding in self._holdings.values():
                holding.users.pop(user, None)
            unneeded = {key: holding for key, holding in self._holdings.items() if not holding.users}
            for key in unneeded:
                del self._holdings[key]
            self._delete(unneeded.values())

    def _delete(self, holdings: Iterable[Holding]) -> None:
        tokens = [share.token for holding in holdings for share in holding.shares]
        if not tokens:
            return
        from sqlalchemy import delete

        from rayzyme.database.tables import Lease

        with self.database.begin() as connection:
            connection.execute(delete(Lease).where(Lease.token.in_(tokens)))

    def _keep_renewing(self) -> None:
        if self._thread is None:
            self._inbox = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, args=(self._inbox,), name="rayzyme-leases", daemon=True)
            self._thread.start()

    def _end_idle_thread(self) -> None:
        with self._lock:
            if self._holdings or self._thread is None:
                return
            self._ended, self._thread = self._thread, None
            self._inbox.put(_END)

    def _await_ended_thread(self) -> None:
        # It waits for nobody but the database: whom it tells of a loss has a thread of its own.
        thread = self._ended
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self, inbox: queue.SimpleQueue[Hashable]) -> None:
        # The thread holds the ledger, and so keeps renewing for holders whose owner was collected but not yet left.
        while True:
            try:
                user = inbox.get(timeout=self._renew)
            except queue.Empty:
                user = None
            if user is _END:
                return
            try:
                self.renew() if user is None else self._leave(user)
            except DatabaseError as error:
                logger.warning("leases could not be renewed or given back, they lapse after %s: %s", self._ttl, error)
            except Exception:
                logger.exception("renewing leases failed")
            with self._lock:
                if not self._holdings:
                    if self._inbox is inbox:
                        self._ended, self._thread = threading.current_thread(), None
                    return


_END = object()


def _live(connection: Connection, resources: Sequence[str], now: datetime) -> list[Share]:
    from sqlalchemy import select

    from rayzyme.database.tables import Lease

    rows = connection.execute(
        select(Lease.__table__).where(Lease.resource.in_(resources), Lease.expires_at > now).order_by(Lease.token)
    )
    return [Share(**row) for row in rows.mappings()]


def _tell(holding: Holding) -> None:
    first = holding.shares[0]
    logger.warning(
        "the leases of %r on %s are lost: they lapsed or were deleted, and may be somebody else's now; stop that work",
        first.purpose,
        ", ".join(share.resource for share in holding.shares),
    )

    def tell(user: OnLost) -> None:
        try:
            user()
        except Exception:
            logger.exception("telling %r that its leases are lost failed", first.purpose)

    # Whoever is told may take its time, or wait for others that use this ledger; the other leases must be renewed meanwhile.
    for on_lost in filter(None, holding.users.values()):
        threading.Thread(target=tell, args=(on_lost,), name="rayzyme-lost-lease", daemon=True).start()


_all_ledgers: weakref.WeakSet[LeaseLedger] = weakref.WeakSet()


def _forget_after_fork() -> None:
    """What the parent holds is the parent's, its threads and connections stayed there, and so may have its locks."""
    for ledger in list(_all_ledgers):
        ledger._start_empty()
        ledger.database.engine.dispose(close=False)


def _close_all() -> None:
    for ledger in list(_all_ledgers):
        try:
            ledger.close()
        except DatabaseError as error:
            logger.warning("leases could not be given back, they lapse by themselves: %s", error)


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_close_all)
