"""Where a run stands between two optimizer steps, asked of Lightning's training loop in one place."""

from __future__ import annotations

from typing import Any

import lightning


def at_boundary(trainer: lightning.Trainer) -> bool:
    """Tell, at the end of a training batch, whether it completed an optimizer step."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validates_next(trainer: lightning.Trainer) -> bool:
    """Tell, at the end of a training batch, whether a validation follows before the next."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(loop._should_check_val_fx(fetcher)) and not _has_nothing_to_validate(loop.val_loop)


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
