"""The plots of the reports, as SVG data URIs: sharp at any size, and nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rayzyme.errors import InvalidInput

INK = "#334155"
ACCENT = "#0f766e"
ACCENT_SOFT = "#99d5cd"
MARK = "#c2410c"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayzyme",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}


def recall_curve(cutoffs: Sequence[int], recall: Sequence[float], total: int) -> str:
    """Mean recall among the k best on a logarithmic axis, beside what chance gives.

    Args:
        cutoffs: k, increasing, from 1 to `total`.
        recall: Mean recall at each k, 0 to 1.
        total: Proteins ranked.

    Returns:
        A data URI of type image/svg+xml.
    """

    def draw(axes: Any) -> None:
        axes.fill_between(cutoffs, recall, color=ACCENT_SOFT, alpha=0.35, linewidth=0)
        axes.plot(cutoffs, recall, color=ACCENT, linewidth=2, label="known enzymes found")
        axes.plot(cutoffs, np.asarray(cutoffs) / total, color="#94a3b8", linestyle="--", linewidth=1.2, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(1, total)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("k best proteins (logarithmic)")
        axes.set_ylabel("recall")
        axes.legend(frameon=False, loc="upper left")

    return _figure(draw)


def histogram(
    values: ArrayLike,
    x_label: str,
    y_label: str,
    *,
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """How values spread.

    Args:
        values: Float (n,), finite.
        x_label: What a value is.
        y_label: What is counted.
        mark: A value to mark with a line.
        limits: Least and greatest possible value; None takes the values' own.
        log: Counts on a logarithmic axis, which shows a thin tail.

    Returns:
        A data URI of type image/svg+xml.

    Raises:
        InvalidInput: A value is NaN or infinite.
    """
    spread = np.asarray(values, dtype=np.float64)
    if not np.isfinite(spread).all():
        raise InvalidInput(f"a histogram of {x_label} needs finite values; some are NaN or infinite")

    def draw(axes: Any) -> None:
        bins = 20 if limits else min(60, max(10, int(np.sqrt(spread.size))))
        axes.hist(spread, bins=bins, range=limits, color=ACCENT, edgecolor="white", linewidth=0.4, log=log)
        if mark is not None:
            axes.axvline(mark, color=MARK, linewidth=1.4)
        axes.set_xlabel(x_label)
        axes.set_ylabel(f"{y_label} (logarithmic)" if log else y_label)

    return _figure(draw)


def _figure(draw: Any) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot: reports are also written from threads of a server.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
