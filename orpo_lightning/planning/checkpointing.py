"""How many layers must be recomputed in the backward pass for a step to fit."""

from __future__ import annotations

from typing import NamedTuple

from orpo_lightning.planning.base import Batch, Model, Training
from orpo_lightning.planning.gpus import GIB
from orpo_lightning.planning.peak import plan


class Choice(NamedTuple):
    """Which layers are recomputed, and why."""

    recomputed: int
    """How many, from the first on."""
    layers: int
    """Of how many."""
    fits: bool
    """Whether the step fits, with this choice."""
    reason: str

    def is_recomputed(self, layer: int) -> bool:
        """Tell whether layer number `layer`, from 0 on, is recomputed."""
        return layer < self.recomputed


def choose_checkpointing(model: Model, training: Training, batch: Batch, budget_bytes: int) -> Choice:
    """Recompute no layer more than the memory asks for.

    The first layers are those to recompute: when their turn comes in the backward pass, all that the later
    ones kept is free again, so that what a recomputed layer needs for a moment adds nothing to the peak.

    Args:
        model: its shape.
        training: how it is trained, `recomputed` aside.
        batch: the largest there will be.
        budget_bytes: what the device has.
    """
    layers = len(model.layers)

    def peak(recomputed: int) -> int:
        return plan(model, training._replace(recomputed=recomputed), batch).total

    none, every = peak(0), peak(layers)
    have = f"{budget_bytes / GIB:.1f} GiB"
    if none <= budget_bytes:
        return Choice(0, layers, True, f"{none / GIB:.1f} of {have} are needed without recomputation")
    if every > budget_bytes:
        reason = f"even with all layers recomputed {every / GIB:.1f} GiB are needed, there are {have}"
        return Choice(layers, layers, False, reason)
    low, high = 0, layers  # low does not fit, high does, and more never needs more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if peak(middle) <= budget_bytes else (middle, high)
    return Choice(
        high,
        layers,
        True,
        f"{none / GIB:.1f} GiB without, {every / GIB:.1f} with all layers recomputed, there are {have}",
    )
