"""The two checkpoints a run keeps: the newest, to continue from exactly, and the best in validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

log = logging.getLogger(__name__)


class ResumeCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the state after the newest saved optimizer step, to continue from.

    ModelCheckpoint's own `save_last` follows its best-of-k choice and may be many steps old. And on the first
    micro-batch after a resume ModelCheckpoint saves in the middle of an accumulation window: a second resume
    would lose that window's gradient.

    Args:
        dirpath: folder of the checkpoint.
        every_n_steps: optimizer steps between two saves; the end of training is always saved.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 50) -> None:
        """Keep the settings."""
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the step the run starts at as saved."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after every n-th optimizer step, and after the last."""
        # The step number changes with the last micro-batch of a window, so a new number is a boundary.
        if trainer.global_step % self.every_n_steps == 0 or _is_last_step(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save where a validation ends the training."""
        if trainer.should_stop and trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last weights where nothing before told that they were the last."""
        # A resume from here counts one pass over the data too many, which is why this is not the rule.
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step


def _is_last_step(trainer: lightning.Trainer) -> bool:
    is_last_pass = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return bool(
        trainer.global_step == trainer.max_steps
        or (is_last_pass and trainer.is_last_batch)
        or trainer.should_stop
    )


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the state at the lowest validation value; nothing where that value is not logged.

    Args:
        dirpath: folder of the checkpoint.
        monitor: logged value whose lowest is the best.
    """

    def __init__(self, dirpath: str, monitor: str = "val/loss") -> None:
        """Fix what makes one file of a fixed name, written right after validation."""
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode="min",
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save if this validation was the best yet."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif not trainer.sanity_checking and trainer.state.fn == "fit":
            log.warning("no best checkpoint: %s is not logged", self.monitor)
