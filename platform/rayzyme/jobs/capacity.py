"""What there is of each resource and who holds how much of it, as the scheduler counts it.

This is its plan; the leases in the store are the truth and may refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayzyme.jobs.job import Resources
from rayzyme.jobs.scheduling_config import SLOT, SchedulingConfig

# Amounts such as 0.1 CPU do not add up exactly.
_ROUNDING = 1e-6


def fits(needs: Resources, free: Mapping[str, float]) -> bool:
    """Whether all of `needs` is in `free`."""
    for resource, amount in needs.items():  # noqa: SIM110 (the most frequent question; a generator takes twice the time)
        if amount > free[resource] + _ROUNDING:
            return False
    return True


def subtract(needs: Resources, free: dict[str, float]) -> None:
    """Take `needs` out of `free`, which may become negative."""
    for resource, amount in needs.items():
        free[resource] -= amount


class Capacity:
    """Totals, and the holdings of running jobs.

    Attributes:
        totals: Amount by resource, owners' quotas included as far as somebody needed them.
        free: What is left of each; negative where a total shrank below what is held.
        holdings: What each running job holds.
    """

    def __init__(self, config: SchedulingConfig, cluster: Resources) -> None:
        """Nothing is held yet of the cluster's resources and the slots of the settings."""
        self._config = config
        self.totals: dict[str, float] = {SLOT: float(config.max_concurrent_jobs), **cluster}
        self._measured = list(self.totals)
        self.free = dict(self.totals)
        self.holdings: dict[str, Resources] = {}
        self._holders: dict[str, dict[str, None]] = {}

    def change_cluster(self, cluster: Resources) -> None:
        """Go on with other totals."""
        known = self.totals
        self.totals = {SLOT: float(self._config.max_concurrent_jobs), **cluster}
        self._measured = list(self.totals)
        for resource in [*known, *self.totals]:
            self.count(resource)
            self.free[resource] = self.totals[resource] - self._held(resource)

    def count(self, resource: str) -> None:
        """Have a total and a rest of a resource: a quota's limit, or nothing where the cluster has none."""
        if resource not in self.totals:
            limit = self._config.quota_capacity(resource)
            self.totals[resource] = 0.0 if limit is None else limit
        self.free.setdefault(resource, self.totals[resource])

    def hold(self, job_id: str, needs: Resources) -> None:
        """A job holds what it needs, even where that is more than there is: it runs already."""
        self.release(job_id)
        self.holdings[job_id] = needs
        for resource, amount in needs.items():
            self.count(resource)
            self._holders.setdefault(resource, {})[job_id] = None
            self.free[resource] -= amount

    def release(self, job_id: str) -> None:
        """It holds nothing any more."""
        for resource, amount in self.holdings.pop(job_id, {}).items():
            holders = self._holders[resource]
            del holders[job_id]
            # With the last holder goes what rounding has added up to.
            self.free[resource] = self.free[resource] + amount if holders else self.totals[resource]

    def holders(self, resource: str) -> list[str]:
        """Which jobs hold some of a resource, those that began first first."""
        return list(self._holders.get(resource, ()))

    def suffices(self, needs: Resources) -> bool:
        """Whether there is enough when nothing is held; otherwise waiting does not help."""
        return fits(needs, self.totals)

    def load(self) -> float:
        """Part of the most used resource that is held, from 0 to 1; quotas are no load."""
        return max(
            (
                min(1.0, 1.0 - self.free[resource] / self.totals[resource])
                for resource in self._measured
                if self.totals[resource] > 0
            ),
            default=0.0,
        )

    def check_invariants(self) -> None:
        """Recompute what is held and free."""
        for resource, total in self.totals.items():
            held = self._held(resource)
            assert abs(self.free[resource] - (total - held)) < _ROUNDING or total == float("inf"), (resource, held)
            holders = {job_id for job_id, needs in self.holdings.items() if resource in needs}
            assert holders == set(self.holders(resource)), (resource, holders)

    def _held(self, resource: str) -> float:
        return sum(needs.get(resource, 0.0) for needs in self.holdings.values())
