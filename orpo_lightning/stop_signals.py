"""Signals that ask a run to stop: noted while it trains, obeyed at once while there is nothing to save."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a user, a job scheduler and a cloud's notice of pre-emption send."""


class Stopped(SystemExit):
    """The run ends because a signal asked for it; the exit code is 128 + the signal's number.

    Args:
        signum: the signal's number.
        line: what to tell the user; empty where that was said already.
    """

    def __init__(self, signum: int, line: str = "") -> None:
        """Keep both."""
        super().__init__(128 + signum)
        self.line = line


class StopSignals:
    """A context in which the first of SIGNALS raises `Stopped`, or, while `deferred`, is only noted.

    A second Ctrl-C raises KeyboardInterrupt at once, whatever is being waited for. Outside the main thread,
    where Python cannot handle signals, nothing is handled.
    """

    def __init__(self) -> None:
        """Start with nothing received."""
        self.received: int | None = None
        self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Handle the signals from now on."""
        self.take_over()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back to whoever handled them before."""
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
        self._before = {}

    def take_over(self) -> None:
        """Handle the signals, also where somebody else has begun to: Lightning does when a run starts."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            current = signal.getsignal(signum)
            if current != self._handle:
                # None: a handler that was not set from Python, and cannot be set again.
                self._before.setdefault(signum, signal.SIG_DFL if current is None else current)
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.received = self.received is None, self.received or signum
        name = signal.Signals(signum).name
        if not self.deferred:
            raise Stopped(signum, f"stopped by {name}")
        if first:
            # Not through logging: a handler may interrupt just that, and its locks.
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            os.write(2, f"{name}: stopping after this optimizer step{again}\n".encode())


def leave_to_parent(worker: int) -> None:
    """Let a data worker ignore what asks the run to stop: the run needs its batches up to the step's end.

    Signals reach a whole group of processes (Ctrl-C, a scheduler's). A worker whose parent is gone ends by
    itself.

    Args:
        worker: its number; DataLoader gives it to a `worker_init_fn`.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
