"""Logging: text for people, JSON lines for machines, each line carrying what the work at hand is.

`configure_logging` may be called any number of times; the last call counts and no line is written twice.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_context: ContextVar[dict[str, Any] | None] = ContextVar("rayzyme_log_context", default=None)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add fields (`job_id=...`, `request_id=...`) to every line written inside, also across `await`."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


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
        file: Write to `rayzyme.log` in `directory`, rotated at 10 MB, five kept.
        structured: One JSON object a line, with keys timestamp, level, logger, message, module, function, line, the
            fields of `extra=` and `log_context`, and exception where there is one.
        directory: Folder of the log file; None takes `$RAYZYME_HOME/logs`.
    """
    handlers: list[logging.Handler] = []
    if console:
        handlers.append(logging.StreamHandler(sys.stderr))
    if file:
        if directory is None:
            from rayzyme.settings import get_settings

            directory = get_settings().home / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                directory / "rayzyme.log", maxBytes=10_000_000, backupCount=5, encoding="utf-8"
            )
        )
    formatter = (
        JsonFormatter() if structured else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    for root in ("rayzyme", "rayzyme_actors", "rayzyme_serve"):
        logger = logging.getLogger(root)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.setFormatter(formatter)
            logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


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
            **(_context.get() or {}),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
