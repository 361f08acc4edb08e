"""Which pairs are held out and in which order they are drawn; the same for the same seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

_STRATA = 10


def split_by_prompt(prompts: ArrayLike, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and those held out, in their order; no prompt is on both sides.

    Args:
        prompts: (n,) of each pair, what is equal for equal prompts; at least two different ones.
        share: how many of the different prompts are held out, at least one and never all.
        seed: chooses which.
    """
    _, first, number = np.unique(np.asarray(prompts), return_index=True, return_inverse=True)
    assert len(first) >= 2
    # Numbered as they first appear: the choice must not depend on how the hashes happen to sort.
    order_of = torch.from_numpy(first).argsort().argsort()
    held = min(max(1, round(share * len(first))), len(first) - 1)
    is_held = torch.zeros(len(first), dtype=torch.bool)
    is_held[_permutation(len(first), seed)[:held]] = True
    held_out = is_held[order_of[torch.from_numpy(number)]]
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def sample(count: int, size: int | None, seed: int) -> Tensor:
    """Return `size` of `count` indices in their order, or all where there are no more or size is None."""
    if size is None or size >= count:
        return torch.arange(count)
    return _permutation(count, seed)[:size].sort().values


def stratified_order(lengths: ArrayLike, source_of: ArrayLike, seed: int) -> Tensor:
    """Return an order (n,) of all pairs of which every beginning is a sample stratified by source and length.

    Each source is cut into tenths by length. Whatever number of pairs is taken from the front, each of these
    strata is in it with its share, to within one pair, and a larger number contains a smaller one. Within a
    stratum the order is random, and each pair is as likely as any other to stand early.

    Args:
        lengths: (n,) of each pair.
        source_of: (n,) of each pair, the number of its source.
        seed: decides the order.
    """
    sizes, sources = np.asarray(lengths), np.asarray(source_of)
    dice = np.random.Generator(np.random.PCG64(seed % 2**63))
    keys = np.empty(len(sizes))
    for source in np.unique(sources):
        of_source = (sources == source).nonzero()[0]
        by_length = of_source[np.argsort(sizes[of_source], kind="stable")]
        for stratum in np.array_split(by_length, _STRATA):
            # Pair j of m would be due at j / m of the way; the offset gives the rounding no preference.
            keys[dice.permutation(stratum)] = (np.arange(len(stratum)) + dice.random()) / max(len(stratum), 1)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
