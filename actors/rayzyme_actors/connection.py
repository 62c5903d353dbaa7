"""Connecting to Ray: a running cluster where one is named, else the one of `rayzyme up`, else a local Ray that asks for a token.

Ray reads `RAY_AUTH_MODE` when it is imported, and without it a program's local Ray writes a token into the home directory
that later changes how `ray start` behaves. So Rayzyme always says which mode it wants, before the import.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rayzyme.settings import Settings, get_settings
from rayzyme_actors.platform_record import listens, running_platform

if TYPE_CHECKING:
    from rayzyme.jobs.store import JobStore

logger = logging.getLogger(__name__)

OF_OUR_RAYS: Final = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayzyme_serve.front:middlewares",
    "RAY_worker_niceness": "0",
}
"""Environment of every Ray that is started here. Serve's proxies tell errors in our words; and the actors that answer online have
the priority of other programs, where Ray would give them the one of its batch work (15). Ours steps back by itself."""


def settle_authentication() -> None:
    """Give this process's own local Ray a token of its own, in `RAYZYME_HOME`, unless the user has set a mode.

    With a cluster's address in `RAY_ADDRESS` or the settings nothing is touched: its mode is its owner's business. The Ray that
    `rayzyme up` runs is met with the mode and the token that it was started with.
    """
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules or _named_address(get_settings()) is not None:
        return
    running = running_platform(get_settings().home)
    if running is not None:
        os.environ.update(running.authentication)
        return
    token_file = get_settings().home / "ray" / "auth_token"
    token_file.parent.mkdir(parents=True, exist_ok=True)
    _write_once(token_file)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token_file))


def connect(settings: Settings | None = None) -> dict[str, Any]:
    """Connect this process to Ray, once; a connection that exists is used as it is.

    Args:
        settings: None takes the process's settings.

    Returns:
        `{"address", "local"}`: the cluster's address and whether it was started here.

    Raises:
        ConnectionError: A named cluster does not answer.
    """
    settings = settings or get_settings()
    import ray

    address = _address(settings)
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A GPU node's CPU actors must not see its GPUs.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        if address is None:
            os.environ.update({**OF_OUR_RAYS, **os.environ})
        options: dict[str, Any] = {
            "namespace": settings.ray.namespace,
            "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
        if address is None:
            options |= {"address": "local", "num_cpus": settings.ray.num_cpus, "include_dashboard": False}
        else:
            options["address"] = address
        ray.init(**options)
        _keep_warnings_off_stdout()
    context = ray.get_runtime_context()
    return {"address": context.gcs_address, "local": address is None}


def connect_to_scheduler(settings: Settings, store: JobStore) -> dict[str, Any]:
    """`connect`, but where no cluster is named, to the Ray on this machine that the scheduler of the database lives in."""
    return connect(settings_that_find_ray(settings, store) or settings)


def settings_that_find_ray(settings: Settings, store: JobStore) -> Settings | None:
    """With which `connect` joins a Ray that runs, and starts none; None where this program can find none.

    That is the Ray which it has joined already, the named one, or the one on this machine that the scheduler lives in.
    """
    import ray

    if ray.is_initialized() or names_cluster(settings):
        return settings
    holder = store.role()
    # To join a Ray, a program must be on one of its machines.
    if holder is None or holder.info.get("host") != os.uname().nodename:
        return None
    host, _, port = str(holder.info["address"]).rpartition(":")
    if not listens(host, int(port)):
        return None
    found = {"address": holder.info["address"], "namespace": holder.info["namespace"]}
    return settings.model_copy(update={"ray": settings.ray.model_copy(update=found)})


def is_answering() -> bool:
    """Whether the Ray that this process is connected to still listens."""
    import ray

    if not ray.is_initialized():
        return False
    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    return listens(host, int(port))


def is_part_of_ray() -> bool:
    """Whether this process is an actor's."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def disconnect() -> None:
    """Leave a Ray that is gone."""
    import ray

    ray.shutdown()


def names_cluster(settings: Settings) -> bool:
    """Whether a running cluster is known: the settings or the environment name one, or `rayzyme up` runs it here."""
    return _address(settings) is not None


def _keep_warnings_off_stdout() -> None:
    """Ray prints a node's warnings ("14 worker processes have been started") among a program's answers, `log_to_driver`
    or not; they stand in the session's logs too. There is no public switch; this is the one that Ray's debugger uses.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


def _address(settings: Settings) -> str | None:
    named = _named_address(settings)
    if named is not None:
        return named
    running = running_platform(settings.home)
    return running.address if running is not None else None


def _named_address(settings: Settings) -> str | None:
    return os.environ.get("RAY_ADDRESS") or settings.ray.address


def _write_once(token_file: Path) -> None:
    """Whole, or not at all: whoever finds it reads it."""
    if token_file.exists():
        return
    descriptor, written = tempfile.mkstemp(dir=token_file.parent)
    try:
        with os.fdopen(descriptor, "w") as sink:
            sink.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(written, token_file)
    finally:
        Path(written).unlink()
