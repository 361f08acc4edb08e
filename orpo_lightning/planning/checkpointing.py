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
    offloaded: bool = False
    """Whether what they are recomputed from waits in the host's memory."""

    def is_recomputed(self, layer: int) -> bool:
        """Tell whether layer number `layer`, from 0 on, is recomputed."""
        return layer < self.recomputed


def can_offload(device: str) -> bool:
    """Tell whether a device has a memory of its own, so that what is kept in the host's is not in it."""
    return device not in ("cpu", "mps")


def choose_checkpointing(model: Model, training: Training, batch: Batch, budget_bytes: int) -> Choice:
    """Recompute no layer more than the memory asks for, and offload only where all of them are not enough.

    The first layers are those to recompute: when their turn comes in the backward pass, all that the later
    ones kept is free again, so that what a recomputed layer needs for a moment adds nothing to the peak.

    Args:
        model: its shape.
        training: how it is trained, `recomputed` aside.
        batch: the largest there will be.
        budget_bytes: what the device has.
    """
    layers = len(model.layers)

    def peak(recomputed: int, *, offloaded: bool = False) -> int:
        found = training._replace(recomputed=recomputed, offloaded=offloaded)
        return plan(model, found, batch).total

    none, every = peak(0), peak(layers)
    have = f"{budget_bytes / GIB:.1f} GiB"
    if none <= budget_bytes:
        return Choice(0, layers, True, f"{none / GIB:.1f} of {have} are needed without recomputation")
    if every > budget_bytes:
        return _offload(every, peak(layers, offloaded=True), training.device, layers, budget_bytes)
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


def _offload(every: int, offloaded: int, device: str, layers: int, budget_bytes: int) -> Choice:
    """Return the last resort: what layers are recomputed from leaves the device, if it has one of its own."""
    needed = f"even with all layers recomputed {every / GIB:.1f} GiB are needed"
    have = f"there are {budget_bytes / GIB:.1f} GiB"
    if not can_offload(device):
        return Choice(layers, layers, False, f"{needed}, {have}")
    needed += f", {offloaded / GIB:.1f} if what they start from waits in RAM"
    return Choice(layers, layers, offloaded <= budget_bytes, f"{needed}, {have}", offloaded=True)
