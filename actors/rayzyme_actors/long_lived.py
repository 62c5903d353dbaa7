"""Long-lived named actors: found or started, and called through their losses."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, ObjectLostError, RayTaskError

from rayzyme.errors import WorkerLost

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
LOST = (ActorDiedError, ActorUnavailableError, ObjectLostError)
"""What a call raises when the process that worked on it is gone."""

_FIRST_WORD_S = 20.0


@dataclass(slots=True)
class LongLivedActor:
    """A named, detached actor that Ray restarts and that rebuilds itself from disk.

    Attributes:
        name: Its name in the cluster; the same name is the same actor for every program.
        actor_class: Plain class with async methods and a `describe` that answers once it is ready.
        arguments: Of its constructor.
        options: Ray options: resources, placement.
        namespace: Ray namespace.
    """

    name: str
    actor_class: type
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    namespace: str
    _handle: Any = field(default=None, repr=False)

    def start(self) -> None:
        """Find the actor, or start it; does not wait until it is ready."""
        self._handle = (
            ray.remote(self.actor_class)
            .options(
                name=self.name, namespace=self.namespace, lifetime="detached", get_if_exists=True,
                max_restarts=-1, max_task_retries=0, **self.options,
            )
            .remote(*self.arguments)
        )  # fmt: skip

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Wait until the actor has loaded; give its description.

        Raises:
            WorkerLost: Not ready in time; says what it asked the cluster for.
            RayzymeError: Whatever stopped it from loading, as itself.
        """
        begin = time.monotonic()
        deadline = begin + timeout_s
        # Whoever waits is told why before the wait is over.
        next_word = min(_FIRST_WORD_S, timeout_s)
        while True:
            try:
                described: dict[str, Any] = ray.get(
                    self._handle.describe.remote(), timeout=max(0.1, begin + next_word - time.monotonic())
                )
                return described
            except GetTimeoutError:
                if time.monotonic() >= deadline:
                    raise WorkerLost(self._not_ready(timeout_s)) from None
                logger.warning("still waiting: %s", self._not_ready(next_word))
                next_word = min(2 * next_word, timeout_s)
            except RayTaskError as error:
                # What could not load once is not kept: its cause may be gone when somebody asks again.
                ray.kill(self._handle, no_restart=True)
                raise cause_of(error) from None
            except LOST as error:
                if "creation task" in str(error):
                    raise WorkerLost(
                        f"actor {self.name} could not be made: {str(error).strip().splitlines()[-1]}"
                    ) from None
                # Ray is restarting it, or it is gone for good and its name is free again.
                if time.monotonic() > deadline:
                    raise WorkerLost(self._not_ready(timeout_s)) from None
                time.sleep(0.1)
                self.start()

    def release(self) -> None:
        """End the actor and free what it holds."""
        ray.kill(self._handle, no_restart=True)

    def submit(self, method: str, *arguments: Any) -> Call:
        """Begin a call."""
        return Call(self, method, arguments, getattr(self._handle, method).remote(*arguments))

    def _not_ready(self, timeout_s: float) -> str:
        asked = {key: value for key, value in self.options.items() if key.startswith(("num_", "memory"))}
        return (
            f"actor {self.name} was not ready within {timeout_s:.0f} s; it asks for {asked}, the cluster has "
            f"{_figures(ray.available_resources())} free of {_figures(ray.cluster_resources())}: free some, or add a node"
        )


@dataclass(frozen=True, slots=True)
class Call:
    """A call in flight."""

    actor: LongLivedActor
    method: str
    arguments: tuple[Any, ...]
    reference: Any

    def result(self) -> Any:
        """Its result; if the actor is lost meanwhile, the call is made once more on the restarted actor.

        Raises:
            WorkerLost: The actor was lost twice, or did not come back.
            RayzymeError: What the method raised, as itself.
        """
        try:
            return ray.get(self.reference)
        except RayTaskError as error:
            raise cause_of(error) from None
        except LOST:
            self.actor.start()
            self.actor.wait_until_ready()
        try:
            return ray.get(self.actor.submit(self.method, *self.arguments).reference)
        except RayTaskError as error:
            raise cause_of(error) from None
        except LOST as error:
            raise WorkerLost(lost_twice(self.actor, self.method, str(error))) from error


def lost_twice(actor: LongLivedActor, method: str, why: str) -> str:
    """What to tell whoever asked."""
    return (
        f"actor {actor.name} was lost twice during {method}: {why}; the node may be out of memory: see its logs in the Ray "
        "dashboard, then ask again"
    )


def cause_of(error: RayTaskError) -> BaseException:
    """What an actor raised, as itself."""
    logger.debug("in an actor: %s", error)
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


def _figures(resources: dict[str, float]) -> str:
    memory = resources.get("memory", 0) / 1e9
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, {memory:.1f} GB memory"
