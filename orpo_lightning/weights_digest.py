"""Tells whether weights changed, without a copy of them and without moving them off their device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_SUMMED = 2**24  # 128 MB of int64


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of weights: of their names, shapes and the sums of their words.

    Sums of whole numbers are the same on every device and in any order of adding. A change that leaves the
    sum of a weight's words as it was is not seen: elements that change places, changes that cancel out to the
    bit.

    Args:
        named: names and tensors of any kind; or tensors that are all shared out over the processes, which
            must call together: each counts its part.
    """
    shapes, sums, sharded = [], [], False
    for name, tensor in named:
        shapes.append((name, tuple(tensor.shape)))
        sums.append(_sum_of_words(tensor))
        sharded |= hasattr(tensor, "to_local")
    if sharded:
        sums = [together := torch.stack(sums)]
        torch.distributed.all_reduce(together)
    # Brought to the host together, not one by one.
    totals = torch.stack(sums).flatten().tolist() if sums else []
    return hashlib.sha256(repr(list(zip(shapes, totals, strict=True))).encode()).hexdigest()


@torch.no_grad()
def _sum_of_words(tensor: Tensor) -> Tensor:
    """Return the sum () int64 of a tensor's bytes, taken four at a time where they come so."""
    local: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
    flat = local.contiguous().reshape(-1).view(torch.uint8)
    return sum_of_bits(flat.view(torch.int32) if flat.numel() % 4 == 0 else flat)


def sum_of_bits(numbers: Tensor) -> Tensor:
    """Return the sum () int64 of whole numbers (n,), slice by slice: torch casts what it sums to int64 first.

    Of an embedding at once that would be several GB.
    """
    sums = [part.sum(dtype=torch.int64) for part in numbers.split(_SUMMED)]
    return torch.stack(sums).sum()
