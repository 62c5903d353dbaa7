"""What a task is told about how to run: every field acts, and what cannot hold is refused when the object is made."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rayzyme import checks
from rayzyme.errors import ValidationError
from rayzyme.jobs.job import TaskPriority
from rayzyme.jobs.retries import RetryPolicy
from rayzyme.storage.values import pack, unpack
from rayzyme.workflows.importable import NotImportable, import_path, plain_path

LONGEST_NAME = 200
Document = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class TaskConfig:
    """How a task runs.

    Attributes:
        name: Its name in the workflow.
        description: For people.
        priority: Of two tasks that could begin, the more urgent one does.
        timeout: Seconds after which it is stopped and has failed; None never.
        max_retries: Tries after the first, where it failed by itself.
        retry_delay: Seconds before the first retry.
        retry_backoff: Factor from each delay to the next, at least 1.
        retry_jitter: Largest part of the delay that is added or taken away, from 0 to 1.
        retry_max_delay: Seconds that no delay exceeds before its jitter.
        retry_on_errors: Classes of errors, or their import paths, that are worth a retry; any other is final.
        gpu_required: It needs a GPU.
        min_gpus: Fewest GPUs that it can use.
        max_gpus: Most GPUs that it can use.
        memory_mb: MB (2^20 bytes) that are reserved for it and that it may not exceed; None neither.
        depends_on: Names of tasks that must have completed.
        cache_enabled: What the same task gave for the same inputs is taken from the cache.
        cache_key_fn: Gives the cache's key from the context, in place of the digest of code, parameters and inputs.
        task_params: The task's own parameters, its `context.config`.
        num_cpus: CPUs that are reserved for it; None shares the one-CPU processes and is not accounted.
        gpu_memory_mb: MB of GPU memory that are reserved for it.
    """

    name: str
    description: str = ""
    priority: TaskPriority = TaskPriority.NORMAL
    timeout: float | None = None
    max_retries: int = 3
    retry_delay: float = 5
    retry_backoff: float = 2.0
    retry_jitter: float = 0.2
    retry_max_delay: float = 300
    retry_on_errors: Sequence[type[BaseException] | str] = field(default_factory=lambda: [Exception])
    gpu_required: bool = False
    min_gpus: int = 0
    max_gpus: int = 1
    memory_mb: int | None = None
    depends_on: Sequence[str] = field(default_factory=list)
    cache_enabled: bool = False
    cache_key_fn: Callable[[Any], str] | str | None = None
    task_params: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float | None = None
    gpu_memory_mb: int | None = None

    def __post_init__(self) -> None:
        """Check everything, and copy what others might change.

        Raises:
            ValidationError: Names the field and the task.
        """
        checks.printable_text("the name of a task", self.name, at_most=LONGEST_NAME)
        self._check_texts()
        self._check_numbers()
        self._check_resources()
        _set(self, "priority", self._priority())
        _set(self, "retry_on_errors", self._errors())
        _set(self, "task_params", _copied(dict(self.task_params)))

    @property
    def retries(self) -> RetryPolicy:
        """When it is tried again."""
        return RetryPolicy(
            self.max_retries, self.retry_delay, self.retry_backoff, self.retry_max_delay, self.retry_jitter
        )

    @property
    def gpus_needed(self) -> int:
        """GPUs without which it cannot run."""
        return max(self.min_gpus, 1 if self.gpu_required else 0)

    def retries_on(self, error: type[BaseException]) -> bool:
        """Whether an error of this class is worth a retry."""
        wanted = {item if isinstance(item, str) else plain_path(item) for item in self.retry_on_errors}
        return any(plain_path(kind) in wanted for kind in error.__mro__)

    def to_document(self) -> Document:
        """As JSON, without what has its default.

        Raises:
            NotImportable: `cache_key_fn` could not be found by another process.
            TypeError: `task_params` hold what JSON cannot; names the place.
        """
        document: Document = {}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                document[name] = value
        if "retry_on_errors" in document:
            document["retry_on_errors"] = [
                item if isinstance(item, str) else plain_path(item) for item in self.retry_on_errors
            ]
        if callable(self.cache_key_fn):
            document["cache_key_fn"] = import_path(self.cache_key_fn)
        if "task_params" in document:
            document["task_params"] = as_plain(self.task_params, "task_params")
        if "priority" in document:
            document["priority"] = int(self.priority)
        return document

    @classmethod
    def from_document(cls, document: Document) -> TaskConfig:
        """The config of `to_document`; imports nothing.

        Raises:
            ValidationError: It does not hold, or has fields that there are not.
        """
        unknown = sorted(set(document) - set(_DEFAULTS))
        if unknown:
            raise ValidationError(f"a stored task config has unknown fields: {', '.join(unknown)}")
        plain = dict(document)
        if "task_params" in plain:
            plain["task_params"] = from_plain(plain["task_params"])
        return cls(**plain)

    def _check_texts(self) -> None:
        if not isinstance(self.description, str):
            raise ValidationError(f"description of {self._label} must be a text, not {self.description!r}")
        if isinstance(self.depends_on, str) or not isinstance(self.depends_on, Sequence):
            raise ValidationError(f"depends_on of {self._label} must be a list of names, not {self.depends_on!r}")
        for name in self.depends_on:
            checks.short_text(f"a name in depends_on of {self._label}", name, at_most=LONGEST_NAME)
        _set(self, "depends_on", list(dict.fromkeys(self.depends_on)))
        if self.cache_key_fn is not None and not callable(self.cache_key_fn) and not isinstance(self.cache_key_fn, str):
            raise ValidationError(f"cache_key_fn of {self._label} must be a function, not {self.cache_key_fn!r}")
        if not isinstance(self.task_params, Mapping) or not all(isinstance(key, str) for key in self.task_params):
            raise ValidationError(f"task_params of {self._label} must be a dict with texts as keys")

    def _check_numbers(self) -> None:
        if self.timeout is not None:
            checks.positive_number(self._of("timeout"), self.timeout)
        checks.whole_number(self._of("max_retries"), self.max_retries, at_least=0)
        for name in ("retry_delay", "retry_backoff", "retry_jitter", "retry_max_delay"):
            checks.number_from_zero(self._of(name), getattr(self, name))
        if self.retry_backoff < 1:
            raise ValidationError(f"{self._of('retry_backoff')} must be at least 1, not {self.retry_backoff!r}")
        if self.retry_jitter > 1:
            raise ValidationError(f"{self._of('retry_jitter')} must be at most 1, not {self.retry_jitter!r}")

    def _check_resources(self) -> None:
        checks.truth_value(self._of("gpu_required"), self.gpu_required)
        checks.truth_value(self._of("cache_enabled"), self.cache_enabled)
        checks.whole_number(self._of("min_gpus"), self.min_gpus, at_least=0)
        checks.whole_number(self._of("max_gpus"), self.max_gpus, at_least=0)
        if self.min_gpus > self.max_gpus:
            raise ValidationError(
                f"min_gpus of {self._label} is {self.min_gpus} and max_gpus {self.max_gpus}; it must not be less"
            )
        if self.gpu_required and self.max_gpus == 0:
            raise ValidationError(f"{self._label} has gpu_required=True and max_gpus=0; give it at least one")
        for name in ("memory_mb", "gpu_memory_mb"):
            if getattr(self, name) is not None:
                checks.whole_number(self._of(name), getattr(self, name), at_least=1)
        if self.num_cpus is not None:
            checks.positive_number(self._of("num_cpus"), self.num_cpus)

    def _priority(self) -> TaskPriority:
        if not isinstance(self.priority, int) or isinstance(self.priority, bool) or self.priority not in _PRIORITIES:
            raise ValidationError(f"{self._of('priority')} must be a TaskPriority, not {self.priority!r}")
        return TaskPriority(self.priority)

    def _errors(self) -> list[type[BaseException] | str]:
        given = self.retry_on_errors
        if isinstance(given, (type, str)) or not isinstance(given, Sequence):
            raise ValidationError(f"{self._of('retry_on_errors')} must be a list of exception classes, not {given!r}")
        for item in given:
            if not (isinstance(item, str) or (isinstance(item, type) and issubclass(item, BaseException))):
                raise ValidationError(f"{self._of('retry_on_errors')} holds {item!r}, which is no exception class")
        return [Exception if item == _EXCEPTION else self._error_path(item) for item in given]

    def _error_path(self, item: type[BaseException] | str) -> type[BaseException] | str:
        if not isinstance(item, str) or ":" in item:
            return item
        found = getattr(builtins, item, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        raise ValidationError(
            f"{self._of('retry_on_errors')} holds {item!r}; give the class, or its import path as 'module:Name'"
        )

    def _of(self, name: str) -> str:
        return f"{name} of {self._label}"

    @property
    def _label(self) -> str:
        return f"task {self.name!r}"


def as_plain(value: Any, name: str) -> Any:
    """A value as JSON that `from_plain` turns back into it, types included.

    Raises:
        TypeError: It holds arrays, or something that cannot be stored; names the place.
    """
    packed = pack(value, name)
    if packed.arrays:
        raise TypeError(f"{packed.places[0]} is an array; give the path of a file, or pass it from task to task")
    return packed.document


def from_plain(document: Any) -> Any:
    """The value of `as_plain`."""
    return unpack(document, _no_array)


def _no_array(number: int) -> Any:
    raise ValueError(f"array {number} is not here")


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else value


def _set(config: TaskConfig, name: str, value: Any) -> None:
    object.__setattr__(config, name, value)


_EXCEPTION = "builtins:Exception"
_PRIORITIES = frozenset(TaskPriority)
_DEFAULTS: dict[str, Any] = {
    item.name: item.default_factory() if item.default_factory is not MISSING else item.default
    for item in fields(TaskConfig)
}
__all__ = ["Document", "NotImportable", "TaskConfig", "as_plain", "from_plain"]
