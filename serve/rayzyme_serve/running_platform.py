"""The whole platform, up and down: Ray, the scheduler, the HTTP endpoint. What runs already is left as it is.

What was started is written down (`rayzyme_actors.platform_record`), and exactly that is ended again.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from rayzyme.database import record_event
from rayzyme.errors import InvalidInput, WorkerLost
from rayzyme.jobs.role import RoleHolder, is_provably_gone
from rayzyme.jobs.store import JobStore
from rayzyme.settings import Settings, use_settings
from rayzyme.storage.disk import sole_owner
from rayzyme_actors.connection import connect, disconnect, names_cluster
from rayzyme_actors.own_ray import authentication, end_own_ray, start_own_ray
from rayzyme_actors.platform_record import PlatformRecord, read_record, record_file, remove_record, write_record
from rayzyme_actors.scheduler_settings import store_of
from rayzyme_serve import access

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Tells a person what is being done."""

_LEADS_S: Final = 60.0
_HEALTHY_S: Final = 180.0
_QUESTION_S: Final = 60.0
_LOOK_S: Final = 0.2
_LISTENED_BY: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was said about the platform to be started; None takes what runs, else what the settings say.

    Attributes:
        host: To listen on.
        port: To listen on.
        num_cpus: Logical CPUs of a Ray of our own.
        dashboard_port: Of a Ray of our own.
    """

    host: str | None = None
    port: int | None = None
    num_cpus: int | None = None
    dashboard_port: int | None = None


def start_platform(settings: Settings, wishes: Wishes, say: Say) -> PlatformRecord:
    """Start what does not run yet, and wait until the HTTP endpoint answers a query.

    Args:
        settings: In force; the Ray that they name is joined.
        wishes: What was asked for.
        say: Is told of each step.

    Raises:
        InvalidInput: It would listen beyond loopback without tokens; the port is taken; what runs is not what was asked for.
        WorkerLost: Ray, the scheduler or the endpoint did not come to life.
    """
    with _alone(settings):
        before = read_record(settings.home)
        record = _surviving(settings, before, say)
        settings = _with_wishes(settings, wishes, record, before)
        use_settings(settings)
        access.check_listening(settings)
        with closing(store_of(settings).database) as database:
            holder = JobStore(database).role()
        if record is None and not names_cluster(settings):
            _refuse_another_scheduler(holder, "")
        if record is None or not record.endpoint:
            _refuse_taken_port(settings)
        if record is None:
            record = _ray(settings, wishes, say)
        address = connect(settings)["address"]
        _refuse_another_scheduler(holder, address)
        _refuse_another_node(address)
        is_new = not record.endpoint
        # Written before it is so: an `up` that is killed from here on is gone on with by the next one.
        record = replace(
            record, address=address, dashboard=_dashboard(), endpoint=_endpoint(settings), host=settings.serve.host,
            is_ending=False,
        )  # fmt: skip
        write_record(settings.home, record)
        _start_scheduler(settings, say)
        _start_endpoint(settings, say)
        if is_new:
            _note(settings, "started", record)
        return record


def stop_platform(settings: Settings, timeout: float, say: Say) -> bool:
    """End what `start_platform` started: the endpoint, the scheduler once running jobs are over, models and shards, Ray.

    Args:
        settings: In force.
        timeout: Seconds that running jobs have; those that are not over by then are taken up by the next scheduler.
        say: Is told of each step.

    Returns:
        Whether there was anything to end.

    Raises:
        WorkerLost: A process cannot be ended.
    """
    with _alone(settings):
        record = read_record(settings.home)
        if record is None:
            return False
        # Whoever stays with it in the foreground is to know that it was not lost.
        write_record(settings.home, replace(record, is_ending=True))
        try:
            _note(settings, "ended", record)
            if record.is_running():
                _leave_ray(settings, record, timeout, say)
        except Exception as error:
            # A Ray of our own is ended in any case. Of another's, what is on it must not be forgotten.
            if not record.is_own:
                raise
            logger.debug("while ending the platform", exc_info=True)
            say(f"not everything could be ended in order: {error}")
        if record.is_own:
            say("ending Ray")
            end_own_ray(settings, record)
        remove_record(settings.home)
        return True


def _alone(settings: Settings) -> AbstractContextManager[None]:
    path = record_file(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    return sole_owner(path)


def _surviving(settings: Settings, record: PlatformRecord | None, say: Say) -> PlatformRecord | None:
    """What runs already; of what does not any more the remains are cleared away."""
    if record is None or record.is_running():
        return record
    say("the Ray that ran here is gone; clearing away what it left")
    if record.is_own:
        end_own_ray(settings, record)
    remove_record(settings.home)
    return None


def _with_wishes(
    settings: Settings, wishes: Wishes, record: PlatformRecord | None, before: PlatformRecord | None
) -> Settings:
    """The settings with the host and port that were asked for; else those of what was there `before`, which clients know.

    Raises:
        InvalidInput: Something else runs.
    """
    named = os.environ.get("RAY_ADDRESS") or settings.ray.address
    if record is not None and named not in (None, "auto", record.address):
        raise InvalidInput(f"Ray at {record.address} is in use, not {named}; `rayzyme down` ends that first")
    given = {name: value for name in ("host", "port") if (value := getattr(wishes, name)) is not None}
    if record is None and before is not None and before.endpoint and not before.is_ending:
        port = httpx.URL(before.endpoint).port or 80
        given = {"host": before.host or settings.serve.host, "port": port, **given}
    wanted = settings.model_copy(update={"serve": settings.serve.model_copy(update=given)})
    if record is None or not record.endpoint:
        return wanted
    if given and _endpoint(wanted) != record.endpoint:
        raise InvalidInput(
            f"the endpoint is at {record.endpoint}, not {_endpoint(wanted)}; `rayzyme down` ends it first, or leave --host and "
            "--port out"
        )
    url = httpx.URL(record.endpoint)
    runs = {"host": given.get("host", url.host), "port": url.port or 80}
    return settings.model_copy(update={"serve": settings.serve.model_copy(update=runs)})


def _refuse_another_scheduler(holder: RoleHolder | None, address: str) -> None:
    """Two cannot share the jobs of a database, and one that is not in the Ray at `address` ends when its own ends."""
    if holder is None or is_provably_gone(holder.identity):
        return
    if holder.info.get("address") != address:
        raise InvalidInput(
            f"a scheduler runs already, on {holder.info.get('host')} as process {holder.info.get('pid')}; `rayzyme stop` ends it"
        )


def _refuse_taken_port(settings: Settings) -> None:
    host, port = settings.serve.host, settings.serve.port
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another one with --port"
        ) from None


def _ray(settings: Settings, wishes: Wishes, say: Say) -> PlatformRecord:
    if names_cluster(settings):
        say("joining Ray")
        return PlatformRecord(authentication=authentication())
    say("starting Ray")
    return start_own_ray(settings, wishes.num_cpus, wishes.dashboard_port)


def _refuse_another_node(address: str) -> None:
    """The endpoint is on the head, and so is what it listens on."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (head,) = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
    if head["NodeID"] != here:
        raise InvalidInput(
            f"this machine is not the head of the Ray cluster at {address}; run this on {head['NodeManagerAddress']}"
        )


