"""A frozen vocabulary projection in blocks of its columns, for the CPU: the logits of a step never exist.

log p(y) = z_y − log Σ_v exp z_v and its gradient by the hidden state, W_y − Σ_v softmax(z)_v W_v, need each
logit once. So a block of them is made, used and dropped while it lies in the processor's cache; the maximum
and both sums run along and are scaled anew where a block raises the maximum, as FlashAttention does with its
keys (arXiv 2205.14135). The arithmetic is that of whole logits; saved is their way to memory and back.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 2048
"""Columns at a time: for a thousand hidden states 8 MB of logits, which stay in a desktop's cache."""


class LinearHead(NamedTuple):
    """A head whose logits are scale · (hidden Wᵀ + bias), and nothing else."""

    projection: nn.Linear
    """W is (V, H)."""
    scale: float = 1.0

    def takes_blocks(self, hidden: Tensor) -> bool:
        """Tell whether blocks serve these states: on a CPU, in single or double precision throughout."""
        return (
            hidden.device.type == "cpu"
            and hidden.dtype == self.projection.weight.dtype
            and hidden.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
        )


class _Sums(NamedTuple):
    """What is known of N states' logits after some blocks."""

    highest: Tensor
    """(N, 1)"""
    total: Tensor
    """(N, 1), Σ exp(z − highest)."""
    target: Tensor
    """(N, 1), the target's logit, when its block has been."""
    mean: Tensor | None
    """(N, H), Σ exp(z − highest) W."""


@torch.no_grad()
def blocked_logps(
    hidden: Tensor, target_ids: Tensor, head: LinearHead, *, with_jacobian: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log p(target) (N,) and, if wanted, its gradient by each hidden state.

    Args:
        hidden: (N, H), the state each target is predicted from.
        target_ids: (N,) int64.
        head: the vocabulary projection.
        with_jacobian: whether the gradient is wanted, (N, H).
    """
    weight, scale = head.projection.weight, head.scale
    states = hidden if scale == 1.0 else hidden * scale
    nothing = hidden.new_zeros(len(target_ids), 1)
    mean = torch.zeros_like(hidden) if with_jacobian else None
    sums = _Sums(torch.full_like(nothing, -torch.inf), nothing, nothing, mean)
    for start in range(0, weight.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        bias = None if head.projection.bias is None else head.projection.bias[block] * scale
        sums = _add_block(sums, states, target_ids[:, None] - start, weight[block], bias)
    logps = (sums.target - sums.highest - sums.total.log())[:, 0]
    if sums.mean is None:
        return logps, None
    jacobian = weight[target_ids].sub_(sums.mean.div_(sums.total))
    return logps, jacobian if scale == 1.0 else jacobian.mul_(scale)


def _add_block(sums: _Sums, states: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> _Sums:
    """Return the sums with one more block of the vocabulary; `ids` (N, 1) count from its first column."""
    width = weight.shape[0]
    logits = _product(states, weight)
    logits = logits if bias is None else logits.add_(bias)
    inside = (ids >= 0) & (ids < width)
    target = torch.where(inside, logits.gather(1, ids.clamp(0, width - 1)), sums.target)
    highest = torch.maximum(sums.highest, logits.amax(1, keepdim=True))
    shrink = (sums.highest - highest).exp_()
    exponentials = logits.sub_(highest).exp_()
    total = (sums.total * shrink).add_(exponentials.sum(1, keepdim=True))
    if sums.mean is not None:
        sums.mean.mul_(shrink).add_(_product(exponentials, weight.t()))
    return _Sums(highest, total, target, sums.mean)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left rightᵀ, by oneDNN where it can: 15 % faster at these shapes than what torch.mm takes.

    Its kernels are made for a shape at its first use, half a millisecond each. The blocks of a step share two
    of them; a layer's products, of which a step of its own length has a few of each shape, gain nothing.
    """
    if left.dtype != torch.float32 or not _has_onednn():
        return left @ right.t()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


@cache
def _has_onednn() -> bool:
    """Tell whether torch has oneDNN's linear layer for ordinary tensors (inductor's own; no public name)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
