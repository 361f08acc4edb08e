"""95 % intervals of means: what another draw of as many pairs from the same source would rarely leave."""

from __future__ import annotations

import torch
from torch import Tensor

from orpo_lightning.observing.evidence import normal_quantile, student_quantile


def deviations(sums: Tensor, counts: Tensor) -> Tensor:
    """Return (n, ...): how far each pair moves the mean sum(sums) / sum(counts), to first order.

    A token mean is a quotient of two sums that vary together; its spread is that of these deviations, which
    add up to zero. With all counts 1 they are (value - mean) / n.

    Args:
        sums: (n, ...) what each pair adds to the numerator.
        counts: (n, ...) what it adds to the denominator.
    """
    total = counts.sum(dim=0).clamp(min=torch.finfo(counts.dtype).tiny)
    return (sums - sums.sum(dim=0) / total * counts) / total


def half_width(moved: Tensor, pairs: int) -> Tensor:
    """Return half the width of a mean's interval, (...), by Student's t.

    Args:
        moved: (n, ...) deviations.
        pairs: how many of them are of pairs that count, at least 2.
    """
    variance = moved.square().sum(dim=0) * pairs / (pairs - 1)
    return student_quantile(pairs - 1) * variance.sqrt()


def share_interval(share: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Return Wilson's interval of a share of pairs: within 0 and 1, and no point even at either."""
    z2 = normal_quantile() ** 2 / pairs
    centre = (share + z2 / 2) / (1 + z2)
    half = (z2 * share * (1 - share) + z2**2 / 4).sqrt() / (1 + z2)
    return (centre - half).clamp(min=0), (centre + half).clamp(max=1)


def interval(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the lower and upper end, each (), of the interval of sum(sums) / sum(counts).

    Pairs are taken as independent of each other, and as drawn from a source without end: where a sample is a
    large part of all held-out pairs it lies closer to their mean than this says.

    Args:
        sums: (n,) what each pair adds to the numerator.
        counts: (n,) what it adds to the denominator; pairs that add 0 do not count.

    Returns:
        None for fewer than two pairs.
    """
    pairs = int((counts > 0).sum())
    if pairs < 2:
        return None
    mean = sums.sum() / counts.sum()
    if bool((((sums == 0) | (sums == 1)) & (counts == (counts > 0)) & (sums <= counts)).all()):
        return share_interval(mean, pairs)
    half = half_width(deviations(sums, counts), pairs)
    return mean - half, mean + half
