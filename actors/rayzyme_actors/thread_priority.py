"""Threads that let others go first on a CPU."""

from __future__ import annotations

import logging
import os
import threading

logger = logging.getLogger(__name__)


def step_back(niceness: int) -> None:
    """Give this thread, and those that it starts from now on, such as the ones that a library computes with, a low priority.

    There is no way back without privileges. A thread that is lower already stays so.

    Args:
        niceness: 0 is usual, 19 the lowest.
    """
    thread = threading.get_native_id()
    try:
        if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
    except OSError as error:
        logger.warning("batch work keeps its priority, so online work may be slower beside it: %s", error)
