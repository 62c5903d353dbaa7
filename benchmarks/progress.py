"""What tracking costs beside tqdm and rich, how soon it answers, and whether its time range holds what it promises.

The range is scored on recordings made in this run of real work on this machine: every trace is the seconds of its steps.
A program is told about the first 10, 20, .. 90 % of them and says when the rest will be done.
"""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from benchmarks.measuring import Measurement, best_of_rounds, compared
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from rayzyme.monitoring.eta import StepTimes, remaining_time
from rayzyme.monitoring.progress import ProgressTracker

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
UPDATES, WRITERS, ROUNDS = 100_000, 8, 3
PACED_S, PACED_PER_S = 4, 1000
ANSWERS = 2000
RECORDINGS = 4
Trace = list[float]


def run() -> list[Measurement]:
    """Cost, answers, range."""
    sink = Path(os.devnull).open("w")  # noqa: SIM115 - for the whole run
    with sink, tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        return [*_cost_per_update(sink), *_share_of_a_core(sink, Path(folder)), _answers(), *_time_left(sink)]


def _cost_per_update(sink: Any) -> list[Measurement]:
    totals: dict[str, int] = {}

    def rayzyme() -> None:
        tracker = ProgressTracker()
        tracker.start_task("all", "All", 1)
        tracker.start_task("work", "Work", UPDATES, "all")
        _from_threads(lambda: tracker.update_task("work"))
        totals["rayzyme"] = tracker.get_task_progress("work")["current_step"]

    def rich() -> None:
        with Progress(console=Console(file=sink)) as progress:
            task = progress.add_task("work", total=UPDATES)
            _from_threads(lambda: progress.advance(task))
            totals["rich"] = int(progress.tasks[0].completed)

    def bar() -> None:
        with tqdm(total=UPDATES, file=sink) as progress:
            _from_threads(lambda: progress.update())
            totals["tqdm"] = progress.n

    seconds = best_of_rounds({"rayzyme": rayzyme, "rich": rich, "tqdm": bar}, ROUNDS)
    each = {name: value / UPDATES * 1e6 for name, value in seconds.items()}
    return [
        compared(f"an update, {WRITERS} threads, against rich", each["rayzyme"], each["rich"], "us", totals=totals),
        compared(f"an update, {WRITERS} threads, against tqdm", each["rayzyme"], each["tqdm"], "us", totals=totals),
    ]


def _from_threads(update: Callable[[], object]) -> None:
    def work() -> None:
        for _ in range(UPDATES // WRITERS):
            update()

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _share_of_a_core(sink: Any, folder: Path) -> list[Measurement]:
    """CPU time at 1,000 updates a second, everything that writes included.

    The least of several rounds, in which they take turns: what else the machine does only adds.
    """
    from rayzyme.database import open_database

    database = open_database(f"sqlite:///{folder / 'rayzyme.db'}")
    total = ROUNDS * PACED_S * PACED_PER_S
    with (
        ProgressTracker(checkpoint_dir=folder / "checkpoints", checkpoint_interval=2) as writing,
        ProgressTracker() as alone,
        Progress(console=Console(file=sink)) as rich,
    ):
        rich.stop()
        writing.publish("benchmark", database=database)
        for tracker in (writing, alone):
            tracker.start_task("work", "Work", total)
        task = rich.add_task("work", total=total)
        updates: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "alone": lambda: alone.update_task("work"),
            "writing": lambda: writing.update_task("work"),
            "rich": lambda: rich.advance(task),
        }
        rounds = [{name: _paced(update) for name, update in updates.items()} for _ in range(ROUNDS)]
    database.close()
    share = {name: min(each[name] for each in rounds) for name in updates}
    detail = {"clock_readings_percent": share["nothing"]}
    return [
        compared("1,000 updates/s, share of a core, against rich", share["alone"], share["rich"], "%", **detail),
        compared("the same with checkpoints and a database, against 1 %", share["writing"], 1.0, "%", **detail),
    ]


