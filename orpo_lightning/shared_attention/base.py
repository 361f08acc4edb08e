"""What every backend of attention over shared prefixes is asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Recipe(NamedTuple):
    """How scores become weights: what an architecture does beside causal softmax(q·k)·v."""

    scale: float
    """Of the scores."""
    window: int | None = None
    """A query sees this many tokens, its own included; None: all before it."""
    softcap: float | None = None
    """Scores are bent into ±softcap."""
    sinks: Tensor | None = None
    """(heads,) a score of nothing: it takes its share of each query's weight and adds no value."""
    dropout: float = 0.0
    """Of the weights."""


def same_dtype(*tensors: Tensor) -> list[Tensor]:
    """Cast to autocast's dtype where it is on, as it does itself in front of torch's own attention."""
    kind = tensors[0].device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        if tensors[0].dtype != torch.float64:
            return [tensor.to(dtype) for tensor in tensors]
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def same_width(*tensors: Tensor, multiple: int = 1) -> list[Tensor]:
    """Fill the last dimension with zeros up to the widest of them: neither scores nor values change."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return [at_least(tensor, width + -width % multiple) for tensor in tensors]


def at_least(tensor: Tensor, width: int) -> Tensor:
    """Fill the last dimension with zeros where it is narrower."""
    missing = width - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing > 0 else tensor
