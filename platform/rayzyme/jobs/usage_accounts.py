"""What owners used, written down as their jobs stop running.

There is one row for each owner; of what it tells half is forgotten in every half-life.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rayzyme.database.tables import UsageRow
from rayzyme.jobs.fair_share import OwnerUsage, UsageBook, slots_of
from rayzyme.jobs.job import Job
from rayzyme.jobs.rows import moment, table_of

_TABLE: Final = table_of(UsageRow)
# In one order, so that no two transactions wait for each other.
_ACCOUNTS: Final = (
    select(_TABLE)
    .where(_TABLE.c.owner.in_(bindparam("owners", expanding=True)))
    .order_by(_TABLE.c.owner)
    .with_for_update()
)
_CHARGE: Final = update(_TABLE).where(_TABLE.c.owner == bindparam("who"))


class UsageCharges:
    """What is to be charged in one transaction."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._charges: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, job: Job, now: float) -> None:
        """A job stops running, which it did since `started_at`."""
        if job.started_at is None:
            return
        ran = max(0.0, now - job.started_at)
        charge = self._charges[job.owner]
        charge[0] += slots_of(job.needs) * ran
        charge[1] += job.needs.get("gpu", 0.0) * ran

    def write(self, connection: Connection, now: float, half_life: float) -> None:
        """Add it to what the owners used before."""
        owners = sorted(owner for owner, charge in self._charges.items() if any(charge))
        if not owners:
            return
        before = {row.owner: row for row in connection.execute(_ACCOUNTS, {"owners": owners})}
        if len(before) < len(owners):
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            empty = [{"owner": owner, "amount": 0.0, "gpu_amount": 0.0, "at": moment(now)} for owner in owners]
            connection.execute(dialect.insert(_TABLE).on_conflict_do_nothing(), empty)
            before = {row.owner: row for row in connection.execute(_ACCOUNTS, {"owners": owners})}
        rows = []
        for owner in owners:
            slot_s, gpu_s = self._charges[owner]
            row = before[owner]
            book = UsageBook(
                half_life,
                [
                    OwnerUsage(owner, row.amount, row.gpu_amount, row.at.timestamp()),
                    OwnerUsage(owner, slot_s, gpu_s, now),
                ],
            )
            (account,) = book.rows()
            rows.append(
                {
                    "who": owner,
                    "amount": account.slot_s,
                    "gpu_amount": account.gpu_s,
                    "at": moment(account.at),
                }
            )
        connection.execute(_CHARGE, rows)


def usage_book(connection: Connection, half_life: float) -> UsageBook:
    """What all owners used."""
    rows = connection.execute(select(_TABLE))
    return UsageBook(half_life, [OwnerUsage(row.owner, row.amount, row.gpu_amount, row.at.timestamp()) for row in rows])
