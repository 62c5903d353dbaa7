"""Kills the process that imports this (SIGKILL) at one of its commits, as a plan beside the home of its database says.

Python imports it at its start wherever this folder is on PYTHONPATH. For the database FOLDER/HOME/rayzyme.db the plan is
FOLDER/plan.json with `{"who", "number", "when"}`, such as the 2nd commit of the scheduler, `before` or `after` it. Every
transaction that adds to the audit log counts, so every decision does and no renewal of a lease. FOLDER/killed is left when the
kill comes, so that there is only one; FOLDER/WHO.commits gets a line for each commit.
"""

from __future__ import annotations

import json
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

_MARK = "adds to the audit log"


def _who() -> str:
    """What the environment calls this program, else what the name of this actor begins with."""
    program = os.environ.get("RAYZYME_TEST_PROGRAM")
    if program is not None:
        return program
    import ray

    return (ray.get_runtime_context().get_actor_name() or "").partition(":")[0]


def _kill(folder: Path) -> None:
    try:
        (folder / "killed").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _watch() -> None:
    numbers = count(1)
    commit = DefaultDialect.do_commit

    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO job_event"):
            connection.connection.info[_MARK] = Path(connection.engine.url.database).parent.parent

    def do_commit(dialect: Any, connection: Any) -> None:
        folder = connection.info.pop(_MARK, None)
        if folder is None:
            commit(dialect, connection)
            return
        who, number = _who(), next(numbers)
        with (folder / f"{who}.commits").open("a") as sink:
            sink.write(f"{number}\n")
        plan = json.loads((folder / "plan.json").read_text())
        is_due = (plan["who"], plan["number"]) == (who, number)
        if is_due and plan["when"] == "before":
            _kill(folder)
        commit(dialect, connection)
        if is_due:
            _kill(folder)

    event.listen(Engine, "before_cursor_execute", note)
    DefaultDialect.do_commit = do_commit


_watch()
