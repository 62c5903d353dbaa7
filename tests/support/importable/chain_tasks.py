"""Three tasks in a chain, the second of which writes a file; each begins with a line of JSON in a log."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rayzyme.workflows import TaskContext

# So that a process which is killed meanwhile leaves a task half-way.
_WORK_S = 0.1


def _begin(context: TaskContext, **more: Any) -> None:
    told = {"task": context.task_name, "attempt": context.attempt, "at": time.time(), **more}
    line = (json.dumps(told) + "\n").encode()
    descriptor = os.open(context.config["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)
    time.sleep(_WORK_S)


def first(context: TaskContext) -> str:
    """Share a word."""
    _begin(context)
    context.shared_state["word"] = "enzyme"
    return "first"


def write(context: TaskContext) -> str:
    """Write the file `path`, to be published; tell whether it was there before."""
    _begin(context, was_there=Path(context.config["path"]).exists())
    context.output_file(context.config["path"]).write_text(
        f"{context.shared_state['word']} by attempt {context.attempt}"
    )
    return "written"


def read(context: TaskContext) -> str:
    """Read that file; tell which one it is."""
    place = Path(context.config["path"])
    _begin(context, inode=place.stat().st_ino)
    return place.read_text()
