"""Proves that a run trains what it should: the frozen weights stay as they are, the others move."""

from __future__ import annotations

import logging
from typing import Any

import lightning

from orpo_lightning.errors import CheckpointError, DivergedError
from orpo_lightning.schedules import trained
from orpo_lightning.weights_digest import weights_digest

log = logging.getLogger(__name__)


class WeightsProof(lightning.Callback):
    """Compares digests: of the frozen weights before and after the run, of the others after the first step.

    A model whose gradients are lost on the way (a checkpointed layer in eval mode, a detached input) trains
    without an error and learns nothing; a bug in a kernel or a bad memory module may write where it should
    not.
    """

    def __init__(self) -> None:
        """Start without digests."""
        self._frozen: str | None = None
        self._frozen_before: str | None = None
        self._trained: str | None = None
        self._is_moving = False

    def state_dict(self) -> dict[str, Any]:
        """Return the digest of the frozen weights, for the run that goes on."""
        return {"frozen": self._frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until the weights of this run are loaded."""
        self._frozen_before = state_dict["frozen"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take both digests; compare the base with that of the run that this one continues.

        Raises:
            CheckpointError: it is another.
        """
        self._frozen, self._trained = _digest(pl_module, trained=False), _digest(pl_module, trained=True)
        before, self._frozen_before = self._frozen_before, None
        if before not in (None, self._frozen):
            _speak_of_other_base(pl_module)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """Note whether this step will change anything; `FiniteSteps` may have taken its gradients away."""
        if self._trained is None:
            return
        has_rate = any(float(group["lr"]) > 0 for group in optimizer.param_groups)
        has_gradient = any(p.grad is not None for p in trained(optimizer))
        self._is_moving = has_rate and (has_gradient or hasattr(optimizer, "grad_norm"))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """See whether the first step that should have changed something did.

        Raises:
            DivergedError: it did not.
        """
        if self._trained is None or not self._is_moving:
            return
        before, self._trained = self._trained, None
        if before == _digest(pl_module, trained=True):
            raise DivergedError(
                f"step {trainer.global_step} changed no weight at all: no gradient reaches what is trained; "
                "try model.gradient_checkpointing false, and report it with the run's log"
            )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """See whether the frozen weights are what they were.

        Raises:
            DivergedError: they changed.
        """
        if self._frozen is None or self._frozen == _digest(pl_module, trained=False):
            return
        raise DivergedError(
            "frozen weights changed during the run, so the adapter does not belong to the base model: "
            "report it with the run's log; a faulty memory does this too"
        )


def _digest(module: lightning.LightningModule, *, trained: bool) -> str:
    return weights_digest((name, p) for name, p in module.named_parameters() if p.requires_grad == trained)


def _speak_of_other_base(module: lightning.LightningModule) -> None:
    settings: Any = module.hparams
    # Quantisation and decompositions may round otherwise on another device; plain weights are what they are.
    is_decomposed = settings.get("lora_init") in ("pissa", "loftq")
    if is_decomposed or settings.get("quantization", "none") != "none":
        log.warning(
            "the frozen weights are not bit for bit those the checkpoint was trained on: another base model, "
            "or another kind of device, which quantises or decomposes a little differently"
        )
        return
    raise CheckpointError(
        "the base model's weights are not those the checkpoint was trained on: "
        f"{settings.get('base_model', 'they')} changed since; resume with the same revision"
    )
