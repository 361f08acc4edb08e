"""Ends a run in good order when a signal asks for it or the job's time is nearly up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from typing import Any

import lightning
import torch

from orpo_lightning.batching.sorted_sampler import SortedSampler
from orpo_lightning.callbacks.boundaries import at_boundary, validates_next, validation_is_due
from orpo_lightning.callbacks.checkpoints import resume_checkpoint
from orpo_lightning.stop_signals import Stopped, StopSignals

log = logging.getLogger(__name__)
_SPARE_SECONDS = 30.0


class StopAtSignal(lightning.Callback):
    """After SIGTERM, SIGINT (Ctrl-C) or SIGUSR1: ends the optimizer step, saves, and raises `Stopped`.

    All ranks stop together at the same step, whichever got the signal. Where a validation follows the step or
    is under way, the run that goes on from the checkpoint does it anew. After SIGUSR1 a SLURM job is put
    into the queue again (`#SBATCH --signal=USR1@120 --requeue`). One that tells when it ends
    (SLURM_JOB_END_TIME) stops in time to save, as if that signal had come: where steps are long, it would
    come too late.

    Args:
        signals: what handles the signals outside of training; None handles them in here.
    """

    def __init__(self, signals: StopSignals | None = None) -> None:
        """Read when the job ends, if it is known."""
        self.signals = signals or StopSignals()
        self._pending = False
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        # The clock of the wall is read once: it may be set while the run goes on.
        self._end = time.monotonic() + float(end) - time.time() if end.isdigit() else None
        self._last_check: float | None = None
        self._longest = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From now on signals are noted; Lightning handles them otherwise since the run began."""
        self.signals.take_over()
        self.signals.deferred = True
        self._last_check = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop after this step, if that is asked for and no validation belongs to it."""
        if at_boundary(trainer) and not validates_next(trainer):
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop before this validation, if that is asked for."""
        if self._follows_step(trainer):
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within this validation, if that is asked for."""
        # Asking the others waits for them, so on several ranks all must have as many batches as each.
        if self._follows_step(trainer) and (trainer.world_size == 1 or _shares_evenly(trainer)):
            self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a validation that is cut short be done anew."""
        if self._pending:
            validation_is_due(checkpoint)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the time there is to what follows the last step: proofs, a last validation, the last save."""
        self._end = None

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """All is saved: a signal that came meanwhile ends the rest at once, as one does that comes now."""
        self.signals.deferred = False
        if self.signals.received:
            self._stop(trainer, self.signals.received)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """The run is over: a signal ends the rest at once."""
        self.signals.deferred = False

    def _follows_step(self, trainer: lightning.Trainer) -> bool:
        return trainer.state.fn == "fit" and self.signals.deferred and at_boundary(trainer)

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        signum = self._signal_of_any_rank(trainer)
        if signum:
            self._stop(trainer, signum)

    def _stop(self, trainer: lightning.Trainer, signum: int) -> None:
        # Still deferred: another signal must not cut the saving short.
        saving = resume_checkpoint(trainer)
        if saving is not None:
            self._pending = trainer.validating
            saving.save(trainer)
        where = f"saved in {saving.path}: --resume auto goes on from there" if saving else "nothing is saved"
        log.warning("%s: stopped after step %d, %s", signal.Signals(signum).name, trainer.global_step, where)
        if signum == signal.SIGUSR1 and trainer.is_global_zero:
            _requeue()
        self.signals.deferred = False
        raise Stopped(signum)

    def _signal_of_any_rank(self, trainer: lightning.Trainer) -> int:
        signum = self.signals.received or (signal.SIGUSR1 if self._is_nearly_over() else 0)
        if trainer.world_size == 1:
            return signum
        asked = torch.tensor(float(signum), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(asked, reduce_op="max"))

    def _is_nearly_over(self) -> bool:
        """Tell whether the job ends before the next step would be done and saved."""
        now = time.monotonic()
        self._longest = max(self._longest, now - (self._last_check or now))
        self._last_check = now
        if self._end is None or now + 2 * self._longest + _SPARE_SECONDS <= self._end:
            return False
        log.warning("the job ends in %.0f s: stopping as after SIGUSR1", max(0.0, self._end - now))
        return True


def _shares_evenly(trainer: lightning.Trainer) -> bool:
    """Tell whether all ranks have equally many batches of validation, as they have of our own loaders."""
    return isinstance(getattr(trainer.val_dataloaders, "plan", None), SortedSampler)


def _requeue() -> None:
    """Put this SLURM job into the queue again."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        log.info("SLURM job %s is in the queue again", job)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning(
            "SLURM job %s could not be put into the queue again: %s", job, getattr(error, "stderr", error)
        )
