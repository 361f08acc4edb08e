"""GaLore (Zhao et al. 2024, arXiv 2403.03507): full fine-tuning with low-rank projected gradients."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orpo_lightning.errors import SurroundingsError, UsageError

try:
    from galore_torch import GaLoreAdamW as _PublishedAdamW
    from galore_torch.galore_projector import GaLoreProjector
except ImportError as error:
    raise SurroundingsError(
        "GaLore needs the package galore-torch: pip install 'orpo-lightning[galore]'"
    ) from error


class Projector(GaLoreProjector):
    """The published one keeps a view of its singular vectors, and with it all that were found."""

    def get_orthogonal_matrix(self, weights: Tensor, rank: int, type: str) -> Any:
        """Return the first `rank` singular vectors of a side, or of both, and let go of the others."""
        found = super().get_orthogonal_matrix(weights, rank, type)
        return [part.clone() for part in found] if isinstance(found, list) else found.clone()


# The projector object stands in the optimizer's state, and checkpoints are read with weights_only.
torch.serialization.add_safe_globals([GaLoreProjector, Projector])


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
        for group in self.param_groups:
            if "rank" in group:
                for parameter in group["params"]:  # found here, the published step makes none of its own
                    self.state[parameter]["projector"] = Projector(**settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and move each projection to its parameter's device, which torch does for tensors only."""
        Optimizer.load_state_dict(self, state_dict)
        for parameter, state in self.state.items():
            projector = state.get("projector")
            if projector is not None:
                projector.__class__ = Projector  # of a checkpoint made with the published one
                if projector.ortho_matrix is not None:
                    projector.ortho_matrix = _to_device_of(parameter, projector.ortho_matrix)


class LayerwiseGaLoreAdamW(GaLoreAdamW):
    """GaLoreAdamW that updates each weight in the backward pass, as soon as its gradient is there.

    No gradient outlives its own update, so in place of all of them the largest one takes memory; the numbers
    are those of GaLoreAdamW. A step is one micro-batch on one device, without clipping: whatever needs all
    gradients at once is refused (trainer.accumulate_grad_batches, gradient_clip_val, 16-mixed, devices).
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        """Hook every weight; a hook of an earlier optimizer of this kind is taken off.

        Args:
            params: as in GaLoreAdamW.
            settings: GaLoreAdamW's other arguments.
        """
        super().__init__(params, **settings)
        self._updated: set[nn.Parameter] = set()
        self._squares: list[Tensor] = []
        self.param_groups: list[dict[str, Any]]
        own = weakref.ref(self)
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if (earlier := getattr(parameter, _HOOK, None)) is not None:
                    earlier.remove()
                hook = partial(_update_by, own, number)
                setattr(parameter, _HOOK, parameter.register_post_accumulate_grad_hook(hook))

    @torch.no_grad()
    def update(self, parameter: nn.Parameter, group: int) -> None:
        """Update one weight of a group by its gradient, and free that; one that is not finite is left out.

        Raises:
            UsageError: it was updated already since the last step.
        """
        if parameter in self._updated:
            raise UsageError(
                "LayerwiseGaLoreAdamW: a second gradient came before a step: gradients cannot be accumulated "
                "(trainer.accumulate_grad_batches 1); use GaLoreAdamW"
            )
        assert parameter.grad is not None
        self._updated.add(parameter)
        square = parameter.grad.float().square().sum()
        self._squares.append(square)
        if not torch.isfinite(square):  # what the callback FiniteSteps does where gradients are kept
            parameter.grad = None
            return
        every, self.param_groups = self.param_groups, [{**self.param_groups[group], "params": [parameter]}]
        try:
            _PublishedAdamW.step(self)
        finally:
            self.param_groups = every
        parameter.grad = None

    def step(self, closure: Any = None) -> Any:
        """Run the closure, whose backward pass makes the updates; all that is left is to begin anew."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._updated.clear()
        self._squares.clear()
        return result

    def grad_norm(self) -> Tensor:
        """Return the norm of all gradients of the step under way, which are gone by now."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.tensor(0.0)

    def check_trainer(self, trainer: Any) -> None:
        """Refuse a Trainer that would work on gradients after the backward pass.

        Raises:
            UsageError: naming the key and the value to set.
        """
        for key, found, needed in (
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
            ("gradient_clip_val", trainer.gradient_clip_val or None, None),
            ("devices x num_nodes", trainer.world_size, 1),
        ):
            if found != needed:
                raise UsageError(
                    f"LayerwiseGaLoreAdamW frees each gradient at once: trainer.{key} must be "
                    f"{'null' if needed is None else needed}, found {found}; or use GaLoreAdamW"
                )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UsageError(
                f"LayerwiseGaLoreAdamW cannot scale the loss as trainer.precision {trainer.precision} does: "
                "use bf16-mixed or 32-true, or GaLoreAdamW"
            )


_HOOK = "_layerwise_update"


def _update_by(optimizer: weakref.ref[LayerwiseGaLoreAdamW], group: int, parameter: nn.Parameter) -> None:
    if (own := optimizer()) is not None:
        own.update(parameter, group)


def _to_device_of(parameter: nn.Parameter, matrix: Any) -> Any:
    if isinstance(matrix, list):
        return [part.to(parameter.device) for part in matrix]
    return matrix.to(parameter.device)
