"""The ledger of leases: taken at once or not at all, lapsing with their holder, lost only to somebody else."""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, text

from rayzyme.database import Database, open_database
from rayzyme.database.tables import Lease
from rayzyme.errors import DatabaseError, ResourceError, ValidationError
from rayzyme.resources import account as account_module
from rayzyme.resources.account import Account
from rayzyme.resources.leases import Share
from rayzyme.resources.ledger import LeaseLedger

WAIT = 10
CAPACITY = 100


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def open_ledger(database: Database, clock: Clock) -> Iterator[Callable[[], LeaseLedger]]:
    """Makes ledgers as if each were in a process of its own; their threads never wake by themselves."""
    opened: list[LeaseLedger] = []

    def make() -> LeaseLedger:
        opened.append(LeaseLedger(database, ttl=3000, renew=1000, clock=clock))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()
    assert not lease_threads()


def lease_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rayzyme-leases"]


class Told:
    """Takes notices of lost leases, from whichever thread."""

    def __init__(self) -> None:
        self._notices: queue.SimpleQueue[object] = queue.SimpleQueue()

    def about(self, subject: object) -> Callable[[], None]:
        return lambda: self._notices.put(subject)

    def next(self) -> object:
        return self._notices.get(timeout=WAIT)

    def is_silent(self) -> bool:
        """Whether there is nothing more, once all that tell have ended."""
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "rayzyme-lost-lease"])
        return self._notices.empty()


def wanting(amount: float, *resources: str) -> Callable[[Sequence[Share]], list[tuple[str, float]]]:
    """Take `amount` of each resource if all have that much."""

    def decide(leases: Sequence[Share]) -> list[tuple[str, float]]:
        held = {name: sum(lease.amount for lease in leases if lease.resource == name) for name in resources}
        fits = all(CAPACITY - amount_held >= amount for amount_held in held.values())
        return [(name, amount) for name in resources] if fits else []

    return decide


def take(ledger: LeaseLedger, amount: float, *resources: str, key: str, user: str = "me", **more: object) -> bool:
    _key, holding = ledger.acquire(resources, wanting(amount, *resources), purpose="test", key=key, user=user, **more)
    return bool(holding.shares)


def tokens(ledger: LeaseLedger) -> set[int]:
    return {share.token for share in ledger.shares()}


def held(ledger: LeaseLedger, *resources: str) -> list[tuple[str, float]]:
    return [(lease.resource, lease.amount) for lease in ledger.live(resources)]


def test_what_one_holds_another_cannot_take(open_ledger: Callable[[], LeaseLedger]) -> None:
    """D15"""
    ours, theirs = open_ledger(), open_ledger()
    assert take(ours, 60, "r", key="a")
    assert not take(theirs, 60, "r", key="a")
    assert take(theirs, 60, "other", key="b")
    assert ours.release("a")
    assert take(theirs, 60, "r", key="c")
    assert held(ours, "r", "other") == [("other", 60), ("r", 60)]


def test_tokens_grow_even_when_the_newest_was_given_back(open_ledger: Callable[[], LeaseLedger]) -> None:
    """D15"""
    ledger, seen = open_ledger(), []
    for key in "abc":
        take(ledger, 1, "r", key=key)
        seen += sorted(tokens(ledger))
        ledger.release(key)
    assert seen == sorted(set(seen))
    assert len(seen) == 3


def test_a_lease_says_whose_it_is(open_ledger: Callable[[], LeaseLedger], clock: Clock) -> None:
    ledger = open_ledger()
    take(ledger, 7, "r", key="a")
    (lease,) = ledger.live(["r"])
    assert (lease.purpose, lease.pid) == ("test", os.getpid())
    assert lease.owner.endswith(f"@{lease.host}:{os.getpid()}")
    assert lease.expires_at == clock.now + timedelta(seconds=3000)


def test_several_resources_are_taken_together_or_not_at_all(open_ledger: Callable[[], LeaseLedger]) -> None:
    """D15"""
    ours, theirs = open_ledger(), open_ledger()
    take(theirs, 60, "s", key="a")
    assert not take(ours, 50, "r", "s", key="b")
    assert held(ours, "r") == []
    assert take(ours, 40, "r", "s", key="b")
    assert ours.release("b")
    assert held(ours, "r", "s") == [("s", 60)]


