"""The scheduler's role: one holder, a growing token, a wish to stop that reaches whoever holds it."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from sqlalchemy import select
from tests.support.timing import Clock

from rayzyme.database.tables import JobEvent
from rayzyme.jobs.role import ProcessIdentity, is_provably_gone, process_identity
from rayzyme.jobs.store import JobStore

ONE = ProcessIdentity("boot", 1, 10, 100, "north")
TWO = replace(ONE, pid=11)


def alive(_: ProcessIdentity) -> bool:
    return False


def gone(_: ProcessIdentity) -> bool:
    return True


def test_one_process_at_a_time_is_the_scheduler(store: JobStore, clock: Clock) -> None:
    """D15, D40"""
    assert store.role() is None
    first = store.take_role(ONE, {"host": "north", "pid": 10}, alive)
    assert first is not None
    assert store.take_role(TWO, {}, alive) is None
    again = store.take_role(ONE, {"host": "north", "pid": 10}, alive)
    assert again is not None
    assert again > first
    assert not store.renew_role(first)
    store.release_role(first)
    clock.now += 20.0
    assert store.renew_role(again)
    clock.now += 20.0
    assert store.take_role(TWO, {}, alive) is None
    clock.now += 10.0
    assert store.role() is None
    second = store.take_role(TWO, {}, alive)
    assert second is not None
    assert second > again
    assert not store.renew_role(again)
    third = store.take_role(ONE, {"pid": 10}, gone)
    assert third is not None
    held = store.role()
    assert held is not None
    assert (held.identity, held.identity.host, held.info, held.token) == (ONE, "north", {"pid": 10}, third)
    assert held.expires_at.timestamp() == clock.now + 30.0
    store.release_role(third)
    assert store.role() is None


def test_a_role_that_lapsed_may_be_renewed_until_somebody_takes_it(store: JobStore, clock: Clock) -> None:
    """D15"""
    token = store.take_role(ONE, {}, alive)
    assert token is not None
    clock.now += 31.0
    assert store.renew_role(token)
    assert store.take_role(TWO, {}, alive) is None


def test_a_wish_to_stop_is_for_a_scheduler_that_lives(store: JobStore, clock: Clock) -> None:
    """D59"""
    assert not store.request_stop()
    store.take_role(ONE, {}, alive)
    assert not store.stop_requested()
    assert store.request_stop("ada")
    assert store.stop_requested()
    store.take_role(TWO, {}, gone)
    assert store.stop_requested()
    clock.now += 31.0
    assert not store.request_stop()
    store.take_role(ONE, {}, alive)
    assert not store.stop_requested()


def test_what_the_scheduler_tells_of_itself_is_its_own_and_outlives_it(store: JobStore) -> None:
    """D12, D15, D40"""
    assert store.last_role_info() == {}
    first = store.take_role(ONE, {"limit": 1}, alive)
    assert first is not None
    assert store.describe_role(first, {"limit": 2})
    assert store.describe_role(first, {"limit": 2})
    with store.database.read() as connection:
        reasons = connection.execute(select(JobEvent.reason).order_by(JobEvent.id)).scalars().all()
    assert reasons == ["took the role", "was told other settings"]
    second = store.take_role(TWO, {"limit": 3}, gone)
    assert second is not None
    assert not store.describe_role(first, {"limit": 4})
    store.release_role(second)
    assert store.role() is None
    assert store.last_role_info() == {"limit": 3}


def test_a_process_is_gone_only_where_that_can_be_seen() -> None:
    """D40"""
    me = process_identity()
    assert me == process_identity()
    assert (me.pid, ProcessIdentity.from_dict(me.to_dict())) == (os.getpid(), me)
    assert not is_provably_gone(me)
    assert is_provably_gone(replace(me, start_time=me.start_time - 1))
    assert is_provably_gone(replace(me, pid=2**22 + 1))
    for elsewhere in (replace(me, boot_id="another"), replace(me, pid_namespace=1)):
        assert not is_provably_gone(replace(elsewhere, pid=2**22 + 1))


def test_a_zombie_is_gone() -> None:
    """D40"""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        from rayzyme.jobs.role import process_identity as identity_of_the_child

        os.write(write, json.dumps(identity_of_the_child().to_dict()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        identity = ProcessIdentity.from_dict(json.load(pipe))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert is_provably_gone(identity)
    os.waitpid(child, 0)
    assert is_provably_gone(identity)
