"""How often somebody may ask: a bucket of grants for each, which fills again with time (token bucket)."""

from __future__ import annotations

from collections import OrderedDict


class RateLimiter:
    """Grants up to `per_minute` at once to each key, and as many a minute in the long run.

    Memory is bounded: beyond `most_keys` the one that asked longest ago is forgotten, and begins with a full bucket. Not for
    several threads at once.
    """

    def __init__(self, per_minute: float, most_keys: int = 10_000) -> None:
        self._capacity = max(1.0, float(per_minute))
        self._per_second = per_minute / 60.0
        self._most_keys = most_keys
        # Key -> grants that are left, and when that was.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        """Take a grant: 0 where there is one, else the seconds until there will be, and none is taken.

        Args:
            key: Who asks.
            now: Seconds of any clock that never goes back.
        """
        left, since = self._buckets.pop(key, (self._capacity, now))
        left = min(self._capacity, left + (now - since) * self._per_second)
        # Sums of fractions come out a little below a whole grant.
        granted = left >= 1.0 - 1e-9
        self._buckets[key] = (max(0.0, left - 1.0) if granted else left, now)
        if len(self._buckets) > self._most_keys:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (1.0 - left) / self._per_second
