"""Leaves out optimizer steps whose gradient is not finite, names their rows, and stops when it goes on so."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import lightning
import torch
from torch import Tensor

from orpo_lightning.callbacks.checkpoints import resume_checkpoint
from orpo_lightning.errors import DivergedError
from orpo_lightning.schedules import gradient_norm, trained

log = logging.getLogger(__name__)
_NAMED = 8


class FiniteSteps(lightning.Callback):
    """Skips a step whose gradient is NaN or infinite: one such step would make every weight NaN.

    The gradients are taken away before clipping and before the optimizer sees them: no weight, no moment and
    no decay changes. Gradients are summed over ranks before, so all ranks skip the same steps. Under 16-mixed
    an overflow of the gradient alone is the scaler's business: the step is left out, the scale lowered, and
    it does not count towards the end, unless the scale has fallen below one.

    Args:
        most_in_a_row: skipped steps in a row after which the run stops (exit 6).
    """

    def __init__(self, most_in_a_row: int = 5) -> None:
        """Start with nothing skipped."""
        self.most_in_a_row = most_in_a_row
        self.skipped = self.in_a_row = 0
        self._losses: list[tuple[int, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on must know."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of each micro-batch of the step; it is read only if something is wrong."""
        self._losses.append((trainer.fit_loop.batch_idx, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """Take the gradients away if one of them is not finite.

        Raises:
            DivergedError: too many steps in a row were left out.
        """
        losses, self._losses = self._losses, []
        values = torch.stack(
            [gradient_norm(optimizer).float().to(pl_module.device), *(loss.float() for _, loss in losses)]
        )
        # Read once a step, all at a time; a loss is each rank's own.
        if not _on_any_rank(trainer, not bool(values.isfinite().all())):
            self.in_a_row = 0
            return
        for parameter in trained(optimizer):
            parameter.grad = None
        self.skipped += 1
        self._speak(trainer, losses)

    def _speak(self, trainer: lightning.Trainer, losses: list[tuple[int, Tensor]]) -> None:
        """Say which step is left out, why and of which rows; raise if it is one too many."""
        step = trainer.global_step + 1
        wrong = [batch for batch, loss in losses if not loss.isfinite()]
        is_loss = _on_any_rank(trainer, bool(wrong))
        if not is_loss and _scale(trainer) > 1:
            log.warning("step %d is left out: its gradient overflows float16; the scale is lowered", step)
            return
        self.in_a_row += 1
        # The loss may be finite on other ranks; the rows are gathered for the one that prints.
        rows = _gather(trainer, _places(trainer, wrong if is_loss else [batch for batch, _ in losses]))
        what = "the loss is not finite" if is_loss else "the gradient is not finite, though the loss is"
        named = ", ".join(rows[:_NAMED]) + (f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")
        log.warning("step %d is left out: %s%s", step, what, f" (rows: {named})" if named else "")
        if self.in_a_row >= self.most_in_a_row:
            raise DivergedError(
                f"no finite gradient in {self.in_a_row} optimizer steps in a row (up to step {step}), rows "
                f"of the last: {named or 'unknown'}. Lower model.optimizer.lr or set "
                f"trainer.gradient_clip_val 1.0; {_last_good(trainer)}"
            )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log how many steps were left out so far, once one was."""
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), rank_zero_only=False)


def _scale(trainer: lightning.Trainer) -> float:
    """Return what the loss is multiplied by; 0 where it is not."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 0.0 if scaler is None else scaler.get_scale()


def _places(trainer: lightning.Trainer, batches: list[int]) -> list[str]:
    """Return where the rows of this rank's micro-batches stand; nothing for a foreign data module."""
    places = getattr(trainer.datamodule, "places_of", None)  # type: ignore[attr-defined]
    return [] if places is None else places(batches)


def _on_any_rank(trainer: lightning.Trainer, value: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(value, all=False) if trainer.world_size > 1 else value


def _gather(trainer: lightning.Trainer, rows: list[str]) -> list[str]:
    if trainer.world_size == 1:
        return rows
    of_ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(of_ranks, rows)
    return list(chain.from_iterable(of_ranks))


def _last_good(trainer: lightning.Trainer) -> str:
    saving = resume_checkpoint(trainer)
    if saving is None or not saving.path.is_file():
        return "no checkpoint was saved yet"
    return f"the last good checkpoint is {saving.path}"
