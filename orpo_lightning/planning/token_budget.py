"""How many tokens of a micro-batch fit into a device's memory."""

from __future__ import annotations

from orpo_lightning.planning.base import Batch, Model, Training, fullest
from orpo_lightning.planning.peak import plan

_UNIT = 64
"""Tokens; a search any finer than that would be finer than the plan."""


def largest_budget(
    model: Model, training: Training, layout: str, *, longest: int, most: int, memory: int
) -> tuple[int, int]:
    """Return the largest budget of tokens whose fullest micro-batch fits, and the bytes planned for it.

    The least there is to give is one pair of the longest, whether it fits or not.

    Args:
        model: its shape.
        training: how it is trained.
        layout: padded or shared_prefix.
        longest: tokens of the longest sequence.
        most: pairs of a step on a device: there is no larger micro-batch.
        memory: bytes that a plan may take.
    """

    def batch(budget: int) -> Batch:
        return fullest(layout, 1, longest, budget=budget, most=most)

    def planned(budget: int) -> int:
        return plan(model, training, batch(budget)).total

    one = batch(1).tokens
    low, high = 0, -(-one * (most - 1) // _UNIT)  # in units above one pair; low fits, or is all there is
    if planned(one + high * _UNIT) <= memory:
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if planned(one + middle * _UNIT) <= memory else (low, middle)
    found = min(one + low * _UNIT, one * most)
    return found, planned(found)
