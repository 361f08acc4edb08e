"""Tells a sweep how one of its runs does, and ends the run when the sweep is gone."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import lightning

log = logging.getLogger(__name__)


class TrialWatch(lightning.Callback):
    """Writes a metric after each validation to a file, a line of JSON each; `sweep` gives it to its runs.

    A run whose sweep was killed stops with the next step as after SIGTERM, with a checkpoint to go on from.

    Args:
        file: what to write to.
        metric: which of the logged values.
        parent: process of the sweep.
    """

    def __init__(self, file: str, metric: str, parent: int) -> None:
        """Keep all three."""
        self.file, self.metric, self.parent = Path(file), metric, parent
        self._told = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the metric, if there is one of that name."""
        value = trainer.callback_metrics.get(self.metric)
        is_due = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero
        if not is_due or value is None:
            return
        # NaN is no JSON: a text, as in a run's curves.
        number = float(value)
        line = {"step": trainer.global_step, "value": number if number - number == 0 else str(number)}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: object
    ) -> None:
        """Stop where the sweep is gone."""
        if trainer.is_global_zero and not self._told and os.getppid() != self.parent:
            self._told = True
            log.warning("the sweep of this run is gone: stopping")
            os.kill(os.getpid(), signal.SIGTERM)
