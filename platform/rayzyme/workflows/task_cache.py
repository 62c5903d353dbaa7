"""What a task gave before for the same code, parameters and inputs, in place of running it again.

Kept are results that are complete in themselves: output, writes to the shared state, and files, as long as these still are where
they were published. What changed the plan, or could not be stored, is not kept, and the result says so.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rayzyme
from rayzyme.errors import RayzymeError
from rayzyme.jobs.states import JobState
from rayzyme.monitoring import get_metrics_collector
from rayzyme.resources import TwoLevelCache
from rayzyme.workflows.context import TaskContext
from rayzyme.workflows.importable import load
from rayzyme.workflows.outcome import TaskOutcome
from rayzyme.workflows.outputs import StoredValue, is_durable, load_value, store_value
from rayzyme.workflows.publishing import is_in_place
from rayzyme.workflows.task import FunctionTask, Task

if TYPE_CHECKING:
    from rayzyme.workflows.execution import Assignment

logger = logging.getLogger(__name__)


class CachedTask:
    """One attempt and its place in the cache."""

    def __init__(self, assignment: Assignment, task: Task, context: TaskContext, cache: TwoLevelCache) -> None:
        self._folder = context.folder or Path()
        self._cache = cache
        self._name = assignment.task
        self._why_not = ""
        self._key: str | None = None
        try:
            self._key = _key(assignment, task, context)
        except _NoKey as error:
            self._why_not = str(error)

    def find(self) -> TaskOutcome | None:
        """What is kept; None where there is nothing, or its files are no longer in place."""
        entry = None if self._key is None else self._cache.get(self._key)
        if entry is None or not all(is_in_place(file) for file in entry["files"]):
            return None
        get_metrics_collector().increment("rayzyme_task_cache_hits_total")
        shared = {
            key: store_value(value, self._folder, f"shared-{key}") for key, value in entry["shared_writes"].items()
        }
        return TaskOutcome(
            JobState.COMPLETED,
            output=store_value(entry["output"], self._folder, "output"),
            shared_writes=shared,
            metadata=entry["metadata"] | {"cached": True},
            metrics=entry["metrics"],
        )

    def keep(self, outcome: TaskOutcome) -> TaskOutcome:
        """Keep a result, if it can be; gives it back with a word on why not."""
        if outcome.state is not JobState.COMPLETED:
            return outcome
        why_not = self._why_not or _not_complete_in_itself(outcome)
        if not why_not and self._key is not None:
            try:
                self._cache.set(self._key, _entry(outcome))
            except (RayzymeError, TypeError, ValueError) as error:
                why_not = str(error)
        if not why_not:
            return outcome
        logger.warning("the result of task %s is not kept in the cache: %s", self._name, why_not)
        return replace(outcome, metadata={**outcome.metadata, "not_cached": why_not})


class _NoKey(Exception):
    """Nothing can be said to be the same; the message says why."""


def _key(assignment: Assignment, task: Task, context: TaskContext) -> str:
    wanted = task.config.cache_key_fn
    if wanted is not None:
        function = load(wanted, _search_path(assignment)) if isinstance(wanted, str) else wanted
        return f"chosen:{function(context)}"
    if isinstance(assignment.source, Task):
        raise _NoKey("the task cannot be stored, so nothing says whether another is the same; give it a cache_key_fn")
    document = {
        "type": assignment.source["type"],
        "code": _code_version(type(task), task.func if isinstance(task, FunctionTask) else type(task)),
        "arguments": assignment.source.get("arguments"),
        "parameters": assignment.source.get("config", {}).get("task_params"),
        "inputs": _digests(assignment.inputs),
        "shared_state": _digests(assignment.shared_state),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _search_path(assignment: Assignment) -> str | None:
    return None if isinstance(assignment.source, Task) else assignment.source.get("path")


def _digests(values: Mapping[str, StoredValue]) -> dict[str, str]:
    transient = [name for name, value in values.items() if not is_durable(value)]
    if transient:
        raise _NoKey(f"its input {transient[0]!r} cannot be stored, so nothing says whether another is the same")
    return {name: value["digest"] for name, value in values.items()}


@lru_cache(maxsize=256)
def _code_version(kind: type[Task], code: Any) -> str:
    """A digest of the modules that define a task, without what is the same for all tasks."""
    digest = hashlib.sha256(kind.code_version.encode())
    kinds = [one for one in kind.__mro__ if issubclass(one, Task) and one not in (Task, FunctionTask)]
    for one in [*kinds, *([] if isinstance(code, type) else [code])]:
        module = inspect.getmodule(one)
        file = None if module is None else inspect.getsourcefile(module)
        if file is None:
            raise _NoKey(f"the source of {one!r} is not to be had; give the task a cache_key_fn")
        digest.update(Path(file).read_bytes())
        if one.__module__.startswith("rayzyme."):
            digest.update(rayzyme.__version__.encode())
    return digest.hexdigest()


def _not_complete_in_itself(outcome: TaskOutcome) -> str:
    if outcome.plan_change is not None:
        return "it changed the plan"
    if not is_durable(outcome.output) or not all(map(is_durable, outcome.shared_writes.values())):
        return "what it gave cannot be stored"
    return ""


def _entry(outcome: TaskOutcome) -> dict[str, Any]:
    return {
        "output": None if outcome.output is None else load_value(outcome.output),
        "shared_writes": {key: load_value(value) for key, value in outcome.shared_writes.items()},
        "files": [dict(file) for file in outcome.manifest],
        "metadata": dict(outcome.metadata),
        "metrics": dict(outcome.metrics),
    }
