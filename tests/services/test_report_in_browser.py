"""The report in a real browser: everything is in the page, nothing is fetched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rayzyme.screening.report import write_screening_report

ANSWER = {
    "schema": "rayzyme.screen/1", "checkpoint": "baseline", "checkpoint_digest": "ab" * 32, "screening_set": "reference",
    "screening_set_size": 2, "rejected": [], "notes": [], "timing": {"total_s": 0.5},
    "results": [{
        "reaction_id": "catalase", "reaction": "OO.OO>>O=O.O.O", "mapped_reaction": None,
        "mapping_confidence": None, "note": None,
        "hits": [{"rank": 1, "protein_id": "P04040", "score": 0.5, "metadata": {"ec": "1.11.1.6"}},
                 {"rank": 2, "protein_id": "<img src=http://127.0.0.1:9/x>", "score": 0.4, "metadata": {"ec": ""}}],
    }],
}  # fmt: skip


def test_a_browser_shows_it_without_any_request(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (apt-get install chromium; `make test` does it as root on Debian)")
    page = write_screening_report(ANSWER, tmp_path / "report.html")
    log = tmp_path / "network.json"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
         f"--log-net-log={log}", "--window-size=1200,1600", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "P04040" in done.stdout
    assert "<svg" in done.stdout
    assert "127.0.0.1:9" not in log.read_text(), "the page asked the network for something"
    assert (tmp_path / "page.png").stat().st_size > 20_000
