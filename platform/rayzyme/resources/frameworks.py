"""What the deep-learning framework of this process holds of a GPU. A framework that is not loaded is never loaded here.

Only PyTorch has anything to say or to give back: TensorFlow and JAX fix their share of a GPU when they start.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

_MB: Final = 1 << 20


class LoadedFramework:
    """PyTorch where this process has loaded it and it sees GPUs; otherwise it holds nothing and does nothing."""

    def __init__(self, modules: Mapping[str, Any] | None = None) -> None:
        """Look among `modules`; None: those of this process."""
        torch = (sys.modules if modules is None else modules).get("torch")
        # While it is being imported, in another thread, it has no `cuda` yet.
        cuda = getattr(torch, "cuda", None)
        self._cuda = cuda if cuda is not None and cuda.is_available() else None

    def reserved(self, index: int) -> int | None:
        """MB that it has taken from the driver; None without a framework."""
        return None if self._cuda is None else int(self._cuda.memory_reserved(index)) // _MB

    def allocated(self, index: int) -> int | None:
        """MB that live tensors fill; None without a framework."""
        return None if self._cuda is None else int(self._cuda.memory_allocated(index)) // _MB

    def empty_caches(self, indices: list[int]) -> dict[int, int]:
        """Give unused memory back to the driver; MB freed by index."""
        if self._cuda is None:
            return dict.fromkeys(indices, 0)
        before = {index: self.reserved(index) or 0 for index in indices}
        self._cuda.empty_cache()
        return {index: max(0, amount - (self.reserved(index) or 0)) for index, amount in before.items()}

    def limit(self, index: int, fraction: float) -> None:
        """Let it take at most this fraction (0 to 1) of the device's memory in this process."""
        if self._cuda is not None:
            self._cuda.set_per_process_memory_fraction(fraction, index)

    def lift_limit(self, index: int) -> None:
        """Let it take all of the device again."""
        # Before it has touched a GPU there is no limit, and setting one would make it take memory on one.
        if self._cuda is not None and self._cuda.is_initialized():
            self._cuda.set_per_process_memory_fraction(1.0, index)
