"""The scheduler's work: news in, decisions of the machine out, each written to the store before it is carried out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import ray
from ray.exceptions import RayError

from rayzyme.errors import DatabaseError, TaskNotSendable, UnknownJob
from rayzyme.jobs.changes import Applied, Change
from rayzyme.jobs.command_changes import change_for
from rayzyme.jobs.job import Job, Resources
from rayzyme.jobs.role import SETTINGS, is_provably_gone, process_identity
from rayzyme.jobs.scheduling import SchedulerMachine
from rayzyme.jobs.scheduling_config import SLOT
from rayzyme.jobs.scheduling_events import (
    CancelRequested,
    CapacityChanged,
    Command,
    ConfigChanged,
    Drain,
    Event,
    Fail,
    Finished,
    Held,
    Lost,
    Queued,
    Requeue,
    Restored,
    Start,
    StartRefused,
    Stop,
    Tick,
    Unheld,
)
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.store import JobStore
from rayzyme.monitoring import get_metrics_collector
from rayzyme.settings import Settings
from rayzyme_actors.cluster_capacity import cluster_capacity, largest_node
from rayzyme_actors.committing import Committer
from rayzyme_actors.explaining import explain_from_store
from rayzyme_actors.job_waiters import JobWaiters
from rayzyme_actors.running_job import RunOrder
from rayzyme_actors.scheduler_settings import scheduling_config, told_settings, with_told_settings
from rayzyme_actors.submitting import TRANSIENT_KEY
from rayzyme_actors.transient_tasks import TransientTasks
from rayzyme_actors.workflow_runner import runner_prefix, start_runner

logger = logging.getLogger(__name__)

ACTOR: Final = "actor"
"""Under which the scheduler tells, with its role, which actor it is."""

_RECONCILE_S = 30.0
_DURATIONS = 5000
_LOOK_AFTER_S = 2.0
_RUNNER_ANSWER_S = 10.0
_RUNNER_RETRY_S = 0.2
_EXPLAIN_WAIT_S, _EXPLAIN_LOOK_S = 2.0, 0.02
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 10.0
# How long the runner may take to know of a job that it was given.
_HANDED_OVER_S = 15.0
_RUNNING = frozenset({JobState.RUNNING})


class SchedulingLoop:
    """All in one event loop. `snapshot` may be read from any thread: it is replaced, never changed."""

    def __init__(
        self, settings: Settings, store: JobStore, info: Mapping[str, Any], only: frozenset[str] = frozenset()
    ) -> None:
        """Begin nothing.

        Args:
            settings: Of the program that started the scheduler.
            store: Where the jobs are.
            info: What is kept with the role: host, pid, Ray's address and namespace, and under `ACTOR` the actor, which is the
                same after it was started again.
            only: See to these jobs alone, and without the role; whoever starts a job first has it.
        """
        self._settings, self._store = settings, store
        self._info = {**info, SETTINGS: told_settings(settings)}
        self._only = only
        self._actor = f"scheduler:{info['host']}:{info['pid']}"
        self._config = scheduling_config(settings)
        self._token: int | None = None
        self._has_asked_for_role = asyncio.Event()
        # What writes are made with: that of a role which was lost is refused, where none would not be asked about.
        self._role_token: int | None = None
        self._machine: SchedulerMachine | None = None
        self._committer = Committer(self._apply)
        self._wakened = asyncio.Event()
        self._transient, self._waiters = TransientTasks(), JobWaiters()
        self._telling: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._rows: dict[str, Job] = {}
        self._events: list[Event] = []
        self._capacity: Resources = {}
        self._seen = self._reconciled = self._looked_after = 0.0
        # Which runner has which attempt: the next one may be elsewhere.
        self._runner_of: dict[str, tuple[str | None, int]] = {}
        self._runner: Any = None
        self._runner_id: str | None = None
        self.snapshot: dict[str, Any] = {"leads": False, "stopped": False}

    async def remember_settings(self) -> None:
        """Comes first: Ray starts a killed actor with what it was given once; what it was told since is in the database."""
        info = await self._ask_store(self._store.last_role_info)
        if info.get(ACTOR) == self._info[ACTOR]:
            self._settings = with_told_settings(self._settings, info)
            self._info = {**self._info, SETTINGS: told_settings(self._settings)}
            self._config = scheduling_config(self._settings)

    async def run(self) -> None:
        """Wait for the role, and lead while it is ours; ends when it was told to stop and nothing runs any more."""
        identity = process_identity()
        if self._only:
            self._has_asked_for_role.set()
        while self._only and not self._is_draining:
            await self._lead(None)
        while not self._is_draining:
            self._has_asked_for_role.clear()
            try:
                self._token = await asyncio.to_thread(self._store.take_role, identity, self._info, is_provably_gone)
            except DatabaseError as error:
                logger.warning("the scheduler waits for the database: %s", error)
            self._has_asked_for_role.set()
            if self._token is None:
                await asyncio.sleep(self._settings.scheduler.poll_interval)
            else:
                await self._lead(self._token)
        self.snapshot = {"leads": False, "stopped": True}

    # What the actor's methods ask for, in this loop.

    def wake(self) -> None:
        """There may be news."""
        self._wakened.set()

    async def keep_transient(self, key: str, tasks: Mapping[str, Any]) -> None:
        """Keep tasks that only this memory holds.

        Raises:
            TaskNotSendable: Another scheduler runs the jobs, and its memory is elsewhere.
        """
        holder = None if self._only else await self._ask_store(self._store.role)
        if holder is not None and holder.identity != process_identity() and not is_provably_gone(holder.identity):
            raise TaskNotSendable(
                f"the scheduler that runs the jobs lives in another Ray (process {holder.info.get('pid')} on "
                f"{holder.info.get('host')}), which cannot be given code of this program: put functions and classes into a module"
            )
        self._transient.keep(key, tasks)

    async def bind_transient(self, key: str, job_id: str) -> None:
        """They are this job's, and may be forgotten with it."""
        self._transient.bind(key, job_id)
        if (await self._ask_store(self._store.job, job_id)).state in FINAL:
            self._release_waiters(job_id)

    async def drop_transient(self, key: str) -> None:
        """Their job was refused."""
        self._transient.drop(key)

    async def wait_for(self, job_id: str, timeout: float) -> bool:
        """Whether the job came to its end within `timeout` seconds."""
        try:
            if (await self._ask_store(self._store.job, job_id)).state in FINAL:
                return True
        except UnknownJob:
            return True
        self.wake()
        return await self._waiters.wait(job_id, timeout)

    async def explain(self, job_id: str) -> dict[str, Any]:
        """Why a job waits, as the machine sees it."""
        if self._machine is None:
            return explain_from_store(self._store, job_id, self._settings)
        if job_id not in self._rows:
            # Accepted a moment ago.
            self.wake()
            end = time.monotonic() + _EXPLAIN_WAIT_S
            while job_id not in self._machine.jobs and time.monotonic() < end:
                await asyncio.sleep(_EXPLAIN_LOOK_S)
        return self._machine.explain(job_id, time.time()).to_dict()

    async def configure(self, settings: Settings) -> None:
        """Take other limits, or another strategy; when this returns, and this scheduler leads, they hold after a restart too."""
        self._settings = settings
        self._info = {**self._info, SETTINGS: told_settings(settings)}
        # The role is taken with what was known when that began.
        await self._has_asked_for_role.wait()
        if self._token is not None:
            await self._ask_store(self._store.describe_role, self._token, self._info)
        await self._ask_runner("configure", settings)
        config = scheduling_config(settings)
        if config != self._config:
            self._config = config
            self._tell(ConfigChanged(config))

    async def drain(self) -> None:
        """Start nothing more; `run` ends when nothing runs."""
        self._is_draining = True
        self._tell(Drain())

    # Leading.

    async def _lead(self, token: int | None) -> None:
        logger.info("this scheduler leads (token %s)", token)
        self._role_token = token
        followers = [asyncio.create_task(self._follow_runner())]
        if token is not None:
            followers.append(asyncio.create_task(self._keep_role(token)))
        try:
            await self._restore()
            while self._token == token and not (self._is_draining and not self._running()):
                await self._step()
        finally:
            for follower in followers:
                follower.cancel()
            self.snapshot = {"leads": False, "stopped": self._is_draining}
            if self._token is not None:
                with suppress(DatabaseError):
                    await asyncio.to_thread(self._store.release_role, self._token)
                self._token = None

    async def _restore(self) -> None:
        """Take up what the store says; what runs by its word and does not run by the runner's is lost."""
        while self._runner_id is None:
            await asyncio.sleep(_RUNNER_RETRY_S)
        self._seen = self._reconciled = time.time()
        self._capacity = await asyncio.to_thread(cluster_capacity, self._settings)
        await self._note_cluster()
        usage = await self._ask_store(self._store.usage)
        durations = await self._ask_store(self._store.recent_durations, _DURATIONS)
        jobs = [job for job in await self._ask_store(self._store.live_jobs) if self._is_ours(job)]
        self._machine = SchedulerMachine(self._config, now=time.time(), usage=usage, durations=durations)
        self._rows = {job.job_id: job for job in jobs}
        self._events = [CapacityChanged(self._capacity), Restored(jobs)]
        await self._lose_what_our_runner_lost()
        if self._is_draining:
            self._events.append(Drain())

    async def _step(self) -> None:
        """Wait for news, decide, write, carry out."""
        machine = self._machine
        assert machine is not None, "it is made before the first step"
        if not self._events:
            wake = machine.next_wake(time.time())
            poll = self._settings.scheduler.poll_interval
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._wakened.wait(), poll if wake is None else max(0.0, min(poll, wake - time.time()))
                )
        self._wakened.clear()
        if self._runner_id is None:
            # A start that nobody takes up would count as lost.
            await asyncio.sleep(_RUNNER_RETRY_S)
            return
        try:
            await self._look()
        except DatabaseError as error:
            logger.warning("the scheduler waits for the database: %s", error)
            await asyncio.sleep(self._settings.scheduler.poll_interval)
            return
        commands: list[Command] = []
        for event in self._take_events() or [Tick()]:
            commands += machine.handle(event, time.time())
        if commands:
            await self._obey(commands)
        self._publish_snapshot()

    async def _look(self) -> None:
        """Read what changed in the store, by whomever, and tell the machine what it does not know."""
        begin = time.time()
        if begin - self._reconciled < _RECONCILE_S:
            jobs = await asyncio.to_thread(self._store.changed_since, self._seen, dict(self._rows))
        else:
            jobs = await self._reconcile()
        self._seen = begin
        for job in jobs:
            if self._is_ours(job):
                self._observe(job)
        if begin - self._looked_after > _LOOK_AFTER_S:
            self._looked_after = begin
            await self._look_after()

    async def _look_after(self) -> None:
        """Leases that lapsed though their runner answers, and the wish of a user that the scheduler stops."""
        lapsed = [job for job in await asyncio.to_thread(self._store.lapsed, time.time()) if self._is_ours(job)]
        for job in lapsed:
            self._tell(Lost(job.job_id, job.attempt, "its lease lapsed"))
        is_to_blame = any(self._runner_of.get(job.job_id) == (self._runner_id, job.attempt) for job in lapsed)
        if self._runner_id is not None and is_to_blame:
            logger.warning("the runner does not renew its leases: it is started again")
            self._runner_id = None
            ray.kill(self._runner, no_restart=False)
        if not self._is_draining and await asyncio.to_thread(self._store.stop_requested):
            await self.drain()

    async def _reconcile(self) -> list[Job]:
        """Everything that is live, and what ended while nobody listened; what the cluster has now."""
        self._reconciled = time.time()
        jobs = await asyncio.to_thread(self._store.live_jobs)
        for job_id in self._rows.keys() - {job.job_id for job in jobs}:
            with suppress(UnknownJob):
                jobs.append(await asyncio.to_thread(self._store.job, job_id))
        capacity = await asyncio.to_thread(cluster_capacity, self._settings)
        if capacity != self._capacity:
            self._capacity = capacity
            await self._note_cluster()
            self._tell(CapacityChanged(capacity))
        with suppress(RayError, TimeoutError):
            await asyncio.wait_for(self._lose_what_our_runner_lost(), _RUNNER_ANSWER_S)
        return jobs

    def _is_ours(self, job: Job) -> bool:
        return not self._only or job.job_id in self._only

    def _observe(self, job: Job) -> None:
        known = self._rows.get(job.job_id)
        if known is not None and known.version >= job.version:
            return
        if job.state in FINAL:
            if known is not None:
                self._forget(job)
            self._release_waiters(job.job_id)
            return
        self._rows[job.job_id] = job
        if known is None or (known.attempt, known.state) != (job.attempt, job.state):
            self._tell(Queued([job]))
        if job.cancel_requested and (known is None or not known.cancel_requested):
            self._tell(CancelRequested(job.job_id))
        if known is not None and job.is_held is not known.is_held:
            self._tell(Held(job.job_id) if job.is_held else Unheld(job.job_id))

    def _forget(self, job: Job) -> None:
        known = self._rows.pop(job.job_id)
        self._count_end(job)
        ran_s = time.time() - known.started_at if known.started_at is not None else 0.0
        self._tell(Finished(job.job_id, job.state, ran_s))

    # Carrying out.

    async def _obey(self, commands: Sequence[Command]) -> None:
        written = [command for command in commands if not isinstance(command, Stop) and self._is_up_to_date(command)]
        applied = await self._committer.commit_all(
            [change_for(command, self._rows[command.job_id], self._actor, self._runner_id or "") for command in written]
        )
        started = []
        for command, outcome in zip(written, applied, strict=True):
            if self._note_applied(command, outcome) and isinstance(command, Start):
                started.append(outcome)
        if started:
            await self._hand_to_runner(started)
        for command in commands:
            if isinstance(command, Stop):
                await self._ask_runner("stop", command.job_id, "its user cancelled it")

    def _is_up_to_date(self, command: Command) -> bool:
        """Whether no later word of the same batch was that the job is over, or that somebody else began its next attempt."""
        row = self._rows.get(command.job_id)
        if row is None:
            return False
        match command:
            case Start(attempt=attempt):
                return row.attempt < attempt
            case Requeue(attempt=attempt) | Fail(attempt=attempt):
                return row.attempt == attempt
        return True

    def _note_applied(self, command: Command, outcome: Applied) -> bool:
        """Take over what the store has now; whether it is what was commanded."""
        job, metrics = outcome.job, get_metrics_collector()
        if not outcome.accepted:
            logger.info("%s was refused: %s", command, outcome.why)
            # What the machine decided is not so: it must know what is instead.
            if job is None or isinstance(command, Start):
                self._tell(StartRefused(command.job_id, job))
            else:
                self._tell(Queued([job]))
        if job is None or job.state in FINAL:
            is_news = self._rows.pop(command.job_id, None) is not None
            self._release_waiters(command.job_id)
            if is_news and job is not None:
                self._count_end(job)
            return False
        self._rows[command.job_id] = job
        if outcome.accepted and isinstance(command, Start):
            self._runner_of[job.job_id] = self._runner_id, job.attempt
            metrics.record("rayzyme_job_wait_seconds", time.time() - job.submitted_at, unit="seconds")
        if outcome.accepted and isinstance(command, Requeue):
            metrics.increment("rayzyme_retries_total", tags={"fault": "site"})
        return outcome.accepted

    async def _hand_to_runner(self, started: Sequence[Applied]) -> None:
        orders = []
        for applied in started:
            job, document = applied.job, applied.spec
            assert job is not None
            assert document is not None
            key = document.get(TRANSIENT_KEY)
            transient = {} if key is None else self._transient.get(key)
            if transient is None:
                await self._fail_transient(job)
                continue
            orders.append(
                RunOrder(
                    job.job_id,
                    job.name,
                    job.attempt,
                    applied.token,
                    document,
                    transient,
                    is_first=job.attempt == 1,
                )
            )
        # The next decision need not wait for the runner's answer: what it was told first it does first, and what does not
        # reach it is found missing there.
        told = asyncio.create_task(self._ask_runner("run", orders))
        self._telling.add(told)
        told.add_done_callback(self._telling.discard)

    async def _ask_store(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What the store answers; while it cannot, nothing else can be done either."""
        wait = _FIRST_RETRY_S
        while True:
            try:
                return await asyncio.to_thread(question, *arguments)
            except DatabaseError as error:
                logger.warning("the scheduler waits for the database: %s", error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_RETRY_S)

    async def _note_cluster(self) -> None:
        """For programs that submit without being connected to Ray."""
        node = await asyncio.to_thread(largest_node)
        await self._ask_store(self._store.note_cluster, "ray", dict(self._capacity))
        await self._ask_store(self._store.note_cluster, "largest node", node)

    async def _fail_transient(self, job: Job) -> None:
        message = (
            "one of its tasks cannot be imported by other processes, and the scheduler that it was handed to is gone; put its "
            "function or class into a module that is importable where the tasks run, and submit it again"
        )
        values = {"error_class": "TaskNotDurable", "error_message": message, "fault": "job"}
        change = Change(
            job_id=job.job_id, attempt=job.attempt, states=_RUNNING, reason=message, actor=self._actor, to=JobState.FAILED,
            values=values, release=True,
        )  # fmt: skip
        applied = await self._committer.commit(change)
        # Refused, it is not over, and the next look tells what it is.
        if applied.job is not None and applied.job.state in FINAL:
            self._forget(applied.job)
            self._release_waiters(job.job_id)

    async def _ask_runner(self, method: str, *arguments: Any) -> None:
        """A runner that does not answer is gone; `_follow_runner` says so, and its jobs are lost."""
        if self._runner is None:
            return
        with suppress(RayError, TimeoutError):
            await asyncio.wait_for(getattr(self._runner, method).remote(*arguments), _RUNNER_ANSWER_S)

    # Beside the steps.

    async def _follow_runner(self) -> None:
        """Have a runner, hear its news, and report its jobs lost when it dies."""
        metrics = get_metrics_collector()
        while True:
            try:
                self._runner = start_runner(self._settings, *self._only)
                runner_id: str = await self._runner.begin.remote()
                await self._runner.configure.remote(self._settings)
                self._runner_id = runner_id
                await self._lose_what_our_runner_lost()
                self.wake()
                while True:
                    for ended in await self._runner.news.remote():
                        # What became of the job is in the store; the news only say that it is time to look.
                        metrics.record("rayzyme_job_run_seconds", ended.ran_s, unit="seconds")
                    self.wake()
            except RayError as error:
                logger.warning("the runner was lost and is started again: %s", str(error).strip().splitlines()[0])
                self._runner_id = None
                await asyncio.sleep(_RUNNER_RETRY_S)

    async def _lose_what_our_runner_lost(self) -> None:
        """Jobs that run by the store's word and not by the runner's are lost, unless another runner has a live lease on them."""
        here: dict[str, int] = await self._runner.running.remote()
        self._runner_of |= {
            job_id: (self._runner_id, attempt) for job_id, attempt in here.items() if job_id in self._rows
        }
        missing = [job for job in self._running() if here.get(job.job_id) != job.attempt]
        if not missing:
            return
        holders = await self._ask_store(self._store.lease_owners, [job.job_id for job in missing])
        ours = runner_prefix(self._settings, *self._only)
        for job in missing:
            is_ours = all(owner.startswith(ours) for owner in holders.get(job.job_id, ()))
            was_just_given = holders.get(job.job_id) == {self._runner_id} and self._is_young(job)
            if is_ours and not was_just_given:
                self._tell(Lost(job.job_id, job.attempt, "its runner is gone"))

    @staticmethod
    def _is_young(job: Job) -> bool:
        return job.started_at is not None and time.time() - job.started_at < _HANDED_OVER_S

    async def _keep_role(self, token: int) -> None:
        """Renew the role; who cannot for the time of a lease has lost it."""
        leases = self._settings.leases
        valid_until = time.monotonic() + leases.ttl
        while True:
            await asyncio.sleep(min(leases.renew, max(0.1, valid_until - time.monotonic())))
            try:
                is_ours = await asyncio.to_thread(self._store.renew_role, token)
            except DatabaseError as error:
                logger.warning("the scheduler's role could not be renewed: %s", error)
                is_ours = time.monotonic() < valid_until
            else:
                valid_until = time.monotonic() + leases.ttl
            if not is_ours:
                logger.error("this scheduler has lost its role and stops deciding")
                self._token = None
                self.wake()
                return

    def _apply(self, changes: Sequence[Change]) -> list[Applied]:
        begin = time.perf_counter()
        capacity: dict[str, float] = dict(self._capacity) | {SLOT: float(self._config.max_concurrent_jobs)}
        for change in changes:
            for resource in change.acquire:
                limit = self._config.quota_capacity(resource)
                if limit is not None:
                    capacity[resource] = limit
        applied = self._store.apply(changes, capacity=capacity, role_token=self._role_token)
        get_metrics_collector().record("rayzyme_commit_seconds", time.perf_counter() - begin, unit="seconds")
        return applied

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._wakened.set()

    def _running(self) -> list[Job]:
        return [job for job in self._rows.values() if job.state is JobState.RUNNING]

    def _count_end(self, job: Job) -> None:
        metrics = get_metrics_collector()
        metrics.increment("rayzyme_jobs_total", tags={"state": job.state.value})
        if job.state is JobState.CANCELLED:
            metrics.increment("rayzyme_cancellations_total")

    def _release_waiters(self, job_id: str) -> None:
        """The job has ended: whoever waits for it is told, and what only this memory holds of it is not needed any more."""
        self._runner_of.pop(job_id, None)
        self._transient.forget_job(job_id)
        self._waiters.release(job_id)

    def _publish_snapshot(self) -> None:
        running = len(self._running())
        queued = len(self._rows) - running
        metrics = get_metrics_collector()
        metrics.set_gauge("rayzyme_jobs_queued", queued)
        metrics.set_gauge("rayzyme_jobs_running", running)
        self.snapshot = {
            "leads": True, "stopped": False, "running": running, "queued": queued, "runner_id": self._runner_id,
            "max_concurrent_jobs": self._config.max_concurrent_jobs, "strategy": self._config.strategy,
            "capacity": dict(self._capacity), "token": self._token, "draining": self._is_draining,
        }  # fmt: skip
