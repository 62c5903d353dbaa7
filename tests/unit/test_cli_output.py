"""What the command shows of a long run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rayzyme_serve.cli import output
from rayzyme_serve.cli.output import TableOutput, time_left


def told(**figures: Any) -> dict[str, Any]:
    return {"stalled": False, "estimated_remaining": None, "eta_low": None, "eta_high": None, **figures}


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (told(), ""),
        (told(estimated_remaining=80.0, eta_low=64.6, eta_high=100.0), "1:20 left (1:05 to 1:40)"),
        (told(estimated_remaining=180.0, eta_low=180.0, eta_high=180.0), "3:00 left"),
        (told(estimated_remaining=7200.0, eta_low=-5.0, eta_high=36_000.0), "2:00:00 left (0:00 to 10:00:00)"),
        (told(stalled=True), "stalled"),
    ],
)
def test_the_time_left_is_an_estimate_and_its_range(progress: dict[str, Any], text: str) -> None:
    assert time_left(progress) == text


def test_a_bar_shows_what_is_done_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(output, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    with TableOutput().progress("screening") as tick:
        for done in range(1, 5):
            tick(done, 8)
        tick(4, 5)  # a total that was corrected
    shown = screen.getvalue()
    assert "screening" in shown
    assert "4/5" in shown
    assert "left" in shown
