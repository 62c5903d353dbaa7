"""The scheduler's loop and the store together, whatever happens between any two of its steps."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select
from tests.support.job_samples import SLOT, change, request, settled, start
from tests.support.stepped_scheduling import ListedRunner, SteppedScheduling, surroundings
from tests.support.timing import Clock

from rayzyme.database import open_database
from rayzyme.database.administration import first_altered
from rayzyme.database.tables import Lease
from rayzyme.errors import QuotaExceeded
from rayzyme.jobs import submitting
from rayzyme.jobs.applying import LATE_RESULT
from rayzyme.jobs.changes import Change
from rayzyme.jobs.job import Job, TaskPriority
from rayzyme.jobs.role import process_identity
from rayzyme.jobs.rows import moment
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.store import JobStore
from rayzyme.jobs.strategies import STRATEGIES
from rayzyme.settings import load_settings
from rayzyme_actors.running_job import RunOrder
from rayzyme_actors.scheduler_settings import scheduling_config

# Longer than the longest wait, so that one renewal after it is in time.
TTL = 600.0
CLUSTER = {"cpu": 4.0, "gpu": 1.0}
# Above 5 s and the jitter of the first wait after a lost runner; the others double.
LONGEST_DELAY = 400.0
GPU = {SLOT: 1.0, "gpu": 1.0}
NEEDS = [{SLOT: 1.0}, GPU, {SLOT: 1.0, "cpu": 3.0}, {SLOT: 1.0, "cpu": 2.0, "gpu": 1.0}]


def sections(strategy: str) -> dict[str, Any]:
    """Settings without reservations, so that whatever fits must start; `ada` may run two jobs."""
    return {
        "scheduler": {
            "max_concurrent_jobs": 3, "priority_strategy": strategy, "max_bypass": 10**6, "reserve_after": 1e12,
        },
        "quotas": {"users": {"ada": {"running": 2, "queued": 6}}},
        "leases": {"ttl": TTL},
    }  # fmt: skip


class SchedulerWithStore(RuleBasedStateMachine):
    """One store; users, a scheduler and a runner that do as the rules say, and the ghosts of runners that were replaced."""

    empty_database: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(dir=self.empty_database.parent))
        shutil.copy(self.empty_database, self.folder / "rayzyme.db")
        self.clock = Clock(1_800_000_000.0)
        self.store = JobStore(open_database(f"sqlite:///{self.folder / 'rayzyme.db'}"), clock=self.clock, lease_ttl=TTL)
        self.loop = asyncio.new_event_loop()
        self.ghosts: list[RunOrder] = []
        self.elsewhere: list[RunOrder] = []
        self.elsewhere_ids = map("elsewhere:{}".format, count())
        self.elsewhere_id = next(self.elsewhere_ids)
        self.submitted: list[str] = []
        self.results: dict[str, int] = {}
        self.killed: list[ListedRunner] = []
        self.runner, self.is_stalled = ListedRunner(), False
        self.stack = ExitStack()
        # So that the jitter of waits, which goes by the job's id, is the same in every run of an example.
        numbers = map("{:012x}".format, count())
        self.stack.enter_context(
            patch.object(submitting, "secrets", SimpleNamespace(token_hex=lambda _: next(numbers)))
        )
        self.stack.enter_context(surroundings(self.clock, lambda: CLUSTER, self.killed.append))

    @initialize(strategy=st.sampled_from(sorted(STRATEGIES)))
    def begin(self, strategy: str) -> None:
        """A scheduler takes up an empty store."""
        self.settings = load_settings(None, sections(strategy))
        self.config = scheduling_config(self.settings)
        self.limits = {SLOT: 3.0, **CLUSTER, "quota:running:ada": 2.0}
        self.lead()

    def lead(self) -> None:
        token = self.store.take_role(process_identity(), {}, lambda _: True)
        assert token is not None
        self.scheduler = SteppedScheduling(self.settings, self.store, token)
        self.do(self.scheduler.restore(self.runner))

    def do(self, work: Any) -> None:
        """Have the scheduler do something; a runner that it kills is replaced as Ray would."""
        self.loop.run_until_complete(work)
        if self.killed:
            self.killed.clear()
            self.replace_runner()

    def replace_runner(self) -> None:
        self.ghosts += self.runner.orders.values()
        self.runner, self.is_stalled = ListedRunner(), False
        self.loop.run_until_complete(self.scheduler.follow(self.runner))

    # Users.

    @rule(
        owner=st.sampled_from(["ada", "bob", "cy"]),
        priority=st.sampled_from(TaskPriority),
        needs=st.sampled_from(NEEDS),
    )
    def submit(self, owner: str, priority: TaskPriority, needs: dict[str, float]) -> None:
        """One more job, unless its owner has too many."""
        asked = request(owner=owner, priority=priority, needs=needs, job_type="sample")
        try:
            self.submitted += self.store.submit([asked], quotas=self.config)
        except QuotaExceeded:
            assert sum(job.owner == owner and job.state is JobState.QUEUED for job in self.live()) == 6

    @rule(data=st.data())
    @precondition(lambda self: self.live())
    def cancel(self, data: st.DataObject) -> None:
        """A queued job ends at once, a running one is asked to."""
        job = data.draw(st.sampled_from(self.live()))
        self.take_place(data, lambda: self.store.request_cancel(job.job_id))

    @rule(data=st.data(), is_held=st.booleans())
    @precondition(lambda self: self.live())
    def hold(self, data: st.DataObject, is_held: bool) -> None:
        """A queued job waits for its user, or no longer."""
        job = data.draw(st.sampled_from(self.live()))
        steer = self.store.hold if is_held else self.store.unhold
        self.take_place(data, lambda: steer(job.job_id))

    # The runner.

    @rule(
        data=st.data(), to=st.sampled_from([JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED, JobState.QUEUED])
    )
    @precondition(lambda self: self.runner.orders and not self.is_stalled)
    def end(self, data: st.DataObject, to: JobState) -> None:
        """A run ends, as its user wished, or as it comes; `queued`: the workflow is tried again."""
        runner = self.runner
        order = runner.orders[data.draw(st.sampled_from(sorted(runner.orders, key=self.submitted.index)))]

        def ending() -> None:
            self.commit(order, JobState.CANCELLED if order.job_id in runner.told_to_stop else to)
            runner.told_to_stop.discard(order.job_id)
            del runner.orders[order.job_id]

        self.take_place(data, ending)

    @rule(data=st.data())
    @precondition(lambda self: self.ghosts or self.elsewhere)
    def end_late(self, data: st.DataObject) -> None:
        """A run ends whose runner was given up, or is another's."""
        runs = self.ghosts or self.elsewhere
        order = runs.pop(data.draw(st.integers(0, len(runs) - 1)))
        self.take_place(data, lambda: self.commit(order, JobState.COMPLETED))

    def take_place(self, data: st.DataObject, happening: Callable[[], object]) -> None:
        """Let something happen at once, or while the scheduler is about to write what it decided."""
        if data.draw(st.booleans()):
            self.scheduler.meanwhile = happening
            self.do(self.scheduler.step())
            if self.scheduler.meanwhile is None:
                return
            self.scheduler.meanwhile = None
        happening()

    def commit(self, order: RunOrder, to: JobState) -> None:
        """Write an end; it counts if and only if the attempt is still the job's own."""
        before = self.store.job(order.job_id)
        is_current = (before.state, before.attempt) == (JobState.RUNNING, order.attempt)
        ending = change(order.job_id, to, order.attempt, release=True, tasks=(settled("load", order.attempt),))
        (applied,) = self.store.apply([ending])
        assert applied.accepted is is_current
        if applied.accepted and to in FINAL:
            self.results[order.job_id] = self.results.get(order.job_id, 0) + 1
        if not applied.accepted:
            assert self.store.events(order.job_id)[-1].reason == LATE_RESULT

    @rule()
    def lose_runner(self) -> None:
        """It is killed, and Ray starts another."""
        self.replace_runner()

    @rule()
    def stall_runner(self) -> None:
        """It renews nothing from now on."""
        self.is_stalled = True

    @rule()
    @precondition(lambda self: self.is_stalled)
    def wake_runner(self) -> None:
        """It renews what it still can, and gives up the rest."""
        self.is_stalled = False
        self.renew()

    def renew(self) -> None:
        self.store.renew(self.elsewhere_id)
        if self.is_stalled:
            return
        self.store.renew(self.runner.runner_id)
        for job_id in self.store.no_longer_running({name: one.attempt for name, one in self.runner.orders.items()}):
            self.ghosts.append(self.runner.orders.pop(job_id))

    # The scheduler.

    @rule()
    def step(self) -> None:
        """It looks and decides."""
        self.do(self.scheduler.step())

    @rule()
    def compare_notes(self) -> None:
        """It reads everything that is live."""
        self.scheduler.compare_notes()
        self.do(self.scheduler.step())

    @rule()
    def restart(self) -> None:
        """It is killed, and another takes the role."""
        self.lead()

    @rule()
    def oversleep(self) -> None:
        """It loses its role and decides once more without knowing; nothing of that is written, and another leads."""
        self.clock.now += TTL + 1
        before = {job.job_id: job for job in self.live()}
        self.loop.run_until_complete(self.scheduler.step())
        self.killed.clear()
        assert {job.job_id: job for job in self.live()} == before
        self.renew()
        self.lead()

    @rule()
    @precondition(lambda self: self.queued())
    def act_without_role(self) -> None:
        """One that was replaced starts a job."""
        job = self.queued()[0]
        old = Change(
            job_id=job.job_id, attempt=job.attempt, states=frozenset({JobState.QUEUED}), to=JobState.RUNNING,
            new_attempt=job.attempt + 1, reason="started", actor="old", acquire=job.needs, lease_owner="old",
        )  # fmt: skip
        (applied,) = self.store.apply([old], capacity=self.limits, role_token=self.scheduler.token - 1)
        assert not applied.accepted

    @rule(data=st.data())
    @precondition(lambda self: self.queued())
    def start_elsewhere(self, data: st.DataObject) -> None:
        """A scheduler that sees to one job alone, and needs no role for it, starts that where there is room."""
        job = data.draw(st.sampled_from(self.queued()))
        order = RunOrder(job.job_id, job.name, job.attempt + 1, None, {})
        starting = start(job.job_id, order.attempt, acquire=self.config.needs(job), lease_owner=self.elsewhere_id)

        def happening() -> None:
            if self.store.apply([starting], capacity=self.limits)[0].accepted:
                self.elsewhere.append(order)

        self.take_place(data, happening)

    @rule()
    def kill_elsewhere(self) -> None:
        """The runners of those schedulers are killed; their jobs have nobody who renews their leases."""
        self.elsewhere.clear()
        self.elsewhere_id = next(self.elsewhere_ids)

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, LONGEST_DELAY]))
    def wait(self, seconds: float) -> None:
        """Time passes; who lives renews what they hold."""
        self.clock.now += seconds
        assert self.store.renew_role(self.scheduler.token)
        self.renew()

    @rule()
    def start_what_fits(self) -> None:
        """Once the scheduler has seen everything, nothing waits that could start."""
        self.wait(3.0)
        self.do(self.scheduler.settle())
        # A start that the store refused is tried again after a moment.
        self.wait(3.0)
        self.do(self.scheduler.settle())
        free = {name: limit - self.held().get(name, 0.0) for name, limit in self.limits.items()}
        for job in self.queued():
            if not job.is_held and (job.not_before or 0.0) <= self.clock.now:
                needs = self.config.needs(job)
                assert any(amount > free[name] for name, amount in needs.items()), (job, free)

    # What holds at any time.

    @invariant()
    def no_job_is_lost(self) -> None:
        """Every job that was accepted is there, and counted once."""
        assert sum(self.store.counts().values()) == len(self.submitted)

    @invariant()
    def no_result_counts_twice(self) -> None:
        """Not the runner's, nor a ghost's after it."""
        assert all(times == 1 for times in self.results.values())

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        """By the leases that live."""
        held = self.held()
        assert all(amount <= self.limits[name] for name, amount in held.items()), held

    @invariant()
    def only_running_jobs_hold_something(self) -> None:
        """Whoever waits or has ended gave it back."""
        with self.store.database.read() as connection:
            holders = set(connection.execute(select(Lease.purpose).where(Lease.resource != "scheduler")).scalars())
        assert holders <= {job.job_id for job in self.live() if job.state is JobState.RUNNING}

    @invariant()
    def the_machine_is_consistent(self) -> None:
        """Its books agree with each other."""
        self.scheduler.machine.check_invariants()

    def teardown(self) -> None:
        """When users let everything go on and nothing more is lost, every job ends within its turn, and nothing is left."""
        try:
            if hasattr(self, "scheduler"):
                self.drain()
        finally:
            self.stack.close()
            self.loop.close()
            self.store.database.close()
            shutil.rmtree(self.folder)

    def drain(self) -> None:
        for job in self.live():
            self.store.unhold(job.job_id)
        if self.is_stalled:
            self.replace_runner()
        self.kill_elsewhere()
        # One job at least has its turn in each round; in the first ones what lapsed or was lost is found.
        for _ in range(len(self.live()) + 4):
            self.wait(LONGEST_DELAY)
            self.do(self.scheduler.settle())
            for order in self.ghosts:
                self.commit(order, JobState.COMPLETED)
            self.ghosts.clear()
            for job_id, order in list(self.runner.orders.items()):
                self.commit(order, JobState.CANCELLED if job_id in self.runner.told_to_stop else JobState.COMPLETED)
            self.runner.orders.clear()
        assert self.live() == []
        self.do(self.scheduler.settle())
        assert not self.scheduler.machine.jobs
        assert self.held() == {}
        checked, altered = first_altered(self.store.database)
        assert altered is None
        assert checked >= len(self.submitted)

    def live(self) -> list[Job]:
        return self.store.live_jobs()

    def queued(self) -> list[Job]:
        return [job for job in self.live() if job.state is JobState.QUEUED]

    def held(self) -> dict[str, float]:
        wanted = (
            select(Lease.resource, func.sum(Lease.amount))
            .where(Lease.resource != "scheduler", Lease.expires_at > moment(self.clock.now))
            .group_by(Lease.resource)
        )
        with self.store.database.read() as connection:
            return dict(connection.execute(wanted).all())


