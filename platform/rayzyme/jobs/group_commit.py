"""Submits of several threads in one transaction: whoever comes while one is being written waits for the next, with all others.

Nobody is told of a job before it is on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rayzyme.errors import RayzymeError
from rayzyme.jobs.submitting import Call

_LARGEST_GROUP = 1000


class GroupCommit:
    """Groups calls of `write`, which gives each of them its outcome."""

    def __init__(self, write: Callable[[Sequence[Call]], None]) -> None:
        """Write with `write`, one group at a time."""
        self._write = write
        self._waiting: list[Call] = []
        self._waiting_lock = threading.Lock()
        self._writing_lock = threading.Lock()

    def submit(self, call: Call) -> list[str]:
        """Have a call written, with those of other threads.

        Returns:
            The ids of its jobs.

        Raises:
            RayzymeError: Why this call was refused, or that the group could not be written.
        """
        with self._waiting_lock:
            self._waiting.append(call)
        while call.outcome is None:
            with self._writing_lock:
                # Most that come here find that the one before them wrote theirs too.
                if call.outcome is None:
                    self._write_group()
        if isinstance(call.outcome, RayzymeError):
            raise call.outcome
        return call.outcome

    def _write_group(self) -> None:
        with self._waiting_lock:
            group, self._waiting = self._waiting[:_LARGEST_GROUP], self._waiting[_LARGEST_GROUP:]
        try:
            self._write(group)
        except RayzymeError as error:
            for call in group:
                call.outcome = error
        except BaseException as error:
            # Nobody may wait for ever for a group whose writer failed.
            for call in group:
                call.outcome = RayzymeError(f"the jobs could not be written: {error!r}")
            raise
