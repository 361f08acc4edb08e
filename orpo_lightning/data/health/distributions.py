"""Numbers of many pairs, brought to a histogram and a few figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]
_BARS = 24
# What is beyond these shares goes into the first and the last bar: else one giant puts all others into one.
_LOW, _HIGH = 0.005, 0.995


def describe(lengths: Numbers) -> dict[str, Any]:
    """Return histogram, median, 95 % value, maximum and mean of whole numbers that are not negative.

    Args:
        lengths: (n,) tokens. The histogram begins at 0 and its steps are powers of two, as usual limits are.
    """
    if not len(lengths):
        return {"edges": [0, 1], "counts": [0], "median": None, "p95": None, "max": None, "mean": None}
    most, high = int(lengths.max()), float(np.quantile(lengths, _HIGH))
    step = 2 ** max(0, math.ceil(math.log2(max(high, 1) / _BARS)))
    edges = [step * number for number in range(int(high // step) + 2)]
    if most >= edges[-1]:
        # No narrower than the others, or a bar of the few longest would look like a peak of its own.
        edges.append(max(most + 1, edges[-1] + step))
    return {
        "edges": edges,
        "counts": np.histogram(lengths, edges)[0].tolist(),
        "median": _plain(float(np.median(lengths))),
        # A length that occurs: 95 % of the pairs are no longer than this.
        "p95": int(np.quantile(lengths, 0.95, method="inverted_cdf")),
        "max": most,
        "mean": round(float(lengths.mean(dtype=np.float64)), 1),
    }


def spread(values: Numbers) -> dict[str, list[float]]:
    """Return the histogram of any finite numbers, in steps of 1, 2 or 5 of some power of ten.

    Args:
        values: (n,) at least one.
    """
    low, high = (float(np.quantile(values, share)) for share in (_LOW, _HIGH))
    step = _round_step((high - low) / _BARS)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    edges = [round(step * number, 10) for number in range(first, last + 1)]
    least, most = float(values.min()), float(values.max())
    if least < edges[0]:
        edges.insert(0, least)
    if most > edges[-1]:
        edges.append(most)
    return {"edges": edges, "counts": np.histogram(values.astype(np.float64), edges)[0].tolist()}


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 ... and their tenths that is not below a value; 1 for none."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def share(part: float, whole: float) -> float:
    """Return a part's share of a whole; 0 of nothing."""
    return part / whole if whole else 0.0
