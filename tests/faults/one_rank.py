"""A callback that makes one process of a run go wrong, and leaves the others alone."""

from __future__ import annotations

import time
from typing import Any

import lightning


class OneRank(lightning.Callback):
    """Before the micro-batch after two optimizer steps: raises an error, or sleeps.

    Args:
        rank: of the process.
        do: "raise" or "sleep".
    """

    def __init__(self, rank: int, do: str) -> None:
        """Keep both."""
        self.rank, self.do = rank, do

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Do it."""
        if trainer.global_step < 2 or trainer.global_rank != self.rank:
            return
        if self.do == "raise":
            raise LookupError("something of its own")
        time.sleep(1000)
