"""Which pairs are held out: by prompt, or a sample of a given size; the same for the same seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


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


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
