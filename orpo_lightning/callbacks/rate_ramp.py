"""Trains a few steps with a rising learning rate and keeps their losses."""

from __future__ import annotations

import math
from typing import Any

import lightning

from orpo_lightning.rate_curve import DIVERGED, level

_PATIENCE = 5


class RateRamp(lightning.Callback):
    """Sets the learning rate of each step, always by the same factor higher; ends where the loss diverges.

    Lightning's own finder cannot be used here: it puts a scheduler of its own in place of the module's, which
    PreferenceModule gives its settings back to when training starts, it takes the loss of single
    micro-batches, and its suggestion follows the slope over the learning rate, not over its logarithm, where
    the smallest ones win.

    Args:
        low: the first learning rate.
        high: the last one.
        steps: how many.
    """

    def __init__(self, low: float, high: float, steps: int) -> None:
        """Start with no losses."""
        self.planned = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
        self.losses: list[float] = []
        self._shares: list[float] = []
        self._lowest, self._above = math.inf, 0

    @property
    def rates(self) -> list[float]:
        """The learning rates of the steps whose losses are there."""
        return self.planned[: len(self.losses)]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note how the learning rates of the optimizer's groups stand to each other."""
        first = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
        self._shares = [rate / first[0] if first[0] else 1.0 for rate in first]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss of the step before, which is logged by now, and set the learning rate of this one."""
        self._take_loss(trainer)
        rate = self.planned[min(trainer.global_step, len(self.planned) - 1)]
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = rate * share
        if self._above >= _PATIENCE:
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the last loss."""
        self._take_loss(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Take the last loss."""
        self._take_loss(trainer)

    def _take_loss(self, trainer: lightning.Trainer) -> None:
        loss = trainer.callback_metrics.get("train/loss")
        if len(self.losses) >= trainer.global_step or loss is None:
            return
        self.losses.append(float(loss))
        self._lowest = min(self._lowest, level(self.losses, len(self.planned)))
        is_far = not self.losses[-1] <= DIVERGED * self._lowest
        self._above = self._above + 1 if is_far else 0
