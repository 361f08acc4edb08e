"""A frozen vocabulary projection in blocks of its columns, for the CPU: the logits of a step never exist.

log p(y) = z_y − log Σ_v exp z_v and its gradient by the hidden state, W_y − Σ_v softmax(z)_v W_v, need each
logit once. So a block of them is made, used and dropped while it lies in the processor's cache. A block's
softmax, its mean of W's rows and its log-sum-exp are merged with those of the blocks before by the share that
the block has of the probability, as FlashAttention merges its blocks of keys (arXiv 2205.14135). The
arithmetic is that of whole logits; saved is their way to memory and back.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from orpo_lightning.head import Head

MOST_COLUMNS = 2048
_FEWEST_COLUMNS = 256
_LOGITS = 2**20
"""In a block, where it has not the fewest columns: 4 MB, which stay in a desktop's cache."""


def block_columns(rows: int) -> int:
    """Return how many columns a block has for so many hidden states: a power of two."""
    fitting = max(_FEWEST_COLUMNS, _LOGITS // max(1, rows))
    return min(MOST_COLUMNS, 1 << (fitting.bit_length() - 1))


def takes_blocks(head: Head, hidden: Tensor) -> bool:
    """Tell whether blocks serve: a frozen linear layer on a CPU, single or double precision throughout."""
    return (
        type(head.projection) is nn.Linear
        and head.is_frozen
        and head.cap is None
        and hidden.device.type == "cpu"
        and hidden.dtype == head.projection.weight.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


class _Seen(NamedTuple):
    """What is known of N states after some blocks."""

    log_sum: Tensor
    """(N, 1), log Σ exp z."""
    target: Tensor
    """(N, 1), the target's logit, when its block has been."""
    mean: Tensor | None
    """(N, H), Σ softmax(z) W."""


@torch.no_grad()
def blocked_logps(
    hidden: Tensor, target_ids: Tensor, head: Head, *, with_jacobian: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log p(target) (N,) and, if wanted, its gradient by each hidden state.

    Args:
        hidden: (N, H), the state each target is predicted from.
        target_ids: (N,) int64.
        head: one that `takes_blocks`.
        with_jacobian: whether the gradient is wanted, (N, H).
    """
    projection, scale = head.projection, head.scale
    assert isinstance(projection, nn.Linear)
    weight = projection.weight
    states = hidden if scale == 1.0 else hidden * scale
    nothing = hidden.new_zeros(len(target_ids), 1)
    mean = torch.zeros_like(hidden) if with_jacobian else None
    seen = _Seen(torch.full_like(nothing, -torch.inf), nothing, mean)
    columns = block_columns(len(target_ids))
    for start in range(0, weight.shape[0], columns):
        block = slice(start, start + columns)
        bias = None if projection.bias is None else projection.bias[block] * scale
        seen = _add_block(seen, states, target_ids[:, None] - start, weight[block], bias)
    logps = (seen.target - seen.log_sum)[:, 0]
    if seen.mean is None:
        return logps, None
    jacobian = weight[target_ids].sub_(seen.mean)
    return logps, jacobian if scale == 1.0 else jacobian.mul_(scale)


def _add_block(seen: _Seen, states: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> _Seen:
    """Return what is known with one more block; `ids` (N, 1) count from its first column."""
    width = weight.shape[0]
    logits = _product(states, weight)
    logits = logits if bias is None else logits.add_(bias)
    inside = (ids >= 0) & (ids < width)
    target = torch.where(inside, logits.gather(1, ids.clamp(0, width - 1)), seen.target)
    highest = logits.amax(1, keepdim=True)
    # In place, and one pass over the cache for what exp and sum would take three.
    softmax = torch.softmax(logits, 1, out=logits)
    # The highest logit's share is one over the sum: so log p(target) never comes out above zero.
    log_sum = highest - softmax.amax(1, keepdim=True).log_()
    if seen.mean is not None:
        share = torch.sigmoid(log_sum - seen.log_sum)
        seen.mean.lerp_(_product(softmax, weight.t()), share)
    return _Seen(torch.logaddexp(seen.log_sum, log_sum), target, seen.mean)


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
