"""The two checkpoints a run keeps: the newest, to continue from exactly, and the best in validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from orpo_lightning.callbacks.boundaries import (
    at_boundary,
    begin_next_epoch,
    has_validation,
    keep_to_steps,
    validates_next,
)
from orpo_lightning.callbacks.export import NAMES, AdapterExport
from orpo_lightning.checkpoint_files import remove_unfinished
from orpo_lightning.full_disk import check_room
from orpo_lightning.runfolder import BEST, LAST, PREVIOUS

log = logging.getLogger(__name__)


class ResumeCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the state after the newest saved optimizer step, to continue from.

    ModelCheckpoint's own `save_last` follows its best-of-k choice and may be many steps old. And on the first
    micro-batch after a resume ModelCheckpoint saves in the middle of an accumulation window: a second resume
    would lose that window's gradient. Where a validation follows the step, it is saved after that: Lightning
    would leave out a validation that a kill cut short. And a run whose time is up (trainer.max_time) ends
    with its optimizer step, not in the middle of it.

    Args:
        dirpath: folder of the checkpoint.
        every_n_steps: optimizer steps between two saves; the end of training is always saved.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 50) -> None:
        """Keep the settings."""
        self.path = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._stop_asked = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the step the run starts at as saved, and see whether the disk has room for the next."""
        keep_to_steps(trainer)
        begin_next_epoch(trainer)
        self._saved_step = trainer.global_step
        needed = _needed_bytes(trainer, pl_module, self.path.parent)
        if trainer.is_global_zero:
            remove_unfinished(self.path.parent)  # what a kill during a save left may be what is in the way
            check_room(self.path.parent, needed)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after every n-th optimizer step, and after the last."""
        if not at_boundary(trainer):
            self._stop_asked |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._stop_asked
        # Lightning validates once more before it stops. Time may be short: what is learned is saved first.
        if self._is_due(trainer) and (trainer.should_stop or not validates_next(trainer)):
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the step that this validation followed, if it is due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._is_due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last weights where nothing before told that they were the last."""
        # A resume from here counts one pass over the data too many, which is why this is not the rule.
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the state now, unless this step is saved already. All ranks must call it together."""
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # the curves must reach as far as what the run goes on from
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0 or _is_last_step(trainer)


def resume_checkpoint(trainer: lightning.Trainer) -> ResumeCheckpoint | None:
    """Return what saves the state that a run goes on from; None where nothing does."""
    return next((one for one in trainer.checkpoint_callbacks if isinstance(one, ResumeCheckpoint)), None)


def _needed_bytes(trainer: lightning.Trainer, module: lightning.LightningModule, folder: Path) -> int:
    """Return what the run will write at least: its files that are missing, and a checkpoint beside them all.

    A checkpoint is written before the one whose place it takes is removed. All ranks must ask together.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in trained)
    is_adam = any(isinstance(one, (torch.optim.Adam, torch.optim.AdamW)) for one in trainer.optimizers)
    moments = sum(8 * p.numel() for p in trained) if is_adam else 0
    validates = has_validation(trainer)
    names = [LAST, PREVIOUS, *([BEST] if validates else [])]
    sizes = [(folder / name).stat().st_size for name in names if (folder / name).exists()]
    checkpoint = max([weights + moments, *sizes])
    missing = 0
    for export in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(export, AdapterExport):
            missing += sum(not export.folder(trainer, name).exists() for name in NAMES[: 1 + validates])
    return (1 + len(names) - len(sizes)) * checkpoint + missing * weights


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
