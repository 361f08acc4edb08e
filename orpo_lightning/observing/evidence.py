"""How sure a mean of few numbers is: intervals of plain lists, with the standard library alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

FEWEST = 5
"""Independent numbers below which no interval is given: `student_quantile` is too short there."""


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def rises(self) -> bool:
        """Whether it lies above zero as a whole."""
        return self.low > 0

    @property
    def falls(self) -> bool:
        """Whether it lies below zero as a whole."""
        return self.high < 0

    def around(self, level: float, other: float) -> Interval:
        """Return the interval of another level, of a mean that is about normally distributed."""
        return self.wider(normal_quantile(other) / normal_quantile(level))

    def wider(self, by: float) -> Interval:
        """Return an interval so many times as wide."""
        return Interval(
            self.mean, self.mean - by * (self.mean - self.low), self.mean + by * (self.high - self.mean)
        )


def normal_quantile(level: float = 0.95) -> float:
    """Return how many standard deviations to either side hold a share of the normal distribution."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def student_quantile(freedom: float, level: float = 0.95) -> float:
    """Return the same of Student's t, by its expansion about the normal's; within 2 % from 4 on."""
    z, v = normal_quantile(level), max(freedom, 1.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def of_mean(values: Sequence[float], groups: Sequence[Hashable], level: float) -> Interval | None:
    """Return the interval of a mean over pairs, those of one prompt counted as one draw.

    Args:
        values: (n,) one of each pair.
        groups: (n,) the prompt of each.
        level: such as 0.99.

    Returns:
        None for fewer than FEWEST prompts.
    """
    count = len(set(groups))
    if count < FEWEST:
        return None
    mean = fmean(values)
    half = student_quantile(count - 1, level) * math.sqrt(_variance(values, groups, mean))
    return Interval(mean, mean - half, mean + half)


def of_share(hits: Sequence[float], groups: Sequence[Hashable], level: float) -> Interval | None:
    """Return Wilson's interval of a share of pairs (hits are 0 and 1), with prompts counted as draws."""
    count = len(set(groups))
    if count < FEWEST:
        return None
    share = fmean(hits)
    spread = _variance(hits, groups, share)
    # As many independent pairs as would vary like these; where all are alike, one a prompt.
    pairs = min(share * (1 - share) / spread, len(hits)) if spread else count
    z2 = normal_quantile(level) ** 2 / pairs
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def of_difference(now: Sequence[float], before: Sequence[float], level: float) -> Interval | None:
    """Return the interval of mean(now) - mean(before), two sets of independent numbers (Welch)."""
    if min(len(now), len(before)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (now, before)]
    spread, mean = sum(parts), fmean(now) - fmean(before)
    if not spread:
        return Interval(mean, mean, mean)
    freedoms = (len(now) - 1, len(before) - 1)
    freedom = spread**2 / sum(part**2 / v for part, v in zip(parts, freedoms, strict=True))
    half = student_quantile(freedom, level) * math.sqrt(spread)
    return Interval(mean, mean - half, mean + half)


def of_correlation(xs: Sequence[float], ys: Sequence[float], level: float) -> Interval | None:
    """Return Fisher's interval of the correlation of two lists; None where one of them is constant."""
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys)
    if len(xs) < FEWEST or not spread:
        return None
    both = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    found = max(-0.999999, min(0.999999, both / math.sqrt(spread)))
    half = normal_quantile(level) / math.sqrt(len(xs) - 3)
    return Interval(found, math.tanh(math.atanh(found) - half), math.tanh(math.atanh(found) + half))


def _variance(values: Sequence[float], groups: Sequence[Hashable], mean: float) -> float:
    """Return the variance of a mean of groups that are drawn as wholes."""
    sums: defaultdict[Hashable, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    count = len(sums)
    return sum(total**2 for total in sums.values()) / len(values) ** 2 * count / (count - 1)
