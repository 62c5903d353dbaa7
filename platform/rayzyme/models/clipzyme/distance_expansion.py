"""The distance part of an edge layer as a short polynomial.

CLIPZyme embeds a distance d in `width` sines and cosines whose frequencies fall from 1 to 1/10,000 per ångström, and
multiplies by a matrix. Every output is then a function of d that holds no frequency above 1, and over an interval of
length D such functions have only about D/3 degrees of freedom plus a dozen: some twenty Chebyshev polynomials stand
for 1,280 sines, to the last digits of float32. The length of the series is not guessed: it is cut where a bound on
all that is left out falls below `TOLERANCE`.
"""

from __future__ import annotations

import math

import torch

TOLERANCE = 3e-8
"""Largest error of any output, as a share of the largest sum of one output's coefficients (float32 carries 6e-8)."""

_SHORTEST_INTERVAL = 16.0
_LONGEST_INTERVAL = 1024.0


def sinusoidal_embedding(distances: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of distances at `width / 2` frequencies in geometric progression from 1 to 1/10,000.

    Args:
        distances: (e,) in ångström, floating.
        width: Even.

    Returns:
        (e, width), of the type of `distances`.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=distances.dtype, device=distances.device)
    frequencies = torch.exp(exponents * (-math.log(10_000.0) / (half - 1)))
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class DistanceExpansion:
    """`sinusoidal_embedding(d) @ weight.T` for one weight, in the cheapest basis that is exact to float32.

    Args:
        weight: float32 (outputs, width) on the CPU; kept, and read again where distances outgrow the interval so far.
        device: Where the results go.
    """

    def __init__(self, weight: torch.Tensor, device: torch.device) -> None:
        self._weight = weight
        self._device = device
        self._coefficients: dict[float, torch.Tensor | None] = {}

    def expand(self, distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two factors whose product is the distance part.

        Args:
            distances: float32 (e,) on the device.

        Returns:
            float32 (e, r) and float32 (r, outputs), r much smaller than the width wherever possible.
        """
        longest = float(distances.max()) if len(distances) else 0.0
        interval = _interval_for(longest)
        coefficients = self._coefficients_on(interval) if interval is not None else None
        if interval is None or coefficients is None:
            width = self._weight.shape[1]
            return sinusoidal_embedding(distances, width), self._weight.t().to(self._device)
        return _chebyshev_basis(distances, len(coefficients), interval), coefficients

    def _coefficients_on(self, interval: float) -> torch.Tensor | None:
        """(r, outputs) on the device; None where the series would be no shorter than the sines themselves."""
        if interval not in self._coefficients:
            series = _chebyshev_series(self._weight.double(), interval)
            length = _sufficient_length(series)
            worthwhile = length < self._weight.shape[1]
            self._coefficients[interval] = series[:length].float().to(self._device) if worthwhile else None
        return self._coefficients[interval]


def _interval_for(longest: float) -> float | None:
    """The shortest interval [0, 16 * 2^i] with the distance in it; None for distances (or NaN) beyond the longest."""
    interval = _SHORTEST_INTERVAL
    while interval <= _LONGEST_INTERVAL:
        if longest <= interval:
            return interval
        interval *= 2
    return None


def _chebyshev_basis(distances: torch.Tensor, length: int, interval: float) -> torch.Tensor:
    """T_0 ... T_{length-1} at distances of [0, interval] mapped onto [-1, 1]."""
    # In double precision: T_n amplifies the rounding of its argument up to n^2 times.
    argument = (distances.double() * (2 / interval) - 1).clamp(-1, 1).acos()
    orders = torch.arange(length, dtype=torch.float64, device=distances.device)
    return (argument[:, None] * orders).cos().float()


def _chebyshev_series(weight: torch.Tensor, interval: float) -> torch.Tensor:
    """Chebyshev coefficients (m, outputs) of the distance part, exact to double precision.

    The coefficients of a frequency f are Bessel functions J_n(f * interval / 2), which vanish faster than any power
    once n passes f * interval / 2; interpolation in m points is exact when nothing is left beyond m.
    """
    phase = interval / 2
    points = math.ceil(phase + 10 * phase ** (1 / 3) + 20)
    angles = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    values = sinusoidal_embedding((angles.cos() + 1) * phase, weight.shape[1])
    transform = torch.cos(torch.arange(points, dtype=torch.float64)[:, None] * angles) * (2 / points)
    transform[0] /= 2
    series: torch.Tensor = (transform @ values) @ weight.t()
    return series


def _sufficient_length(series: torch.Tensor) -> int:
    """How many leading terms suffice: |T_n| <= 1, so what is cut off is at most the sum of its coefficients."""
    magnitudes = series.abs()
    tails = magnitudes.flip(0).cumsum(0).flip(0).max(dim=1).values
    allowed = TOLERANCE * float(magnitudes.sum(dim=0).max())
    return max(1, int((tails > allowed).sum()))
