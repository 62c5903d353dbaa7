"""Building a set: nothing is embedded twice, bad proteins are named, a kill or a full disk loses nothing."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rayzyme.errors import InsufficientSpace, InvalidInput, InvalidProtein
from rayzyme.models.encoder import Embeddings
from rayzyme.proteins import Protein, RejectedProtein, read_proteins
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.screening.building import build_screening_set

CHECKPOINT = CheckpointRef("toy", "ab" * 32)


class CountingEncoder:
    """Embeds a sequence as a unit vector of its digest, refuses W, and notes what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, proteins: Sequence[Protein]) -> Embeddings:
        for protein in proteins:
            if "W" in protein.sequence:
                raise InvalidProtein(f"protein {protein.protein_id} holds W")
        self.seen += [protein.protein_id for protein in proteins]
        seeds = [int.from_bytes(hashlib.sha256(protein.sequence.encode()).digest()[:4]) for protein in proteins]
        rows = np.stack([np.random.default_rng(seed).standard_normal(8).astype(np.float32) for seed in seeds])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def proteins(n: int) -> list[Protein]:
    return [Protein(f"P{i}", "ACDEFGHIKL"[: i % 9 + 1] * (i + 1), None, {"organism": f"O{i}"}) for i in range(n)]


def test_a_set_holds_the_proteins_in_order_with_their_columns(tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    report = build_screening_set(
        proteins(70), tmp_path / "s.arrow", CountingEncoder(), CHECKPOINT, progress=lambda *tick: ticks.append(tick)
    )
    opened = ScreeningSet.open(report.path)
    assert opened.protein_ids == [f"P{i}" for i in range(70)]
    assert opened.metadata.column_names == ["sequence", "organism"]
    np.testing.assert_array_equal(opened.embeddings, CountingEncoder()(proteins(70)))
    assert ticks == [(0, 70), (32, 70), (64, 70), (70, 70)]
    assert (report.proteins, report.embedded, report.reused, report.rejected_path) == (70, 70, 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["s.arrow"]


def test_bad_rows_are_reported_with_reasons_while_the_good_go_on(tmp_path: Path) -> None:
    rows = [*proteins(3), RejectedProtein(5, "X1", "the sequence is empty"), Protein("W1", "AWA"), *proteins(40)[3:]]
    report = build_screening_set(rows, tmp_path / "s.arrow", CountingEncoder(), CHECKPOINT)
    assert report.proteins == report.embedded == 40
    assert report.rejected_path == tmp_path / "s.rejected.csv"
    with report.rejected_path.open() as file:
        assert list(csv.reader(file)) == [
            ["line", "protein_id", "reason"],
            ["5", "X1", "the sequence is empty"],
            ["", "W1", "protein W1 holds W"],
        ]


def test_no_usable_protein_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"no protein could be used for s\.arrow \(1 rejected: W1: protein W1 holds W\)"
    ):
        build_screening_set([Protein("W1", "AWA")], tmp_path / "s.arrow", CountingEncoder(), CHECKPOINT)


def test_an_interrupted_build_goes_on_and_embeds_nothing_twice(tmp_path: Path) -> None:
    first = CountingEncoder()

    def interrupted(some: Sequence[Protein]) -> Embeddings:
        if len(first.seen) >= 64:
            raise KeyboardInterrupt
        return first(some)

    with pytest.raises(KeyboardInterrupt):
        build_screening_set(proteins(100), tmp_path / "s.arrow", interrupted, CHECKPOINT)
    second = CountingEncoder()
    report = build_screening_set(proteins(100), tmp_path / "s.arrow", second, CHECKPOINT)
    assert (report.reused, report.embedded) == (64, 36)
    assert sorted(first.seen + second.seen) == sorted(protein.protein_id for protein in proteins(100))
    np.testing.assert_array_equal(ScreeningSet.open(report.path).embeddings, CountingEncoder()(proteins(100)))


def test_a_draft_of_another_checkpoint_is_not_used(tmp_path: Path) -> None:
    def stop(some: Sequence[Protein]) -> Embeddings:
        if some[0].protein_id != "P0":
            raise KeyboardInterrupt
        return CountingEncoder()(some)

    with pytest.raises(KeyboardInterrupt):
        build_screening_set(proteins(60), tmp_path / "s.arrow", stop, CHECKPOINT)
    report = build_screening_set(
        proteins(60), tmp_path / "s.arrow", CountingEncoder(), CheckpointRef("other", "cd" * 32)
    )
    assert report.reused == 0


def test_a_build_killed_at_once_goes_on(tmp_path: Path) -> None:
    table = tmp_path / "proteins.csv"
    table.write_text("protein_id,sequence\n" + "".join(f"P{i},{'ACDEFG' * (i % 5 + 1)}{'K' * i}\n" for i in range(200)))
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        import numpy as np
        from rayzyme.proteins import read_proteins
        from rayzyme.screening import CheckpointRef
        from rayzyme.screening.building import build_screening_set
        calls = 0
        def encode(some):
            global calls
            calls += 1
            if calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return np.eye(8, dtype=np.float32)[[len(p.sequence) % 8 for p in some]]
        build_screening_set(read_proteins(Path({str(table)!r})), Path({str(tmp_path / "s.arrow")!r}), encode,
                            CheckpointRef("toy", "ab" * 32))
    """)
    killed = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "s.arrow").exists()
    report = build_screening_set(
        read_proteins(table), tmp_path / "s.arrow",
        lambda some: np.eye(8, dtype=np.float32)[[len(p.sequence) % 8 for p in some]], CHECKPOINT,
    )  # fmt: skip
    assert (report.reused, report.proteins) == (96, 200)


def test_a_repeated_id_is_rejected_and_its_first_row_stays(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("protein_id,sequence\nA,ACD\nB,ACDE\nA,ACDEF\n")
    report = build_screening_set(read_proteins(table), tmp_path / "s.arrow", CountingEncoder(), CHECKPOINT)
    assert ScreeningSet.open(report.path).protein_ids == ["A", "B"]
    assert [(item.line, item.protein_id) for item in report.rejected] == [(4, "A")]


def test_a_full_disk_stops_the_build_and_the_next_run_goes_on(small_disk: Path, tmp_path: Path) -> None:
    def wide(some: Sequence[Protein]) -> Embeddings:
        rows = np.zeros((len(some), 1024), np.float32)
        rows[:, 0] = 1
        return rows

    with pytest.raises(
        InsufficientSpace, match=r"the disk is full: building s\.arrow needs [\d,]+ bytes in .*, where [\d,]+ are free"
    ):
        build_screening_set(proteins(400), small_disk / "s.arrow", wide, CHECKPOINT, group=8)
    assert not (small_disk / "s.arrow").exists()
    os.system(f"mount -o remount,size=64m {small_disk}")
    report = build_screening_set(proteins(400), small_disk / "s.arrow", wide, CHECKPOINT, group=8)
    assert report.proteins == 400
    assert report.reused >= 8
