"""GaLore (Zhao et al. 2024, arXiv 2403.03507): full fine-tuning with low-rank projected gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from orpo_lightning.errors import SurroundingsError, UsageError

try:
    from galore_torch import GaLoreAdamW as _PublishedAdamW
    from galore_torch.galore_projector import GaLoreProjector
except ImportError as error:
    raise SurroundingsError(
        "GaLore needs the package galore-torch: pip install 'orpo-lightning[galore]'"
    ) from error

# The projector object stands in the optimizer's state, and checkpoints are read with weights_only.
torch.serialization.add_safe_globals([GaLoreProjector])


class GaLoreAdamW(_PublishedAdamW):
    """AdamW whose moments live in a rank-`rank` subspace of each attention and MLP matrix's gradient.

    Args:
        params: the parameter groups of `PreferenceModule` (or any with one named "matrices").
        lr: learning rate.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        weight_decay: decoupled weight decay of matrices and embeddings.
        rank: rank of the projection.
        update_proj_gap: optimizer steps between two new projections (an SVD of each gradient).
        scale: GaLore's alpha: the projected update is multiplied by it.
        proj_type: which side is projected, as the published package spells it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std",
    ) -> None:
        """Add GaLore's settings to the group named "matrices"."""
        settings = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": proj_type}
        groups = [
            {**group, **settings} if isinstance(group, dict) and group.get("name") == "matrices" else group
            for group in params
        ]
        if not any(isinstance(group, dict) and "rank" in group for group in groups):
            raise UsageError('GaLore: expected a parameter group named "matrices", found none')
        super().__init__(
            groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_deprecation_warning=True
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and move each projection to its parameter's device, which torch does for tensors only."""
        Optimizer.load_state_dict(self, state_dict)
        for parameter, state in self.state.items():
            projector = state.get("projector")
            if projector is not None and projector.ortho_matrix is not None:
                projector.ortho_matrix = _to_device_of(parameter, projector.ortho_matrix)


def _to_device_of(parameter: nn.Parameter, matrix: Any) -> Any:
    if isinstance(matrix, list):
        return [part.to(parameter.device) for part in matrix]
    return matrix.to(parameter.device)