def _paced(update: Callable[[], object]) -> float:
    """CPU time of 1,000 updates a second, and of all threads behind them, in percent of a core; clock readings included."""
    begin, process, thread, updating = time.perf_counter(), time.process_time(), time.thread_time(), 0.0
    for number in range(PACED_S * PACED_PER_S):
        time.sleep(max(0.0, begin + number / PACED_PER_S - time.perf_counter()))
        before = time.thread_time()
        update()
        updating += time.thread_time() - before
    behind = (time.process_time() - process) - (time.thread_time() - thread)
    return 100 * (updating + behind) / (time.perf_counter() - begin)


def _answers() -> Measurement:
    """The slowest of many answers while eight threads write without a pause; the bar is 10 ms."""
    tracker, done = ProgressTracker(), threading.Event()
    for number in range(WRITERS):
        tracker.start_task(str(number), "Work", 10**9)

    def write(task: str) -> None:
        while not done.is_set():
            tracker.update_task(task)

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    seconds = []
    for _ in range(ANSWERS):
        begin = time.perf_counter()
        tracker.get_progress()
        seconds.append(time.perf_counter() - begin)
        time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join()
    p50, p99, slowest = (float(value) * 1e3 for value in np.percentile(seconds, [50, 99, 100]))
    detail = {"p50_ms": p50, "max_ms": slowest, "over_10_ms": sum(each > 0.01 for each in seconds), "answers": ANSWERS}
    return compared("get_progress while 8 threads write, p99, against 10 ms", p99, 10.0, "ms", **detail)


def _time_left(sink: Any) -> list[Measurement]:
    kinds = _recordings()
    covered, by_formula, errors, tqdm_errors = {}, {}, [], []
    for kind, traces in kinds.items():
        scores = [score for trace in traces for score in _scores(trace, sink)]
        covered[kind] = fmean(score[0] for score in scores)
        by_formula[kind] = fmean(score[1] for score in scores)
        errors += [score[2] for score in scores]
        tqdm_errors += [score[3] for score in scores]
        print(f"  {kind:22s} {len(traces)} x {len(traces[0])} steps, in the 80 % range: {covered[kind]:.0%}")
    ours, formula = 100 * fmean(covered.values()), 100 * fmean(by_formula.values())
    detail = {
        "in_range": covered,
        "in_range_by_single_steps": by_formula,
        "steps": {k: len(v[0]) for k, v in kinds.items()},
    }
    print(
        f"  true end in the 80 % range: {ours:.1f} % (70-90 wanted); by the deviation of single steps: {formula:.1f} %"
    )
    return [
        compared(
            "80 % range, points off 80 % coverage, against plain", abs(ours - 80), abs(formula - 80), "pp", **detail
        ),
        compared("median error of the time left, against tqdm", 100 * median(errors), 100 * median(tqdm_errors), "%"),
    ]


def _scores(trace: Trace, sink: Any) -> Iterator[tuple[bool, bool, float, float]]:
    """At 10, 20, .. 90 %: in the range, in the range by single steps, our relative error and tqdm's."""
    now, left = 0.0, sum(trace)
    tracker = ProgressTracker(len(trace), clock=lambda: now)
    bar = tqdm(total=len(trace), file=sink, mininterval=0, miniters=1)
    bar._time = lambda: now
    bar.start_t = bar.last_print_t = 0.0
    marks = {round(len(trace) * tenth / 10) for tenth in range(1, 10)}
    for number, seconds in enumerate(trace, 1):
        now, left = now + seconds, left - seconds
        tracker.update()
        bar.update()
        if number in marks:
            told = tracker.get_progress()
            times = StepTimes()
            for each in trace[max(0, number - 100) : number]:
                times.add(1, each)
            plain = remaining_time(len(trace) - number, times)
            theirs = (len(trace) - number) / bar.format_dict["rate"]
            yield (
                told["eta_low"] <= left <= told["eta_high"],
                plain.low <= left <= plain.high,
                abs(told["estimated_remaining"] - left) / left,
                abs(theirs - left) / left,
            )
    bar.close()


