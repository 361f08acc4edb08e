"""The backends for GPUs: variable-length FlashAttention, and FlexAttention, both without padding."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from orpo_lightning.batching.shared_prefix import SharedPrefix
from orpo_lightning.shared_attention.base import Recipe, at_least, same_width
from orpo_lightning.shared_attention.rows import row_of_query

Kernel = Callable[..., Tensor]
"""Called with packed q, k, v, where their sequences end, the longest of each, and a recipe."""
# Heads that FlexAttention's kernels take.
_NARROWEST = 16
_VARIANTS = 64


def attend_packed(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, plan: SharedPrefix, recipe: Recipe
) -> Tensor:
    """Return (1, T, H, value width) of (1, heads, T, width) by a variable-length kernel.

    The queries of each sequence stand together in the flat row already, and its results come back in place;
    only keys and values are gathered, the prompt's twice.
    """
    # These kernels want one width for all, and vectors of sixteen bytes.
    width = value.shape[-1]
    query, key, value = (t[0].transpose(0, 1) for t in same_width(query, key, value, multiple=8))
    longest_query = max(max(prompt + chosen, rejected) for prompt, chosen, rejected in plan.lengths)
    output = kernel(
        query.contiguous(),
        key.index_select(0, plan.keys),
        value.index_select(0, plan.keys),
        plan.query_ends,
        plan.key_ends,
        longest_query,
        plan.longest,
        recipe,
    )
    return output[None, ..., :width]


def _window(recipe: Recipe) -> tuple[int, int]:
    return (-1, 0) if recipe.window is None else (recipe.window - 1, 0)


def _flash_settings(recipe: Recipe) -> dict[str, Any]:
    settings = {"causal": True, "window_size": _window(recipe), "softmax_scale": recipe.scale}
    # Unlike torch's own the packages have to be told; the first releases have no such argument.
    deterministic = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    return {**settings, "softcap": recipe.softcap or 0.0, **deterministic}


def flash_attention_2(q: Tensor, k: Tensor, v: Tensor, *where: Any) -> Tensor:
    """Run package flash-attn (2.1 or newer: earlier ones align the causal mask to the first query)."""
    *ends, recipe = where
    function = importlib.import_module("flash_attn").flash_attn_varlen_func
    return function(q, k, v, *ends, **_flash_settings(recipe))


def flash_attention_3(q: Tensor, k: Tensor, v: Tensor, *where: Any) -> Tensor:
    """Run FlashAttention-3."""
    *ends, recipe = where
    function = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
    output = function(q, k, v, *ends, **_flash_settings(recipe))
    return output[0] if isinstance(output, tuple) else output  # early releases add the log-sum-exp


def torch_varlen(q: Tensor, k: Tensor, v: Tensor, *where: Any) -> Tensor:
    """Run the FlashAttention-2 that torch brings along; it has no soft-cap."""
    *ends, recipe = where
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return function(q, k, v, *ends, scale=recipe.scale, window_size=_window(recipe), enable_gqa=True)


def has_torch_varlen() -> bool:
    """Return whether this torch has variable-length attention with windows and grouped heads."""
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return False
    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(function).parameters)


def attend_flex(query: Tensor, key: Tensor, value: Tensor, plan: SharedPrefix, recipe: Recipe) -> Tensor:
    """Return (1, T, H, value width) of (1, heads, T, width): the row against itself, nothing gathered."""
    cap = recipe.softcap or 0.0
    width = value.shape[-1]
    query, key, value = (at_least(tensor, _NARROWEST) for tensor in (query, key, value))

    def bend(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    settings = {
        "score_mod": bend if cap else None,
        "block_mask": _block_mask(plan, recipe.window, query.device),
        "scale": recipe.scale,
        "enable_gqa": query.shape[1] != key.shape[1],
        # Of few queries (the self-check's batch) torch would run the kernel for decoding, which is another
        # than that of training, and which fails for four and more query heads to a key head (torch 2.13).
        "kernel_options": {"FORCE_USE_FLEX_ATTENTION": True},
    }
    if recipe.sinks is None:
        return _flex(query.device.type)(query, key, value, **settings)[..., :width].transpose(1, 2)
    auxiliary = importlib.import_module("torch.nn.attention.flex_attention").AuxRequest(lse=True)
    output, found = _flex(query.device.type)(query, key, value, return_aux=auxiliary, **settings)
    share = torch.sigmoid(found.lse - recipe.sinks[None, :, None].to(found.lse.dtype))
    return (output * share[..., None].to(output.dtype))[..., :width].transpose(1, 2)


@lru_cache
def _flex(device: str) -> Callable[..., Any]:
    function = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    # Uncompiled it holds all scores, which is right for a test only; a CPU has no compiled backward pass.
    if device != "cuda":
        return function
    # A kernel is compiled for each kind of layer (window, heads), with and without gradients, for the check
    # and for training: more than dynamo's eight, behind which it would run uncompiled without a word.
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch < 2.6
    setattr(config, limit, max(getattr(config, limit), _VARIANTS))
    return torch.compile(function)


def _block_mask(plan: SharedPrefix, window: int | None, device: torch.device) -> Any:
    name = ("flex", window)
    if name not in plan.derived:
        row = row_of_query(plan)
        starts = plan.key_ends.long().diff() - plan.query_ends.long().diff()  # 0, or the rejected's prompt
        place = torch.arange(len(row), device=row.device) - plan.query_ends.long()[row] + starts[row]
        in_prompt = place < starts[row | 1]
        row, place = row.int(), place.int()  # (T, T) of these are made, for a moment

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            gap = place[q] - place[k]
            together = (row[q] == row[k]) | ((row[q] == (row[k] | 1)) & in_prompt[k])
            # No number in here may change from batch to batch: the kernel would be compiled anew for each.
            return together & (gap >= 0) if window is None else together & (gap >= 0) & (gap < window)

        make = importlib.import_module("torch.nn.attention.flex_attention").create_block_mask
        plan.derived[name] = make(visible, None, None, len(row), len(row), device=device)
    return plan.derived[name]
