"""What TensorBoard alone can show: texts, histograms, a page of plots."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger


def writer_of(trainer: lightning.Trainer) -> Any | None:
    """Return the SummaryWriter of a run's first TensorBoardLogger; None on other ranks, and without one."""
    if not trainer.is_global_zero:
        return None
    found = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    first = next(found, None)
    return None if first is None else first.experiment
