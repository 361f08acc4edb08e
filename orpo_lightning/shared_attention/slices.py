"""The backend for CPUs: no copies, no padding and no prompt twice, by torch's flash kernel on slices.

A rejected answer sees its prompt and itself. Both are attention calls of their own, whose results are merged
by their log-sum-exp; given the merged result, the kernel's backward pass of each call is that of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orpo_lightning.batching.shared_prefix import SharedPrefix
from orpo_lightning.shared_attention.base import Recipe, same_width


def attend(query: Tensor, key: Tensor, value: Tensor, plan: SharedPrefix, recipe: Recipe) -> Tensor:
    """Return (1, T, H, value width) of (1, heads, T, width); no window, soft-cap or dropout."""
    assert recipe.window is None
    assert recipe.softcap is None
    assert not recipe.dropout
    output = _Slices.apply(*same_width(query, key, value), recipe.sinks, plan.lengths, recipe.scale)
    return output.transpose(1, 2)[..., : value.shape[-1]]


class _Call(NamedTuple):
    """One run of the kernel: these queries of the row against those keys."""

    queries: slice
    keys: slice
    is_causal: bool
    is_first: bool
    """Whether no call before had these queries; the first of the keys' calls is always their own."""


def _calls(lengths: Sequence[Sequence[int]]) -> Iterator[_Call]:
    start = 0
    for prompt, chosen, rejected in lengths:
        middle = start + prompt + chosen
        own, other = slice(start, middle), slice(middle, middle + rejected)
        if prompt + chosen:
            yield _Call(own, own, is_causal=True, is_first=True)
        if rejected:
            yield _Call(other, other, is_causal=True, is_first=True)
            if prompt:
                yield _Call(other, slice(start, start + prompt), is_causal=False, is_first=False)
        start = middle + rejected


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        lengths: Sequence[Sequence[int]],
        scale: float,
    ) -> Tensor:
        output = _like(query)
        # (1, H, T), in memory token by token: so the kernel writes it and so its backward pass reads it.
        sums = query[..., 0].transpose(1, 2).to(_exact(query.dtype)).clone().transpose(1, 2)
        for call in _calls(lengths):
            found, found_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _part(query, call.queries),
                _part(key, call.keys),
                _part(value, call.keys),
                0.0,
                call.is_causal,
                scale=scale,
            )
            if call.is_first:
                output[:, :, call.queries], sums[:, :, call.queries] = found, found_sums
            else:
                _merge(output[:, :, call.queries], sums[:, :, call.queries], found, found_sums)
        if sinks is not None:
            # One more key for every query, with the value zero.
            with_sink = torch.logaddexp(sums, sinks.to(sums.dtype)[None, :, None])
            output *= torch.exp(sums - with_sink)[..., None].to(output.dtype)
            sums = with_sink
        ctx.save_for_backward(query, key, value, output, sums, sinks)
        ctx.lengths, ctx.scale = lengths, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, output, sums, sinks = ctx.saved_tensors
        (grad,) = grads
        of_query, of_key, of_value = _like(query), _like(key), _like(value)
        for call in _calls(ctx.lengths):
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _part(grad, call.queries),
                _part(query, call.queries),
                _part(key, call.keys),
                _part(value, call.keys),
                _part(output, call.queries),
                sums[:, :, call.queries],
                0.0,
                call.is_causal,
                scale=ctx.scale,
            )
            parts = (of_query[:, :, call.queries], of_key[:, :, call.keys], of_value[:, :, call.keys])
            for part, one in zip(parts, found, strict=True):
                part.copy_(one) if call.is_first else part.add_(one)
        of_sinks = None
        if sinks is not None:
            share = torch.exp(sinks.to(sums.dtype)[None, :, None] - sums)
            of_sinks = -(share * (grad * output).sum(dim=3)).sum(dim=(0, 2)).to(sinks.dtype)
        return of_query, of_key, of_value, of_sinks, None, None


def _part(tensor: Tensor, where: slice) -> Tensor:
    part = tensor[:, :, where]
    return part if part.stride(-1) == 1 else part.contiguous()  # the kernel reads whole vectors


def _like(tensor: Tensor) -> Tensor:
    """Return an empty (1, heads, T, width), token by token in memory as projections write and read it."""
    one, heads, tokens, width = tensor.shape
    return tensor.new_empty(one, tokens, heads, width).transpose(1, 2)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _merge(output: Tensor, sums: Tensor, other: Tensor, other_sums: Tensor) -> None:
    """Make of attention to some keys, in place, that to those of another call as well."""
    share = torch.sigmoid(other_sums - sums)[..., None]
    output.copy_(torch.lerp(output.to(share.dtype), other.to(share.dtype), share))
    sums.copy_(torch.logaddexp(sums, other_sums))


@lru_cache
@torch.autocast("cpu", enabled=False)  # it may be asked for the first time within a step
def is_available() -> bool:
    """Try the kernel, which torch does not document, on three tokens with grouped heads."""
    query, key = torch.arange(24.0).reshape(1, 2, 3, 4).sin(), torch.arange(12.0).reshape(1, 1, 3, 4).cos()
    plan = SharedPrefix(((1, 1, 1),), *(torch.empty(0),) * 3, derived={})
    scores = query @ key.transpose(2, 3)
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(3) @ key
    try:
        found = attend(query, key, key, plan, Recipe(scale=1.0)).transpose(1, 2)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return torch.allclose(found, expected, atol=1e-5)
