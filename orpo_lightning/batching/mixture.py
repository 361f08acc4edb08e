"""How pairs of several sources are mixed: which of them an epoch takes, and in what order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def epoch_order(num_pairs: int, *, seed: int, epoch: int) -> Tensor:
    """Return the permutation (num_pairs,) of one epoch."""
    # Neighbouring seeds must not share epochs, as seed + epoch would.
    generator = torch.Generator().manual_seed(((seed << 24) ^ epoch) % 2**63)
    return torch.randperm(num_pairs, generator=generator)


def quotas(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a whole number by shares: each gets its part rounded down, the largest remainders one more.

    Args:
        total: what is divided; the result adds up to it.
        shares: positive, in any unit.
    """
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def mixed_order(
    sizes: Sequence[int], shares: Sequence[float], *, seed: int, epoch: int, shuffle: bool = True
) -> Tensor:
    """Return the pairs of one epoch, as indices into all sources one behind the other.

    An epoch has as many pairs as all sources together, each source its share of them. A source that has more
    goes on in the next epoch where this one stopped, one that has fewer begins again, each time in a new
    order: in the long run all its pairs are seen equally often. The order depends on nothing but the
    arguments, so a resumed run finds its place by counting.

    Args:
        sizes: pairs of each source, at least one.
        shares: the weight of each source, in any unit.
        seed: with the epoch, all that decides the order.
        epoch: counted from 0.
        shuffle: False takes each source in its own order and spreads the sources evenly over the epoch.
    """
    counts = quotas(sum(sizes), shares)
    drawn, spread, first = [], [], 0
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        places = torch.arange(epoch * count, (epoch + 1) * count)
        passes = [_pass(size, seed * 1009 + number, int(p), shuffle) for p in (places // size).unique()]
        if count:
            offset = places - places[0] // size * size
            drawn.append(torch.cat(passes)[offset] + first)
            spread.append((torch.arange(count) + 0.5) / count)
        first += size
    together = torch.cat(drawn)
    if shuffle:
        return together[epoch_order(len(together), seed=seed, epoch=epoch)]
    return together[torch.cat(spread).argsort(stable=True)]


def most_repeats(mixture: Sequence[tuple[int, float]]) -> int:
    """Return how often at most one pair comes in an epoch, from the (pairs, weight) of each source."""
    sizes, weights = zip(*mixture, strict=True)
    return max(-(-count // size) for size, count in zip(sizes, quotas(sum(sizes), weights), strict=True)) + 1


def _pass(size: int, seed: int, number: int, shuffle: bool) -> Tensor:
    return epoch_order(size, seed=seed, epoch=number) if shuffle else torch.arange(size)
