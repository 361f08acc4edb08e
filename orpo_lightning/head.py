"""What makes logits of hidden states: the vocabulary projection and what an architecture puts behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Head(NamedTuple):
    """Hidden states (n, H) → logits (n, V), each row by itself: cap · tanh(scale · projection / cap)."""

    projection: nn.Module
    scale: float = 1.0
    cap: float | None = None
    """None: the logits are not bent."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, V) of hidden states (n, H)."""
        logits: Tensor = self.projection(hidden)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def is_frozen(self) -> bool:
        """Whether no gradient reaches the projection's own parameters."""
        return not any(parameter.requires_grad for parameter in self.projection.parameters())
