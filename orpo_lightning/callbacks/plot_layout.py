"""Lets TensorBoard's page CUSTOM SCALARS open on the plots that matter."""

from __future__ import annotations

import logging
from typing import Any

import lightning

from orpo_lightning.callbacks.canary import Canary
from orpo_lightning.observing.plots import layout
from orpo_lightning.observing.tensorboard import writer_of

log = logging.getLogger(__name__)


class PlotLayout(lightning.Callback):
    """Writes the layout of TensorBoard's page CUSTOM SCALARS: is it learning, at what price, how fast.

    Without a TensorBoardLogger it says once what is not written.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write it, or say why not."""
        writer = writer_of(trainer)
        if writer is not None:
            writer.add_custom_scalars(layout(_never_logged(trainer, pl_module)))
        elif trainer.is_global_zero and trainer.loggers:
            log.info(
                "no histograms, answers and page of plots are drawn: these are TensorBoard's, and "
                "trainer.logger has no TensorBoardLogger; pairs.npz and samples.jsonl have the numbers"
            )


def _never_logged(trainer: Any, module: Any) -> set[str]:
    """Return which values of the page this run will not log."""
    found = set() if module.device.type == "cuda" else {"train/mfu"}
    pairs = getattr(trainer.datamodule, "validation_pairs", None)
    if pairs is not None and not (pairs.sample.lengths[:, 2] > pairs.sample.lengths[:, 1]).any():
        found.add("val/rewards/accuracies_longer_is_wrong")
    if not any(isinstance(one, Canary) and one.texts for one in trainer.callbacks):
        found.add("val/canary_nll_change")
    return found
