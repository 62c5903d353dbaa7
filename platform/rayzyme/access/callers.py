"""Who asks, and how much they may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do; each role may do what those before it may.

    Attributes:
        VIEWER: Read: sets, checkpoints, screens, everybody's jobs.
        USER: Submit jobs, explain and cancel their own; of jobs they see only these.
        ADMIN: Everything.
    """

    VIEWER = "viewer"
    USER = "user"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(other)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who was let in.

    Attributes:
        name: Of their token; "local" where no token is asked for.
        owner: Who owns the jobs that they submit.
        role: What they may do.
    """

    name: str
    owner: str
    role: Role


def local_caller() -> Caller:
    """Everybody who asks where the doors are open: the user of this process, who may do everything."""
    # SQLAlchemy takes its time to load, and roles are wanted without it too.
    from rayzyme.database.events import current_actor

    return Caller("local", current_actor().rpartition("@")[0], Role.ADMIN)
