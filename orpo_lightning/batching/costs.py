"""What a micro-batch costs: its tokens as a layout counts them, and its time relative to another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

LayoutTokens = Callable[[Any, Any, Any], Any]
"""Returns the tokens that a device computes for a micro-batch, from three whole numbers (or tensors of them):
its pairs, the tokens of its longest sequence, and its tokens with every prompt counted once. More of any of
the three must never give less."""

ATTENTION_PARITY = 24_576
"""The sequence length at which attention takes as long as all else.

A layer of hidden size H spends 24 H² operations a token on its matrices and, in causal sequences of L tokens,
2 H L a token on attention; they are equal at L = 12 H, here of H = 2048. A larger model's parity lies higher,
so attention is rather over- than underrated: balance between devices hardly feels it.
"""


def padded_tokens(pairs: Any, longest: Any, distinct: Any) -> Any:
    """Return the tokens of the padded layout: two rows a pair, each as wide as the longest sequence."""
    return 2 * pairs * longest


def flat_tokens(pairs: Any, longest: Any, distinct: Any) -> Any:
    """Return the tokens of a layout without padding that has every prompt once."""
    return distinct


def cost(tokens: Any, longest: Any) -> Any:
    """Return what a micro-batch costs in time, in tokens: tokens * (1 + longest / ATTENTION_PARITY).

    The second part is attention's, which grows with the square of a length: exact for padded rows, which are
    all as long as the longest, and from above for rows of their own lengths.
    """
    return tokens * (1 + longest / ATTENTION_PARITY)


def longest_and_distinct(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return, each (n,), the tokens of a pair's longer sequence and those of all its three parts.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected.
    """
    return lengths[:, 0] + lengths[:, 1:].amax(dim=1), lengths.sum(dim=1)


def tokens_alone(lengths: Tensor, layout_tokens: LayoutTokens) -> Tensor:
    """Return (n,) the tokens of each pair in a micro-batch of its own."""
    return layout_tokens(1, *longest_and_distinct(lengths))


def largest_first(lengths: Tensor, layout_tokens: LayoutTokens) -> Tensor:
    """Return the order (n,) that sorts pairs by their tokens alone, falling; equals keep their order."""
    return tokens_alone(lengths, layout_tokens).argsort(descending=True, stable=True)