def test_a_decision_that_fails_takes_nothing(open_ledger: Callable[[], LeaseLedger]) -> None:
    """C15"""
    ledger = open_ledger()

    def refuse(_leases: Sequence[Share]) -> list[tuple[str, float]]:
        raise ResourceError("no")

    with pytest.raises(ResourceError, match="no"):
        ledger.acquire(["r"], refuse, purpose="test", user="me", key="a")
    assert ledger.held("a") is None
    assert held(ledger, "r") == []


def test_a_statement_that_fails_half_way_takes_nothing(
    open_ledger: Callable[[], LeaseLedger], database: Database
) -> None:
    """D8"""
    ledger = open_ledger()

    def fail_second(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("INSERT"):
            inserts.append(statement)
            if len(inserts) == 2:
                raise RuntimeError("the second row fails")

    inserts: list[str] = []
    event.listen(database.engine, "before_cursor_execute", fail_second)
    with pytest.raises(RuntimeError, match="the second row fails"):
        take(ledger, 1, "r", "s", key="a")
    assert held(ledger, "r", "s") == []
    assert ledger.held("a") is None


def test_the_same_key_gives_the_same_leases_once(open_ledger: Callable[[], LeaseLedger]) -> None:
    """C13"""
    ledger = open_ledger()
    _key, first = ledger.acquire(["r"], wanting(60, "r"), purpose="test", user="me", key="a")
    _key, again = ledger.acquire(["r"], wanting(60, "r"), purpose="test", user="me", key="a")
    assert again is first
    assert held(ledger, "r") == [("r", 60)]
    keys = {ledger.acquire(["r"], wanting(10, "r"), purpose="test", user="me")[0] for _ in range(2)}
    assert len(keys) == 2
    assert held(ledger, "r") == [("r", 60), ("r", 10), ("r", 10)]


def test_what_two_need_stays_until_both_have_left(open_ledger: Callable[[], LeaseLedger]) -> None:
    ledger = open_ledger()
    take(ledger, 60, "r", key="a", user="one")
    take(ledger, 60, "r", key="a", user="two")
    ledger.leave("one")
    assert held(ledger, "r") == [("r", 60)]
    ledger.leave("two")
    assert held(ledger, "r") == []


def test_a_holder_that_is_not_heard_of_loses_its_share_after_the_ttl(
    open_ledger: Callable[[], LeaseLedger], clock: Clock
) -> None:
    """C14 D15"""
    silent, other = open_ledger(), open_ledger()
    take(silent, 60, "r", key="a")
    clock.advance(2999)
    assert not take(other, 60, "r", key="b")
    clock.advance(1)
    assert held(other, "r") == []
    assert take(other, 60, "r", key="b")


def test_renewing_keeps_a_lease_alive(open_ledger: Callable[[], LeaseLedger], clock: Clock) -> None:
    """D15"""
    ours, other = open_ledger(), open_ledger()
    take(ours, 60, "r", key="a")
    for _ in range(3):
        clock.advance(2000)
        ours.renew()
    assert not take(other, 60, "r", key="b")
    assert ours.held("a") is not None


def test_a_holder_that_lost_its_lease_is_told(
    open_ledger: Callable[[], LeaseLedger], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """D15"""
    ours, other, told = open_ledger(), open_ledger(), Told()
    take(ours, 60, "r", "s", key="a", on_lost=told.about("a"))
    take(ours, 10, "s", key="b", on_lost=told.about("b"))
    clock.advance(3001)
    # Only one of the two leases of "a" is in the way; the other must not stay behind.
    assert take(other, 60, "r", key="c")
    ours.renew()
    assert told.next() == "a"
    assert told.is_silent()
    assert "the leases of 'test' on r, s are lost: they lapsed or were deleted" in caplog.text
    assert (ours.held("a"), ours.release("a")) == (None, False)
    assert held(ours, "r", "s") == [("s", 10), ("r", 60)]


def test_a_holder_that_overslept_keeps_what_nobody_took(open_ledger: Callable[[], LeaseLedger], clock: Clock) -> None:
    ours, other, told = open_ledger(), open_ledger(), Told()
    take(ours, 60, "r", key="a", on_lost=told.about("a"))
    clock.advance(10_000)
    assert take(other, 60, "elsewhere", key="b")
    ours.renew()
    assert told.is_silent()
    assert held(ours, "r") == [("r", 60)]
    assert not take(other, 60, "r", key="c")


def test_one_that_fails_or_takes_its_time_when_told_does_not_keep_it_from_others(
    open_ledger: Callable[[], LeaseLedger], clock: Clock
) -> None:
    """D15"""
    ours, other, told, patience, waited = open_ledger(), open_ledger(), Told(), threading.Event(), []
    take(ours, 60, "r", key="a", user="one", on_lost=lambda: 1 / 0)
    take(ours, 60, "r", key="a", user="two", on_lost=lambda: waited.append(patience.wait(WAIT)))
    take(ours, 60, "r", key="a", user="three", on_lost=told.about("a"))
    take(ours, 20, "s", key="b", user="one")
    clock.advance(3001)
    take(other, 60, "r", key="c")
    before = held(other, "s")
    ours.renew()
    assert told.next() == "a"
    ours.renew()
    assert (before, held(other, "s")) == ([], [("s", 20)])
    patience.set()
    assert told.is_silent()
    assert waited == [True]


def test_a_loss_may_be_answered_by_waiting_for_a_worker_that_releases_another_lease(database: Database) -> None:
    """D15"""
    ours, told, lost = LeaseLedger(database, ttl=60, renew=0.01), Told(), threading.Event()

    def work() -> None:
        take(ours, 20, "s", key="b")
        assert lost.wait(WAIT)
        ours.release("b")
        told.about("released")()

    def stop_working() -> None:
        lost.set()
        worker.join(WAIT)
        told.about(worker.is_alive())()

    worker = threading.Thread(target=work)
    take(ours, 60, "r", key="a", on_lost=stop_working)
    worker.start()
    until(lambda: held(ours, "s") == [("s", 20)])
    with database.begin() as connection:
        connection.execute(delete(Lease).where(Lease.resource == "r"))
    assert (told.next(), told.next()) == ("released", False)
    ours.close()
    assert not lease_threads()


def test_each_user_is_told_once_of_what_it_asked_for_again_and_again(
    open_ledger: Callable[[], LeaseLedger], clock: Clock
) -> None:
    """C15"""
    ours, other, told = open_ledger(), open_ledger(), Told()
    for number in range(3):
        take(ours, 60, "r", key="a", user="one", on_lost=told.about(number))
    take(ours, 60, "r", key="a", user="one")
    take(ours, 60, "r", key="a", user="gone", on_lost=told.about("gone"))
    ours.leave("gone")
    clock.advance(3001)
    take(other, 60, "r", key="b")
    ours.renew()
    assert told.next() == 2
    assert told.is_silent()


def test_who_finds_that_what_is_held_will_not_do_takes_no_part_in_it(open_ledger: Callable[[], LeaseLedger]) -> None:
    """C15"""
    ledger, told = open_ledger(), Told()

    def refuse(shares: Sequence[Share]) -> None:
        raise ResourceError(f"{shares[0].amount:.0f} will not do")

    take(ledger, 60, "r", key="a", user="one", accept=refuse)
    with pytest.raises(ResourceError, match="60 will not do"):
        take(ledger, 70, "r", key="a", user="two", accept=refuse, on_lost=told.about("two"))
    ledger.leave("one")
    assert held(ledger, "r") == []


def test_several_are_taken_at_once_beside_what_is_held_or_none(open_ledger: Callable[[], LeaseLedger]) -> None:
    """C20"""
    ledger, missed = open_ledger(), []

    def decide(leases: Sequence[Share], missing: Collection[str]) -> dict[str, list[tuple[str, float]]]:
        missed.append(sorted(missing))
        return {key: wanting(60, key)(leases) or [("nowhere", "no number")] for key in missing}

    def acquire(*keys: str) -> dict[str, float]:
        holdings = ledger.acquire_together(["r", "s", "t"], decide, {key: f"of {key}" for key in keys}, user="me")
        return {key: holding.shares[0].amount for key, holding in holdings.items()}

    take(ledger, 10, "r", key="r")
    assert acquire("r", "s") == {"r": 10, "s": 60}
    assert {lease.purpose for lease in ledger.live(["s"])} == {"of s"}
    take(open_ledger(), 50, "t", key="x")
    ledger.release("r")
    with pytest.raises(Exception, match="no number"):
        acquire("r", "t")
    assert (missed, ledger.held("r")) == ([["s"], ["r", "t"]], None)
    assert held(ledger, "r", "s", "t") == [("s", 60), ("t", 50)]


def test_the_thread_renews_and_ends_when_nothing_is_held(database: Database) -> None:
    """C3 D15"""
    ledger = LeaseLedger(database, ttl=60, renew=0.01)
    take(ledger, 60, "r", key="a")
    (thread,) = lease_threads()
    assert thread.daemon
    renewed = threading.Event()
    first = ledger.live(["r"])[0].expires_at
    event.listen(database.engine, "commit", lambda _connection: renewed.set())
    assert renewed.wait(WAIT)
    until(lambda: ledger.live(["r"])[0].expires_at > first)
    ledger.release("a")
    until(lambda: not thread.is_alive())
    take(ledger, 60, "r", key="b")
    ledger.close()
    assert not lease_threads()
    assert held(ledger, "r") == []


def test_the_thread_outlives_a_database_that_is_away(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    ledger = LeaseLedger(database, ttl=60, renew=0.01)
    take(ledger, 60, "r", key="a")
    away = threading.Event()

    def refuse(*_arguments: object) -> None:
        if away.is_set():
            raise DatabaseError("away")

    event.listen(database.engine, "begin", refuse)
    away.set()
    until(lambda: "leases could not be renewed" in caplog.text)
    away.clear()
    last = ledger.live(["r"])[0].expires_at
    until(lambda: ledger.live(["r"])[0].expires_at > last)
    ledger.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread or process brings about."""
    pause = threading.Event()
    for _ in range(WAIT * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came true")


@pytest.mark.parametrize(
    ("ttl", "renew", "named"), [(0, 1, "ttl"), (30, True, "renew"), (30, 30, "renew"), (5, 10, "renew")]
)
def test_times_that_cannot_work_are_refused(database: Database, ttl: float, renew: float, named: str) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=named):
        LeaseLedger(database, ttl=ttl, renew=renew)


def test_threads_share_one_ledger(open_ledger: Callable[[], LeaseLedger]) -> None:
    """C3 C13"""
    ledger, got = open_ledger(), []
    start = threading.Barrier(8)

    def compete(number: int) -> None:
        start.wait(WAIT)
        got.append(take(ledger, 30, "r", key=f"key {number % 4}"))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 6
    assert held(ledger, "r") == [("r", 30)] * 3


def test_an_account_that_is_collected_gives_its_leases_back(database: Database) -> None:
    """C3"""
    ledger = LeaseLedger(database, ttl=60, renew=30)
    account, other = Account(ledger), Account(ledger)
    account.acquire(["r"], wanting(60, "r"), purpose="test")
    other.acquire(["r"], wanting(30, "r"), purpose="test")
    del account
    gc.collect()
    until(lambda: held(ledger, "r") == [("r", 30)])
    del other
    gc.collect()
    until(lambda: held(ledger, "r") == [])
    until(lambda: not lease_threads())


def test_a_collected_account_does_not_wait_for_a_transaction_of_the_thread_that_collects(database: Database) -> None:
    """C3"""
    ledger = LeaseLedger(database, ttl=60, renew=30)
    account = Account(ledger)
    account.acquire(["r"], wanting(60, "r"), purpose="test")
    with database.begin(exclusive="leases") as connection:
        connection.execute(delete(Lease).where(Lease.token < 0))
        del account
        gc.collect()
    until(lambda: held(ledger, "r") == [])


def test_accounts_of_one_database_share_its_ledger(database: Database, database_url: str) -> None:
    """C13"""
    same_place = open_database(database_url)
    one, two = Account(database), Account(same_place)
    _key, first = one.acquire(["r"], wanting(60, "r"), purpose="test", key="a")
    _key, second = two.acquire(["r"], wanting(60, "r"), purpose="test", key="a")
    assert second is first
    one.close()
    assert [lease.amount for lease in two.live(["r"])] == [60]
    two.close()
    assert [lease.amount for lease in two.live(["r"])] == []
    two.close()
    same_place.close()


def test_schemas_of_one_server_have_ledgers_of_their_own(postgresql: str) -> None:
    """D5"""
    databases = [open_database(postgresql, schema) for schema in ("lease_one", "lease_two")]
    accounts = [Account(database) for database in databases]
    for account in accounts:
        account.acquire(["r"], wanting(60, "r"), purpose="test", key="a")
    assert [len(account.live(["r"])) for account in accounts] == [1, 1]
    for account, database, schema in zip(accounts, databases, ("lease_one", "lease_two"), strict=True):
        account.close()
        with database.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        database.close()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """C2"""
    with pytest.raises(ValidationError, match="store must be"):
        Account(tmp_path)  # type: ignore[arg-type]


def test_an_account_that_cannot_give_back_at_its_end_says_so(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    account = Account(LeaseLedger(database, ttl=60, renew=30))
    account.acquire(["r"], wanting(60, "r"), purpose="test")

    def refuse(*_arguments: object) -> None:
        raise DatabaseError("away")

    event.listen(database.engine, "begin", refuse)
    account.close()
    event.remove(database.engine, "begin", refuse)
    assert "leases could not be given back, they lapse by themselves: away" in caplog.text


def test_a_fork_inherits_no_lease_and_no_connection(database: Database) -> None:
    """C3"""
    ledger = LeaseLedger(database, ttl=60, renew=30)
    take(ledger, 60, "r", key="a")
    assert database.engine.pool.checkedin() > 0
    child = os.fork()
    if child == 0:
        outcome = 1
        try:
            empty = ledger.held("a") is None and not tokens(ledger) and database.engine.pool.checkedin() == 0
            got = take(ledger, 30, "r", key="a") and not take(ledger, 30, "r", key="b")
            ledger.close()
            outcome = 0 if empty and got else 2
        finally:
            os._exit(outcome)
    assert os.waitpid(child, 0)[1] == 0
    assert held(ledger, "r") == [("r", 60)]
    ledger.renew()
    assert ledger.held("a") is not None
    ledger.close()


def test_a_fork_while_another_thread_works_with_the_ledger_locks_nobody_out(database: Database) -> None:
    """C3"""
    ledger = LeaseLedger(database, ttl=60, renew=30)
    # The locks of the thread that would have let them go are not there in the child.
    with account_module._opening, ledger._lock:
        child = os.fork()
        if child == 0:
            outcome = 1
            try:
                signal.alarm(WAIT)
                account = Account(ledger)
                account.acquire(["r"], wanting(60, "r"), purpose="test")
                account.close()
                outcome = 0
            finally:
                os._exit(outcome)
    assert os.waitpid(child, 0)[1] == 0


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "release", "renew", "sleep", "die"]), st.integers(0, 2), st.integers(1, 70)
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_live_leases_never_exceed_the_capacity(database: Database, story: list[Step]) -> None:
    """C66 D15"""
    with database.begin() as connection:
        connection.execute(delete(Lease))
    clock, lost = Clock(), set()
    ledgers = [LeaseLedger(database, ttl=30, renew=29, clock=clock) for _ in range(3)]
    dead: list[LeaseLedger] = []
    for number, (what, who, amount) in enumerate(story):
        ledger = ledgers[who]
        if what == "take":
            take(ledger, amount, "r", key=f"{number}", on_lost=lambda number=number: lost.add(f"{number}"))
        elif what == "release":
            ledger.release(next(iter(ledger._holdings), "none"))
        elif what == "renew":
            ledger.renew()
        elif what == "sleep":
            clock.advance(amount / 2)
        else:
            # The process is gone: its rows stay, and nobody renews them.
            dead.append(ledger)
            ledgers[who] = LeaseLedger(database, ttl=30, renew=29, clock=clock)
        live = ledger.live(["r"])
        assert sum(lease.amount for lease in live) <= CAPACITY
    # Whoever was not told of a loss still holds what it thinks it holds.
    for ledger in ledgers:
        ledger.renew()
    live_tokens = {lease.token for lease in ledgers[0].live(["r"])}
    assert set().union(*(tokens(ledger) for ledger in ledgers)) <= live_tokens
    assert not {key for ledger in ledgers for key in ledger._holdings} & lost
    for ledger in ledgers + dead:
        ledger.close()
