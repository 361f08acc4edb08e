"""What losses at rising learning rates say: where they fall fastest, are lowest, diverge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from orpo_lightning.observing.evidence import student_quantile

FEWEST = 10
"""Steps without which nothing can be said."""
DIVERGED = 2.0
"""Times the lowest level of the losses so far, from where on a loss has diverged."""
_SHARE = 0.1  # of all steps, that a straight line is laid through on each side of one
_CERTAIN = 0.9973  # of chance's slopes that a fall must be steeper than: three standard errors of many points
_BELOW = 10.0  # times lower than where it diverges


class Fit(NamedTuple):
    """A straight line through the losses around one learning rate."""

    rate: float
    loss: float
    slope: float
    """Of the loss, for a learning rate ten times as high."""
    error: float
    """Standard error of the slope."""
    points: int
    """How many losses it goes through."""

    @property
    def falls(self) -> bool:
        """Whether it falls by more than its noise; the error of few points is itself known badly."""
        return self.slope < -student_quantile(self.points - 2, _CERTAIN) * self.error


class Suggestion(NamedTuple):
    """A learning rate to begin with."""

    rate: float | None
    """None where no learning rate lowers the loss for certain."""
    reason: str
    steepest: float | None
    lowest: float
    diverged: float | None
    """None where it never did."""


def smooth(rates: Sequence[float], losses: Sequence[float]) -> list[Fit]:
    """Return a line through the neighbours of each step: smoothed without being shifted.

    Args:
        rates: (n,) learning rates, rising by the same factor.
        losses: (n,) finite ones.
    """
    half = _half(len(losses))
    xs = [math.log10(rate) for rate in rates]
    fits = []
    for place, rate in enumerate(rates):
        near = slice(max(0, place - half), place + half + 1)
        fits.append(_line(rate, xs[place], xs[near], losses[near]))
    return fits


def _half(steps: int) -> int:
    return max(3, round(_SHARE * steps))


def _line(rate: float, at: float, xs: Sequence[float], ys: Sequence[float]) -> Fit:
    count, mean_x, mean_y = len(xs), sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    error = math.sqrt(rest / max(count - 2, 1) / spread)
    return Fit(rate, mean_y + slope * (at - mean_x), slope, error, count)


def level(losses: Sequence[float], steps: int) -> float:
    """Return the mean of the last losses, as many as a line goes through; infinite of fewer than FEWEST.

    What has diverged is measured by it: the lowest single loss may be that of one easy pair.

    Args:
        losses: of the steps so far; those that are not finite do not count.
        steps: of the whole ramp.
    """
    count = max(FEWEST, 2 * _half(steps) + 1)
    near = [loss for loss in losses[-count:] if math.isfinite(loss)]
    return fmean(near) if len(near) >= FEWEST else math.inf


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Return the learning rate at which the loss falls fastest, at most a tenth of where it diverges.

    Args:
        rates: (n,) learning rates, rising by the same factor; n at least FEWEST.
        losses: (n,) of each step; not finite ones have diverged.
    """
    end = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    diverged = _diverged(rates, losses, end)
    fits = smooth(rates[:end], losses[:end])
    bottom = min(fits, key=lambda fit: fit.loss)
    falling = [fit for fit in fits if fit.rate <= bottom.rate and fit.falls]
    if not falling:
        reason = "the loss falls at no learning rate by more than its noise: try more --steps"
        return Suggestion(None, reason, None, bottom.rate, diverged)
    steepest = min(falling, key=lambda fit: fit.slope).rate
    if diverged is not None and steepest > diverged / _BELOW:
        reason = "a tenth of where the loss diverges"
        return Suggestion(diverged / _BELOW, reason, steepest, bottom.rate, diverged)
    return Suggestion(steepest, "the loss falls fastest there", steepest, bottom.rate, diverged)


def _diverged(rates: Sequence[float], losses: Sequence[float], end: int) -> float | None:
    """Return the first learning rate from which on the loss stays far above its lowest level."""
    lowest = min(level(losses[: place + 1], len(losses)) for place in range(end))
    last_well = max(place for place in range(end) if losses[place] <= DIVERGED * lowest)
    return rates[last_well + 1] if last_well + 1 < len(losses) else None
