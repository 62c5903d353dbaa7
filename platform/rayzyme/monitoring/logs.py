"""Logging: text for people, JSON lines for machines, each line carrying what the work at hand is.

`configure_logging` may be called any number of times; the last call counts and no line is written twice.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from rayzyme.errors import ValidationError
from rayzyme.monitoring.log_file import SharedLogFile

P = ParamSpec("P")
T = TypeVar("T")

_LOGGERS = ("rayzyme", "rayzyme_actors", "rayzyme_serve")
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_context: ContextVar[dict[str, Any] | None] = ContextVar("rayzyme_log_context", default=None)
_handlers: list[logging.Handler] = []
_configuring = threading.Lock()


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add fields (`job_id=...`, `task=...`, `attempt=...`) to every line written inside, also across `await`.

    Other threads do not see them; what is handed to one is wrapped in `with_log_context`.
    """
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def log_fields() -> dict[str, Any]:
    """The fields of here and now, for another process that goes on with the same: `log_context(**fields)` there."""
    return dict(_context.get() or {})


def with_log_context(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with the fields of here and now, for a thread or executor: `pool.submit(with_log_context(work))`."""
    fields = dict(_context.get() or {})

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with log_context(**fields):
            return function(*args, **kwargs)

    return run


def configure_logging(
    level: int | str = logging.INFO,
    console: bool = True,
    file: bool = False,
    structured: bool = False,
    directory: Path | None = None,
) -> None:
    """Set up the `rayzyme` loggers of this process.

    Args:
        level: Least severe level that is written.
        console: Write to standard error.
        file: Write to `rayzyme.log` in `directory`, rotated at 10 MB, five kept; processes may share it.
        structured: One JSON object a line, with keys timestamp, level, logger, message, module, function, line, the
            fields of `log_context` and `extra=`, and exception where there is one.
        directory: Folder of the log file; None takes `$RAYZYME_HOME/logs`.

    Raises:
        ValidationError: There is no such level.
    """
    level = _known_level(level)
    handlers: list[logging.Handler] = []
    if console:
        handlers.append(logging.StreamHandler(sys.stderr))
    if file:
        if directory is None:
            from rayzyme.settings import get_settings

            directory = get_settings().home / "logs"
        handlers.append(SharedLogFile(Path(directory) / "rayzyme.log"))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if structured else TextFormatter())
    with _configuring:
        for root in _LOGGERS:
            logger = logging.getLogger(root)
            # Handlers that others added are theirs.
            for old in _handlers:
                logger.removeHandler(old)
            for handler in handlers:
                logger.addHandler(handler)
            logger.setLevel(level)
            logger.propagate = False
        for old in _handlers:
            old.close()
        _handlers[:] = handlers


def _known_level(level: int | str) -> int:
    known = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() in known:
        return known[level.upper()]
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    raise ValidationError(f"level must be a number or one of {', '.join(known)}, not {level!r}")


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, with the fields of `log_context` behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        """The line without its exception."""
        fields = " ".join(f"{key}={value}" for key, value in (_context.get() or {}).items())
        line = super().formatMessage(record) + (f" [{fields}]" if fields else "")
        # Indented, so that nothing inside of a message looks like a line of its own.
        return line.replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render `record`; values that JSON does not know are written as their text."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "module": record.module,
            "function": record.funcName,
            "line": record.lineno,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        # What begins with an underscore is a library's own, such as Ray's, which marks every record of its processes.
        extras = {
            key: value
            for key, value in vars(record).items()
            if key not in _STANDARD_ATTRIBUTES and not key.startswith("_")
        }
        for key, value in {**(_context.get() or {}), **extras}.items():
            # A reader relies on the keys above.
            line[f"extra_{key}" if key in line else key] = value
        return _as_json(line)


def _as_json(line: Mapping[str, Any]) -> str:
    try:
        return _strict_json(line)
    except (TypeError, ValueError):
        return _strict_json({key: _sayable(value) for key, value in line.items()})


def _sayable(value: Any) -> Any:
    """Not a number, a key that is no text, what contains itself: what JSON cannot say becomes Python's text."""
    try:
        _strict_json(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _strict_json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
