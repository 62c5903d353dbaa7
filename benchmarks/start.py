"""Time from process start to the first answer: the `rayzyme` command with its Ray, against the same work in one bare process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import Measurement, best_of_rounds, compared

REACTION = "CCO.NC(=O)c1ccc[nH+]c1>>CC=O.NC(=O)C1=CNC=CC1"
BARE = f"""
from rayzyme.models import load_checkpoint
from rayzyme.screening import ExactIndex
from rayzyme.screening.library import ScreeningSetLibrary
from pathlib import Path
encoder = load_checkpoint("baseline", "cpu")
opened = ScreeningSetLibrary(Path(".")).open("reference")
print(ExactIndex(opened.embeddings, opened.protein_ids).search(encoder.encode_reactions([{REACTION!r}]), 10)[1])
"""


def run() -> list[Measurement]:
    """Both print the ten best enzymes for one reaction."""
    command = str(Path(sys.executable).with_name("rayzyme"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [command, "screen", "baseline", "--reaction", REACTION, "--top-k", "10", "--output-dir", folder]
        times = best_of_rounds(
            {
                "ours": lambda: subprocess.run(arguments, check=True, capture_output=True),
                "bare": lambda: subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True),
            },
            rounds=2,
        )
    return [compared("process start to first answer, against no Ray at all", times["ours"], times["bare"], "s")]
