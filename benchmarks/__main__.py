"""`python -m benchmarks [SUITE ...]`: run suites and keep their results in `benchmarks/results/`."""

from __future__ import annotations

import importlib
import sys

from benchmarks.measuring import save

SUITES = (
    "search",
    "lanes",
    "encoders",
    "start",
    "data",
    "states",
    "progress",
    "cache",
    "scheduling",
    "store",
    "dispatcher",
    "online",
)


def main() -> None:
    """Run the suites named, or all."""
    for suite in sys.argv[1:] or SUITES:
        print(f"== {suite}")
        print(f"-> {save(suite, importlib.import_module(f'benchmarks.{suite}').run())}")


if __name__ == "__main__":
    main()
