"""Killing a process at each of its steps: whenever it opens, renames, removes, locks or makes a file or folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_STEPS = frozenset(
    {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "fcntl.flock", "sqlite3.connect"}
)


def survives_step(work: Callable[[], object], step: int) -> bool:
    """Run `work` in a forked process that is killed (SIGKILL) just before its step number `step`, from 0.

    Returns:
        Whether it came to its end before that step.
    """
    child = os.fork()
    if child == 0:
        _run(work, step)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the work itself failed"
    return True


def _run(work: Callable[[], object], step: int) -> None:
    left = step

    def count(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _STEPS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    try:
        sys.addaudithook(count)
        work()
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)
