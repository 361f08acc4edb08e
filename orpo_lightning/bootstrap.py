"""Bootstrap intervals of means over pairs: prompts are drawn, not pairs, which are not independent in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 4000


class Estimate(NamedTuple):
    """A mean with the ends of its 95 % interval; both are the mean where one prompt is all there is."""

    mean: float
    low: float
    high: float
    pairs: int


def estimate(
    values: ArrayLike, groups: Iterable[Any], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return a mean over pairs with its percentile interval, whole prompts drawn with replacement.

    Of a difference of two models, give each pair's difference: that is the paired bootstrap.

    Args:
        values: (n,) one of each pair, n at least 1.
        groups: (n,) the prompt of each pair, as anything that can be hashed.
        resamples: how many draws.
        seed: of the draws.
    """
    numbers = np.asarray(values, dtype=np.float64)
    first_seen: dict[Any, int] = {}  # in the order of the pairs: hashes of texts differ between processes
    place = np.asarray([first_seen.setdefault(group, len(first_seen)) for group in groups])
    sums, counts = np.bincount(place, numbers), np.bincount(place)
    draw = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 256):  # few at once: a million prompts must not fill the memory
        block = draw.integers(len(sums), size=(min(256, resamples - start), len(sums)))
        means[start : start + len(block)] = sums[block].sum(axis=1) / counts[block].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))
