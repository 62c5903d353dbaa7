"""What a finished task may ask to become of the rest of its workflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayzyme.errors import InvalidInput

if TYPE_CHECKING:
    from rayzyme.workflows.task import Task


@dataclass(frozen=True)
class PlanChange:
    """Returned by a task in place of its output. It is stored with the result, so its tasks must be importable.

    A new task waits for those that its `config.depends_on` names, which may be new or old; one that names none waits for
    nobody. Names must be new to the workflow.

    Attributes:
        replace: Take the place of the task: what depends on it waits for them, and gets the output of the last one as its.
        detour: Run before anything that depends on the task goes on.
        addition: Run beside the rest; nobody waits for them but the workflow's end.
        stop_children: What depends on the task, however remotely, is cancelled; that is no failure.
        output: What the task gave.
    """

    replace: Sequence[Task] = ()
    detour: Sequence[Task] = ()
    addition: Sequence[Task] = ()
    stop_children: bool = False
    output: Any = None

    def __post_init__(self) -> None:
        """Refuse what changes nothing, or cannot be.

        Raises:
            InvalidInput: It names no task and stops none, or replaces a task whose children it stops.
        """
        if not (self.replace or self.detour or self.addition or self.stop_children):
            raise InvalidInput("a PlanChange that changes nothing; return the output itself")
        if self.stop_children and (self.replace or self.detour):
            raise InvalidInput("a PlanChange with stop_children leaves nobody for whom replace or detour could run")
