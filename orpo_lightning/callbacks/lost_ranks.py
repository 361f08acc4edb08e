"""Ends a run of several processes when one of them is gone or hangs, and says which."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

import lightning
import torch

from orpo_lightning.errors import SurroundingsError, is_broken_connection
from orpo_lightning.heartbeat import DONE, FAILED, INTERVAL, SILENT, Heartbeat

log = logging.getLogger(__name__)


class LostRanks(lightning.Callback):
    """Ends this process (exit 5) within half a minute of another one's end, with a line that says which.

    Without it the others would wait for a process that was stopped or whose machine is lost until the
    strategy's timeout, and then say that a connection broke, not whose.
    """

    def __init__(self) -> None:
        """Start without others."""
        self._heartbeat: Heartbeat | None = None
        self._found = threading.Event()
        self._lost: dict[int, str] = {}
        self._is_over = self._is_failing = False
        self._children: list[Any] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begin to listen, once all processes have met."""
        if trainer.world_size == 1 or not torch.distributed.is_initialized() or self._heartbeat is not None:
            return
        self._heartbeat = Heartbeat(trainer.global_rank, trainer.world_size, self._end)
        self._children = getattr(trainer.strategy.launcher, "procs", [])
        trainer.strategy.barrier("heartbeat")
        self._heartbeat.start()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Wait for the others to come to the end too, and let go."""
        if self._heartbeat is not None and not self._is_failing:
            trainer.strategy.barrier("end")
            self._is_over = True
            self._heartbeat.stop(DONE)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Find out who is behind a broken connection; let the others know of any other error."""
        if self._heartbeat is None:
            return
        self._is_failing = True
        if is_broken_connection(exception):
            self._heartbeat.give_up()
            # Killed processes are found at once. Where all are alive, the strategy's timeout has passed.
            if not self._found.wait(4 * INTERVAL):
                self._lost = self._heartbeat.late()
            if not self._lost:
                self._found.wait(SILENT)
            exception.add_note(self._line() if self._speaks() else "")
            self._end_others()
        self._heartbeat.stop(FAILED)

    def _end(self, lost: dict[int, str]) -> None:
        """End this process from the heartbeat's thread, unless it is about to end by itself."""
        self._lost = lost
        self._found.set()
        time.sleep(INTERVAL)
        if self._is_failing or self._is_over:
            return
        if self._speaks():
            log.error(self._line())
        self._end_others()
        os._exit(SurroundingsError.exit_code)

    def _end_others(self) -> None:
        assert self._heartbeat is not None
        self._heartbeat.end_hanging(self._lost)
        if not self._speaks():
            # Lightning's launcher kills all, the one that speaks too, when the first process fails.
            time.sleep(2 * INTERVAL)
        for child in self._children:
            child.send_signal(signal.SIGKILL)

    def _speaks(self) -> bool:
        """Tell whether this is the first of the processes that are left."""
        assert self._heartbeat is not None
        return self._heartbeat.rank == next(rank for rank in self._heartbeat.ranks if rank not in self._lost)

    def _line(self) -> str:
        lines = "; ".join(self._lost.values()) or (
            "another process did not come within trainer.strategy.init_args.timeout, though all are alive"
        )
        return f"{lines}. The run ends; --resume auto goes on from its last checkpoint"
