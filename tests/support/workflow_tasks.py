"""The tasks of `importable/workflow_tasks.py`, by the name under which other processes find them too."""

from __future__ import annotations

import sys
from pathlib import Path

IMPORTABLE = Path(__file__).resolve().parent / "importable"
sys.path.append(str(IMPORTABLE))

from workflow_tasks import CALLS, Join, PlainClass, another_key, answer, double  # noqa: E402 - found by the line above

__all__ = ["CALLS", "IMPORTABLE", "Join", "PlainClass", "another_key", "answer", "double"]