def _dashboard() -> str:
    # There is no public way to ask for it once a program is connected.
    from ray._private.worker import get_dashboard_url

    url = get_dashboard_url()
    return f"http://{url}" if url else ""


def _start_scheduler(settings: Settings, say: Say) -> None:
    from rayzyme_actors.scheduler import ask_scheduler, start_scheduler

    if not ask_scheduler(settings, "describe", absent={"leads": False})["leads"]:
        say("starting the scheduler")
    start_scheduler(settings)
    ask_scheduler(settings, "configure", settings)
    end = time.monotonic() + _LEADS_S
    while not ask_scheduler(settings, "describe", absent={"leads": False})["leads"]:
        if time.monotonic() > end:
            raise WorkerLost(f"the scheduler did not begin within {_LEADS_S:.0f} s; its log is in the dashboard")
        time.sleep(_LOOK_S)


def _start_endpoint(settings: Settings, say: Say) -> None:
    from ray import serve

    from rayzyme_serve.app import APPLICATION, build

    # It tells of each of its own steps.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own = settings.serve
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": own.host, "port": own.port, "request_timeout_s": own.timeout},
        logging_config={"encoding": "JSON" if settings.logging.structured else "TEXT"},
    )
    known = serve.status().applications.get(APPLICATION)
    if known is None or known.status != "RUNNING":
        say("starting the HTTP endpoint")
        serve.run(build(), name=APPLICATION, blocking=False)
        say("waiting for its first answer")
    _wait_until_healthy(_endpoint(settings))


