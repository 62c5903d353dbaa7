"""When a failed attempt is tried again: an exponential back-off with a jitter that is the same in every process."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from rayzyme.checks import number_from_zero, whole_number
from rayzyme.errors import ValidationError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon.

    Attributes:
        max_retries: Tries after the first one.
        delay: Seconds before the first retry.
        backoff: Factor from each delay to the next; 1 keeps the delay fixed.
        max_delay: Seconds that no delay exceeds before its jitter.
        jitter: Largest part of the delay that is added or taken away, from 0 to 1.
    """

    max_retries: int = 3
    delay: float = 5.0
    backoff: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            ValidationError: Names the one that cannot be used.
        """
        whole_number("max_retries", self.max_retries, at_least=0)
        for name in ("delay", "backoff", "max_delay", "jitter"):
            number_from_zero(name, getattr(self, name))
        if self.backoff < 1:
            raise ValidationError(f"backoff must be at least 1, or retries come faster and faster: {self.backoff!r}")
        if self.jitter > 1:
            raise ValidationError(f"jitter must be at most 1, or a delay could be negative: {self.jitter!r}")

    def delay_before(self, retry: int, seed: str) -> float:
        """Seconds to wait before a retry.

        Args:
            retry: Which one, from 1.
            seed: What is tried, `job/task`; the same seed and retry give the same delay.

        Raises:
            ValidationError: `retry` is not a whole number from 1.
        """
        whole_number("retry", retry, at_least=1)
        # A float power overflows where the delay has long reached its maximum.
        try:
            delay = min(self.delay * float(self.backoff) ** (retry - 1), self.max_delay)
        except OverflowError:
            delay = self.max_delay if self.delay else 0.0
        return delay * (1.0 + self.jitter * random.Random(f"{seed}/{retry}").uniform(-1.0, 1.0))


SITE_RETRIES: Final = RetryPolicy()
"""Waits after a lost runner. Its `max_retries` does not count: site faults have a budget of their own."""
