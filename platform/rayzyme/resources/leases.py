"""What the ledger deals in: leases, what is taken at once, and who decides, accepts and is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

Wants = Sequence[tuple[str, float]]
"""(Resource, amount) pairs."""

Decide = Callable[[Sequence["Share"]], Wants]
"""Given the live leases, what to take. It may raise: then nothing is taken."""

DecideTogether = Callable[[Sequence["Share"], Collection[Hashable]], Mapping[Hashable, Wants]]
"""Given the live leases and the keys under which nothing is held, what to take under each of these. It may raise."""

Accept = Callable[[Sequence["Share"]], None]
"""Given what is held under a key, raises where that will not do."""

OnLost = Callable[[], None]
"""Called, in a thread of its own, when the leases are gone although nobody released them."""

LONGEST_PURPOSE: Final = 256
"""Characters that say what a lease is for."""


@dataclass(frozen=True, slots=True)
class Share:
    """A lease: one amount of one resource, held by one process.

    Attributes:
        token: Grows with every lease.
        resource: What is shared, such as `gpu:<host>:<uuid>`.
        amount: How much of it.
        owner: Who holds it, in words.
        purpose: What for.
        host: Machine of the holding process.
        pid: The holding process there.
        expires_at: When it lapses if it is not renewed.
    """

    token: int
    resource: str
    amount: float
    owner: str
    purpose: str
    host: str
    pid: int
    expires_at: datetime


@dataclass(eq=False, slots=True)
class Holding:
    """What was taken at once, and is renewed, lost and released together.

    Attributes:
        shares: The leases, in the order in which they were decided.
        users: Who needs it, and how each is told of its loss; it is released when nobody needs it.
    """

    shares: tuple[Share, ...]
    users: dict[Hashable, OnLost | None] = field(default_factory=dict)
