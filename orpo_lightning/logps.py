"""From hidden states to the log-probabilities of preference pairs, without ever holding the whole logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from orpo_lightning.batching.base import Normalisers, PairBatch
from orpo_lightning.head import Head
from orpo_lightning.vocabulary_blocks import blocked_logps, takes_blocks

CHUNK_BYTES = 128 * 2**20
"""Size of the fp32 logits held at a time; backward of a chunk needs about three times as much."""


class PairLogps(NamedTuple):
    """Log-probabilities of B preference pairs under one model, as sums and counts, fp32.

    Sums rather than means, so that every objective finds its own normalisation (a mean for ORPO, a sum for
    DPO).
    """

    chosen_sum: Tensor
    """(B,) log p(chosen answer | prompt), with gradient."""
    rejected_sum: Tensor
    """(B,) log p(rejected answer | prompt), with gradient."""
    prompt_sum: Tensor
    """(B,) log p(prompt) from its second token on, with gradient."""
    chosen_tokens: Tensor
    """(B,) how many targets `chosen_sum` adds up."""
    rejected_tokens: Tensor
    """(B,) how many targets `rejected_sum` adds up."""
    prompt_tokens: Tensor
    """(B,) how many targets `prompt_sum` adds up."""
    normalisers: Normalisers | None = None
    """Totals of the whole optimizer step; None: these pairs are the whole step."""
    router_loss: Tensor | None = None
    """(), a mixture-of-experts model's load-balancing loss of this batch."""

    @property
    def weights(self) -> Tensor:
        """(B,) 1 for a pair that counts, 0 where an answer has no target: such a pair touches nothing."""
        return ((self.chosen_tokens > 0) & (self.rejected_tokens > 0)).to(self.chosen_sum.dtype)

    def answer_means(self) -> tuple[Tensor, Tensor]:
        """Return the mean log-probability of a token of the chosen and of the rejected answers, (B,) each."""
        chosen = self.chosen_sum / self.chosen_tokens.clamp(min=1)
        return chosen, self.rejected_sum / self.rejected_tokens.clamp(min=1)


def chunk_rows(vocabulary: int) -> int:
    """Return how many rows of fp32 logits over `vocabulary` tokens fill CHUNK_BYTES (at least 16)."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def rows_logps(hidden: Tensor, target_ids: Tensor, head: Head | nn.Module) -> Tensor:
    """Return log p(target) (n,) fp32 of hidden states (n, H) through the whole head at once."""
    logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(1, target_ids[:, None])[:, 0] - logits.logsumexp(1)


class _CachedJacobian(torch.autograd.Function):
    """log p of targets under a frozen row-wise head; the backward pass is a row scaling.

    log p_t depends on hidden row t alone, so its gradient is one vector of the hidden size. It is computed
    while the chunk's logits are at hand, and kept instead of them: no second product, memory of one chunk.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target_ids: Tensor, both: Callable[..., Any]) -> Tensor:
        logps, jacobian = both(hidden, target_ids)
        ctx.save_for_backward(jacobian)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (jacobian,) = ctx.saved_tensors
        # In the gradient's own fp32, then cast: under fp16 the scaled product may not fit before it is
        # rounded.
        return (grads[0][:, None] * jacobian).to(jacobian.dtype), None, None


def _by_rows(hidden: Tensor, target_ids: Tensor, head: Head, rows: int) -> tuple[Tensor, Tensor]:
    """Return log p(target) (N,) and its gradient for each hidden state (N, H), `rows` at a time."""
    logps, jacobian = [], torch.empty_like(hidden)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        values, jacobian[part] = _values_and_jacobian(hidden[part], target_ids[part], head)
        logps.append(values)
    return torch.cat(logps), jacobian


def _values_and_jacobian(hidden: Tensor, target_ids: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return log p(target) (n,) and its gradient for each hidden state (n, H).

    d log p / d logits is one at the target less the softmax. Written by hand it passes over the wide logits
    four times; autograd through logsumexp and gather takes some fifteen, which on a CPU cost a third more
    than the products with the head alone.
    """
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = head(leaf)
    ids = target_ids[:, None]
    # No name for the fp32 copy of half-precision logits: it goes before the softmax is cast back.
    softmax = (logits.detach() if logits.dtype == torch.float64 else logits.detach().float()).log_softmax(1)
    values = softmax.gather(1, ids)[:, 0]
    softmax.exp_().scatter_add_(1, ids, softmax.new_full((), -1.0).expand_as(ids))
    (negative,) = torch.autograd.grad(logits, leaf, softmax.to(logits.dtype))
    return values, negative.neg_()


def target_logps(hidden: Tensor, target_ids: Tensor, head: Head, *, rows: int) -> Tensor:
    """Return log p(target) for each hidden state, `rows` of them or a block of the vocabulary at a time.

    A frozen head gives the cached row Jacobian (no gradient reaches it), in blocks of its columns where
    `takes_blocks` says so; a trained one is run once more in the backward pass, chunk by chunk, so that its
    own weights get their gradient.

    Args:
        hidden: (N, H), the state each target is predicted from.
        target_ids: (N,) int64.
        head: the vocabulary projection with whatever follows it.
        rows: rows of logits held at a time.

    Returns:
        (N,) fp32 (fp64 for fp64 logits).
    """
    if target_ids.shape[0] == 0:
        nothing = hidden.sum(1).float()
        # A rank without targets must give a trained head its gradient too, of zeros: the others wait for it.
        # Of one row, as not every layer takes none.
        return nothing if head.is_frozen else nothing + head(hidden.new_zeros(1, hidden.shape[1])).sum()
    in_blocks = takes_blocks(head, hidden)
    if head.is_frozen and hidden.requires_grad and torch.is_grad_enabled():
        both: Callable[..., Any] = partial(_by_rows, head=head, rows=rows)
        if in_blocks:
            both = partial(blocked_logps, head=head, with_jacobian=True)
        return _CachedJacobian.apply(hidden, target_ids, both)
    if in_blocks:
        return blocked_logps(hidden, target_ids, head, with_jacobian=False)[0]
    parts = list(zip(hidden.split(rows), target_ids.split(rows), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([rows_logps(states, ids, head) for states, ids in parts])
    return torch.cat(
        [checkpoint(rows_logps, states, ids, head, use_reentrant=False) for states, ids in parts]
    )


def pair_logps(logps: Tensor, batch: PairBatch, router_loss: Tensor | None = None) -> PairLogps:
    """Add up the targets' log-probabilities (N,) into those of the batch's pairs."""
    pairs = batch.num_pairs
    # Chosen answers, rejected answers, prompts. Picked by a mask, or counted by bincount, targets would make
    # the host wait for a GPU between the forward and the backward pass.
    place = batch.target_sequences + 2 * pairs * ~batch.target_is_completion
    sums = logps.new_zeros(4 * pairs).index_add(0, place, logps)
    counts = logps.new_zeros(4 * pairs).index_add(0, place, torch.ones_like(logps))
    chosen, rejected, prompt, _ = sums.view(4, pairs).unbind()
    chosen_tokens, rejected_tokens, prompt_tokens, _ = counts.view(4, pairs).unbind()
    return PairLogps(
        chosen_sum=chosen,
        rejected_sum=rejected,
        prompt_sum=prompt,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        prompt_tokens=prompt_tokens,
        normalisers=batch.normalisers,
        router_loss=router_loss,
    )
