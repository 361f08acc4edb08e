"""What a checkpoint holds of a model: the trained parameters, and whether they are this model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from orpo_lightning.errors import CheckpointError


def trained_parameters(module: nn.Module, prefix: str, destination: dict[str, Any]) -> dict[str, Any]:
    """Add every parameter that is trained to `destination` under its prefixed name, and return it."""
    named = module.named_parameters()
    destination.update({prefix + name: p.detach() for name, p in named if p.requires_grad})
    return destination


def check_same_weights(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another model or adapter.

    Raises:
        CheckpointError: naming the first weight that is missing, unknown or of another shape.
    """
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = (tuple(side[name].shape) if name in side else None for side in (saved, wanted))
        if there != here:
            raise CheckpointError(
                f"the checkpoint is of another model or adapter: {name} has shape {there} there "
                f"and {here} here; resume with the settings the run was started with"
            )
