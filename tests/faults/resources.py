"""A callback that notes what a process holds as a run goes on."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import lightning


class Resources(lightning.Callback):
    """Writes a line of JSON every so many steps: memory in MB, open files, threads, median step time in ms.

    Args:
        file: where.
        every: steps between two lines.
    """

    def __init__(self, file: str, every: int = 100) -> None:
        """Start empty."""
        self.file, self.every = Path(file), every
        self._seconds: list[float] = []
        self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the step's time, and every so often all the rest."""
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        if trainer.global_step % self.every:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = {
            "step": trainer.global_step,
            "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "step_ms": 1e3 * sorted(self._seconds)[len(self._seconds) // 2],
        }
        self._seconds.clear()
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