@pytest.fixture(autouse=True)
def _empty_database(tmp_path: Path) -> None:
    SchedulerWithStore.empty_database = tmp_path / "empty.db"
    open_database(f"sqlite:///{SchedulerWithStore.empty_database}").close()


@pytest.fixture
def together() -> Iterator[SchedulerWithStore]:
    """A scheduler with a job that its runner has."""
    together = SchedulerWithStore()
    together.begin("priority")
    together.submit("bob", TaskPriority.NORMAL, GPU)
    together.step()
    yield together
    together.teardown()


def test_jobs_are_kept_started_and_ended_once_whoever_dies_in_between() -> None:
    """D15, D19, D20, D40, D44, D46, D47, D50"""
    run_state_machine_as_test(
        SchedulerWithStore,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            # To make an example small takes minutes.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )  # fmt: skip


def test_a_job_whose_last_commit_outlived_its_runner_has_ended(together: SchedulerWithStore) -> None:
    """D19"""
    together.lose_runner()
    together.commit(together.ghosts.pop(), JobState.COMPLETED)
    together.step()
    together.scheduler.machine.check_invariants()
    assert not together.scheduler.machine.jobs


def test_a_job_that_ends_while_it_is_about_to_be_queued_again_has_ended(together: SchedulerWithStore) -> None:
    """D19"""
    together.lose_runner()
    ghost = together.ghosts.pop()
    together.scheduler.meanwhile = lambda: together.commit(ghost, JobState.COMPLETED)
    together.step()
    assert together.scheduler.meanwhile is None
    together.start_what_fits()
    assert not together.scheduler.machine.jobs


def test_a_job_that_somebody_else_began_is_not_begun_again(together: SchedulerWithStore) -> None:
    """D40: that the job before it has ended and that this one has begun elsewhere is read in one look"""
    together.submit("bob", TaskPriority.NORMAL, GPU)
    together.step()
    (waiting,) = together.queued()
    together.commit(together.runner.orders.popitem()[1], JobState.COMPLETED)
    together.store.apply([start(waiting.job_id, acquire=GPU, lease_owner="elsewhere")], capacity=together.limits)
    together.step()
    assert together.runner.orders == {}
    assert together.scheduler.machine.jobs[waiting.job_id] == together.store.job(waiting.job_id)


def test_the_loss_of_an_attempt_does_not_end_the_next_one(together: SchedulerWithStore) -> None:
    """D14, D17: that a runner was lost, and that its job runs elsewhere since, is read in one look"""
    together.lose_runner()
    ghost = together.ghosts.pop()
    together.commit(ghost, JobState.QUEUED)
    together.store.apply([start(ghost.job_id, 2, acquire=GPU, lease_owner="elsewhere")], capacity=together.limits)
    together.step()
    job = together.store.job(ghost.job_id)
    assert (job.state, job.attempt, job.site_faults) == (JobState.RUNNING, 2, 0)
    assert together.scheduler.machine.jobs[ghost.job_id] == job