def _wait_until_healthy(endpoint: str) -> None:
    end = time.monotonic() + _HEALTHY_S
    while True:
        try:
            answer = httpx.get(f"{endpoint}/health", timeout=_QUESTION_S)
            if answer.status_code == 200:
                return
            told = f"{answer.status_code} {answer.text[:500]}"
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
        if time.monotonic() > end:
            raise WorkerLost(
                f"{endpoint}/health did not answer well within {_HEALTHY_S:.0f} s, but: {told}; `rayzyme down` ends what runs"
            )
        time.sleep(_LOOK_S)


def _note(settings: Settings, what: str, record: PlatformRecord) -> None:
    """A row of the audit log."""
    with closing(store_of(settings).database) as database, database.begin() as connection:
        record_event(connection, "platform", what, data={"ray": record.address, "endpoint": record.endpoint})


def _endpoint(settings: Settings) -> str:
    host = _LISTENED_BY.get(settings.serve.host, settings.serve.host)
    return f"http://{host}:{settings.serve.port}"


def _leave_ray(settings: Settings, record: PlatformRecord, timeout: float, say: Say) -> None:
    connect(settings)
    say("ending the HTTP endpoint")
    _stop_endpoint(is_ours=record.is_own)
    _stop_scheduler(settings, record.address, timeout, say)
    _end_actors(settings)
    disconnect()


def _stop_endpoint(*, is_ours: bool) -> None:
    from ray import serve

    from rayzyme_serve.app import APPLICATION

    others = [name for name in serve.status().applications if name != APPLICATION]
    if is_ours or not others:
        serve.shutdown()
    else:
        serve.delete(APPLICATION)


def _stop_scheduler(settings: Settings, address: str, timeout: float, say: Say) -> None:
    from rayzyme_actors.scheduler import stop_scheduler

    with closing(store_of(settings).database) as database:
        store = JobStore(database)

        def is_here() -> bool:
            holder = store.role()
            return (
                holder is not None and not is_provably_gone(holder.identity) and holder.info.get("address") == address
            )

        if is_here():
            say("ending the scheduler, after the jobs that run")
            store.request_stop()
        end = time.monotonic() + timeout
        while is_here():
            if time.monotonic() > end:
                say(f"the scheduler has not ended within {timeout:g} s; what it runs is taken up by the next one")
                break
            time.sleep(_LOOK_S)
    stop_scheduler(settings)


def _end_actors(settings: Settings) -> None:
    """Those that hold models and shards; programs that still want them start them again."""
    import ray

    from rayzyme_actors.starting import HOST_PREFIX, SHARD_PREFIX

    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    for actor in named:
        if actor["namespace"] == settings.ray.namespace and actor["name"].startswith((HOST_PREFIX, SHARD_PREFIX)):
            with suppress(ValueError):
                ray.kill(ray.get_actor(actor["name"], settings.ray.namespace), no_restart=True)
