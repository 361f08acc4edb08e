"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from orpo_lightning.errors import UsageError
from orpo_lightning.file_locks import lock

_NAME = ".lock"


class RunLock:
    """Holds a run's folder for this process; the system lets go of it when the process ends, however it does.

    Args:
        folder: the run's; it is made.

    Raises:
        UsageError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (folder / _NAME).open("a+", encoding="utf-8")
        if not lock(self._file):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UsageError(
                f"{folder} is in use by {holder}: wait until that run has ended, or set --run_dir NEW"
            )
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Let go of the folder."""
        self._file.close()
