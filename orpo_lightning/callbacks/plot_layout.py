"""Lets TensorBoard's page CUSTOM SCALARS open on the plots that matter."""

from __future__ import annotations

import logging

import lightning

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
            writer.add_custom_scalars(layout())
        elif trainer.is_global_zero and trainer.loggers:
            log.info(
                "no histograms, answers and page of plots are drawn: these are TensorBoard's, and "
                "trainer.logger has no TensorBoardLogger; pairs.npz and samples.jsonl have the numbers"
            )