def _recordings() -> dict[str, list[Trace]]:
    sources = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    text = b"".join(sources)
    blocks = [text[begin : begin + 32_768] for begin in range(0, len(text), 32_768)]
    kinds: dict[str, list[Trace]] = {
        "compress blocks": [_record(blocks, zlib.compress) for _ in range(RECORDINGS)],
        "parse modules": [_record(sources, ast.parse) for _ in range(RECORDINGS)],
        "gathering particles": [_record(range(300), _Particles(seed).step) for seed in range(RECORDINGS)],
    }
    if SHARED.is_dir():
        kinds |= _encoding_recordings()
    else:
        print("  no recordings of encoders: ../shared is absent", file=sys.stderr)
    if SHARED.is_dir() and shutil.which("gmx"):
        kinds["GROMACS"] = list(_gromacs_recordings(2))
    else:
        print("  no recordings of GROMACS: gmx or ../shared is absent", file=sys.stderr)
    return kinds


def _record(items: Iterable[Any], work: Callable[[Any], object]) -> Trace:
    moments = [time.perf_counter()]
    for item in items:
        work(item)
        moments.append(time.perf_counter())
    return [later - earlier for earlier, later in pairwise(moments)]


def _encoding_recordings() -> dict[str, list[Trace]]:
    from rayzyme.models.baseline import BaselineEncoder
    from rayzyme.proteins import Protein

    encoder = BaselineEncoder.load()
    rows = [line.split("\t") for line in (SHARED / "data" / "enzymes.tsv").read_text().splitlines()[1:]]
    proteins = [
        Protein(accession, sequence)
        for accession, _ec, sequence in rows
        if set(sequence) <= set("ACDEFGHIKLMNPQRSTVWY")
    ]
    reactions = [line.split("\t")[1] for line in (SHARED / "data" / "reactions.tsv").read_text().splitlines()[1:]]
    parts = range(RECORDINGS)
    return {
        "encode proteins": [
            _record(proteins[n * 300 : n * 300 + 300], lambda p: encoder.encode_proteins([p])) for n in parts
        ],
        "encode reactions": [
            _record(reactions[n * 150 : n * 150 + 150], lambda r: encoder.encode_reactions([r])) for n in parts
        ],
    }


class _Particles:
    """Attracting particles: the nearer they come, the more pairs a step has to work on."""

    def __init__(self, seed: int) -> None:
        self._places = np.random.default_rng(seed).uniform(0, 6, (256, 3))
        self._speeds = np.zeros_like(self._places)

    def step(self, _number: int) -> None:
        for _ in range(3):
            apart = self._places[:, None] - self._places[None]
            squared = (apart**2).sum(-1) + 1e9 * np.eye(len(apart))
            one, other = np.nonzero(squared < 4.0)
            forces = np.zeros_like(self._places)
            np.add.at(forces, one, -apart[one, other] / np.maximum(squared[one, other], 0.5)[:, None])
            self._speeds = 0.99 * (self._speeds + 1e-3 * forces)
            self._places += 0.02 * self._speeds


def _gromacs_recordings(count: int) -> Iterator[Trace]:
    """Seconds between the lines that a molecular dynamics run prints, every 4 of its steps."""
    # By its path: another package may have installed something called `tests`.
    simulate = runpy.run_path(str(ROOT / "tests" / "support" / "gromacs.py"))["simulate"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(SHARED / "data" / "AF-P69905-F1-model_v4.cif", folder, steps=20)
        for _ in range(count):
            command = "gmx -nobackup mdrun -s md.tpr -deffnm again -v -stepout 4 -nsteps 480 -ntmpi 1 -ntomp 2"
            with subprocess.Popen(command.split(), cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as md:
                yield [later - earlier for earlier, later in pairwise(_moments_of_lines(md))]


def _moments_of_lines(md: subprocess.Popen[bytes]) -> Iterator[float]:
    assert md.stderr is not None
    said = b""
    while character := md.stderr.read(1):
        if character in b"\r\n":
            if said.startswith(b"step "):
                yield time.perf_counter()
            said = b""
        else:
            said += character
