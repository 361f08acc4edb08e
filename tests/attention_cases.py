"""Attention over shared prefixes written out, and the cases in which every backend is held against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orpo_lightning.batching import TokenizedPair, lay_flat
from orpo_lightning.batching.shared_prefix import KEYWORD, SharedPrefix
from orpo_lightning.shared_attention.base import Recipe

Lengths = tuple[tuple[int, int, int], ...]
RAGGED: Lengths = ((5, 3, 4), (1, 6, 2), (0, 3, 2), (0, 0, 0), (4, 1, 7))

# Heads of queries and of keys, widths of keys and of values, and how scores become weights.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"heads": (4, 2)},
    "one head of keys": {"heads": (4, 1)},
    "another scale": {"scale": 0.05},
    "narrow values": {"heads": (4, 2), "widths": (16, 8)},
    "wide values": {"widths": (8, 24)},
    "window": {"window": 3, "heads": (4, 2)},
    "window of one": {"window": 1},
    "soft-cap": {"softcap": 0.7, "heads": (4, 2)},
    "sinks": {"sinks": True, "heads": (4, 2)},
    "all": {"window": 4, "softcap": 0.7, "sinks": True, "heads": (4, 2), "widths": (16, 8), "scale": 0.3},
}


def make_plan(lengths: Lengths, device: str = "cpu") -> SharedPrefix:
    """Return the plan of pairs of these lengths."""
    batch = lay_flat([TokenizedPair(*([0] * part for part in pair)) for pair in lengths])
    plan = batch.model_inputs[KEYWORD]
    tensors = (plan.keys, plan.query_ends, plan.key_ends)
    return SharedPrefix(plan.lengths, *(tensor.to(device) for tensor in tensors), derived={})


def make_inputs(
    name: str, lengths: Lengths, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return leaves (query, key, value and perhaps sinks), and the rest of a recipe's arguments."""
    case = {"heads": (4, 4), "widths": (16, 16), "sinks": False} | CASES[name]
    (heads, key_heads), (width, value_width) = case.pop("heads"), case.pop("widths")
    tokens = sum(map(sum, lengths))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, width), (1, key_heads, tokens, width), (1, key_heads, tokens, value_width)]
    shapes += [(heads,)] if case.pop("sinks") else []
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn], {"scale": width**-0.5} | case


def visible(lengths: Lengths, window: int | None) -> Tensor:
    """Return (T, T), which token sees which: those before it in a sequence that both are in."""
    tokens = sum(map(sum, lengths))
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    start = 0
    for prompt, chosen, rejected in lengths:
        shared = list(range(start, start + prompt))
        middle = start + prompt + chosen
        for own in (range(start + prompt, middle), range(middle, middle + rejected)):
            sequence = shared + list(own)
            for place, query in enumerate(sequence):
                first = 0 if window is None else max(0, place - window + 1)
                seen[query, sequence[first : place + 1]] = True
        start = middle + rejected
    return seen


def written_out(leaves: list[Tensor], lengths: Lengths, recipe: dict[str, Any]) -> Tensor:
    """Return (1, T, heads, width of values), by the whole matrix of scores."""
    query, key, value = leaves[:3]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * recipe["scale"]
    if cap := recipe.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible(lengths, recipe.get("window")).to(scores.device), -torch.inf)
    exponents = scores.exp()
    total = exponents.sum(3, keepdim=True)
    if len(leaves) == 4:
        total = total + leaves[3].exp()[None, :, None, None]
    return (exponents / total @ value).transpose(1, 2)


def output_and_gradients(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Return a function's result and the gradients of a weighted sum of it."""
    output = function()
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape).sin()
    gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)
    return [output.detach(), *gradients]


def by_backend(
    attend: Callable[..., Tensor], leaves: list[Tensor], plan: SharedPrefix, recipe: dict[str, Any]
) -> list[Tensor]:
    """Return the backend's output and gradients."""
    query, key, value, *sinks = leaves

    def run() -> Tensor:
        return attend(query, key, value, plan, Recipe(**recipe, sinks=sinks[0] if sinks else None))

    return output_and_gradients(run, leaves)
