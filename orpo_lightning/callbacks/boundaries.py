"""Where a run stands between two optimizer steps, asked of Lightning's training loop in one place."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class LoopOfSteps(_TrainingEpochLoop):
    """Lightning's training loop, which neither validates nor ends within an optimizer step.

    Lightning counts micro-batches up to the next validation. Where a pass ends with a short step, or the
    interval is no multiple of accumulate_grad_batches, one falls within a step: what it saves as the best
    could not be gone on from, as the gradient added up so far is in no checkpoint. It comes after that step.
    """

    @property
    def done(self) -> bool:
        """Tell whether to leave the loop; a stop that is asked for within a step waits for its end."""
        if self._is_within_step():
            return self._is_training_done and self._is_validation_done
        return super().done

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        if self._is_within_step():
            return False
        return super()._should_check_val_fx(data_fetcher) or self._fell_due_within_step()

    def _is_within_step(self) -> bool:
        # DeepSpeed goes on accumulating behind the last batch of a pass; what comes there cannot wait.
        return self._should_accumulate() and not self._num_ready_batches_reached()

    def _fell_due_within_step(self) -> bool:
        """Tell whether a validation was due after one of the micro-batches of the step that just ended."""
        trainer: Any = self.trainer
        every = trainer.val_check_batch
        # A validation by the clock stays due until it comes.
        if not self._should_check_val_epoch() or trainer._val_check_time_interval is not None:
            return False
        if every is None or every == float("inf"):
            return False
        across_passes = trainer.check_val_every_n_epoch is None
        done = (self.total_batch_idx if across_passes else self.batch_idx) + 1
        # A run that goes on at the begin of a pass has no step behind it.
        in_step = self.batch_idx % trainer.accumulate_grad_batches + 1 if self.batch_idx >= 0 else 0
        return done // every > (done - in_step) // every


def keep_to_steps(trainer: lightning.Trainer) -> None:
    """Let training validate and end between two optimizer steps only; asked before it begins."""
    loop = trainer.fit_loop.epoch_loop
    if type(loop) is _TrainingEpochLoop:
        loop.__class__ = LoopOfSteps  # its counts, and what a checkpoint brought, stay in place


def at_boundary(trainer: lightning.Trainer) -> bool:
    """Tell, at the end of a training batch, whether it completed an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validates_next(trainer: lightning.Trainer) -> bool:
    """Tell, at the end of a training batch, whether a validation follows before the next."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(loop._should_check_val_fx(fetcher)) and not _has_nothing_to_validate(loop.val_loop)


def has_validation(trainer: lightning.Trainer) -> bool:
    """Tell whether this training validates at all. All ranks must ask together."""
    return trainer.enable_validation and not _has_nothing_to_validate(trainer.fit_loop.epoch_loop.val_loop)


def begin_next_epoch(trainer: lightning.Trainer) -> None:
    """Let a run that goes on behind an epoch's last batch count the epoch it begins; asked before it begins.

    Lightning ends the counts of the epoch before and takes the next for begun already. From there on they lag
    by one, and a second run that goes on from such a place would be given the data of the epoch before again.
    """
    loop = trainer.fit_loop
    counts: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and counts.processed == counts.ready:
        loop.reset_restart_stage()


def validation_is_due(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint made within a validation so that the run that goes on from it begins that anew.

    Lightning would go on in the middle of it, without what the first part had added up. What it reads there
    is told here that the validation stands before the end of its first batch.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    done = progress["total"]["completed"]
    progress["total"].update(ready=done + 1, started=done + 1, processed=done, completed=done)
    progress["current"].update(ready=1, started=1, processed=0, completed=0)
    progress["is_last_batch"] = False


def _has_nothing_to_validate(val_loop: Any) -> bool:
    val_loop.setup_data()
    return val_loop._combined_loader is None or val_loop.skip
