"""Whose fault an error is, in one table: the site's, which has a budget of its own, or the job's, which spends its retries."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

Fault = Literal["site", "job"]

_SITE: Final = (
    "WorkerLost", "ActorDied", "NodeLost", "LeaseLost", "RunnerLost",
    # as Ray names them
    "WorkerCrashedError", "ActorDiedError", "RayActorError", "ActorUnavailableError", "NodeDiedError", "OwnerDiedError",
    "ObjectLostError", "NodePreemptedError",
    # as SLURM names them
    "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "PREEMPTED", "REQUEUED",
)  # fmt: skip
_JOB: Final = (
    "TIMEOUT",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "FAILED",
    "TaskTimeout",
    "MemoryLimitExceeded",
    "ValidationError",
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    dict.fromkeys(_SITE, "site") | dict.fromkeys(_JOB, "job")  # type: ignore[arg-type]
)
"""By an error's class or SLURM's word. What it does not name was raised by the job's own code and is the job's."""


def classify(error_class: str) -> Fault:
    """Whose fault an error is.

    Args:
        error_class: Name of the error's class, with or without its module, or SLURM's word.
    """
    return FAULTS.get(error_class.rpartition(".")[2], "job")


def lost_too_often(times: int) -> str:
    """What is said of a job or task that has used up its budget of site faults."""
    return f"lost its worker {times} times"
