"""The backend that runs everywhere: sequences as rows padded on the right, through torch's own attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from orpo_lightning.batching.shared_prefix import SharedPrefix
from orpo_lightning.shared_attention.base import Recipe


def attend(query: Tensor, key: Tensor, value: Tensor, plan: SharedPrefix, recipe: Recipe) -> Tensor:
    """Return (1, T, H, value width) of (1, heads, T, width); the prompt's queries run in the chosen row."""
    gathered, scattered = row_indices(plan)
    query, key, value = (_to_rows(tensor, gathered) for tensor in (query, key, value))
    mask = None if recipe.window is None else _window_mask(plan, recipe.window, query.device)
    if recipe.softcap is not None or recipe.sinks is not None:
        output = _written_out(query, key, value, mask, recipe)
    else:
        # Padding stands to the right of every real query: being causal hides it, and no mask is needed.
        unlike = mask is not None or key.shape[-1] != value.shape[-1] or key.shape[-1] > 256
        if unlike or _takes_equal_heads(query):
            key, value = _as_many_heads(query, key, value)
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=recipe.dropout,
            is_causal=mask is None,
            scale=recipe.scale,
            enable_gqa=True,
        )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, scattered)[None]


def row_indices(plan: SharedPrefix) -> tuple[Tensor, Tensor]:
    """Return (2B, longest), where in the flat row each row's tokens stand, and (T,), where in the rows."""
    if "rows" not in plan.derived:
        keys, queries = plan.key_ends.long(), plan.query_ends.long()
        columns = torch.arange(plan.longest, device=keys.device)
        sizes = keys.diff()
        # Behind its end a row repeats some token: whatever it is, no real query sees it.
        stands = (keys[:-1, None] + columns.minimum(sizes[:, None] - 1)).clamp(min=0)
        gathered = plan.keys[stands]
        row = row_of_query(plan)
        tokens = torch.arange(len(row), device=keys.device)
        column = tokens - queries[row + 1] + sizes[row]
        plan.derived["rows"] = gathered, row * plan.longest + column
    return plan.derived["rows"]


def row_of_query(plan: SharedPrefix) -> Tensor:
    """Return (T,) int64, the sequence of each query."""
    tokens = sum(sum(pair) for pair in plan.lengths)
    sizes = plan.query_ends.long().diff()
    numbers = torch.arange(len(sizes), device=sizes.device)
    # Told how many there are, a GPU need not be waited for.
    return numbers.repeat_interleave(sizes, output_size=tokens)


def _to_rows(flat: Tensor, gathered: Tensor) -> Tensor:
    rows = flat[0].transpose(0, 1).index_select(0, gathered.flatten())
    return rows.unflatten(0, gathered.shape).transpose(1, 2)


def _window_mask(plan: SharedPrefix, window: int, device: torch.device) -> Tensor:
    """Return (longest, longest): rows are padded on the right, so all of them share it."""
    name = ("window", window)
    if name not in plan.derived:
        square = torch.ones(plan.longest, plan.longest, dtype=torch.bool, device=device)
        plan.derived[name] = square.tril() & square.triu(1 - window)
    return plan.derived[name]


def _takes_equal_heads(query: Tensor) -> bool:
    """Tell whether CUDA has no FlashAttention for it: grouped heads would have all their scores kept."""
    if query.device.type != "cuda":
        return False
    capability = torch.cuda.get_device_capability(query.device)
    return query.dtype not in (torch.float16, torch.bfloat16) or capability < (8, 0)


def _as_many_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key and value heads, grouped or not: masked, CUDA's fast kernels take them one by one only."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def _written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, recipe: Recipe) -> Tensor:
    """Attention term by term, for what torch's own cannot do: the whole matrix of scores is kept."""
    key, value = _as_many_heads(query, key, value)
    scores = query @ key.transpose(2, 3) * recipe.scale
    if recipe.softcap is not None:
        scores = torch.tanh(scores / recipe.softcap) * recipe.softcap
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    if recipe.sinks is not None:
        sinks = recipe.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = dropout(scores.softmax(dim=3, dtype=exact).to(value.dtype), recipe.dropout)
    return weights[..., : key.shape[2]] @ value
