"""Every test of this folder runs inside the one Ray session."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _session(ray_session: None) -> None:
    """Every test here runs inside the session."""
