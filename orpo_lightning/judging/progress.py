"""How far long work is: a line every ten seconds."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)
_EVERY = 10.0


class Progress:
    """Counts what was done, and tells of it now and then; of what ends soon it says nothing.

    Args:
        what: is done, in words: "pairs scored".
        total: how much there is to do.
    """

    def __init__(self, what: str, total: int) -> None:
        """Start the clock."""
        self.what, self.total, self.done = what, total, 0
        self.start = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count, and tell where it is due."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= _EVERY and self.done < self.total:
            rate = self.done / (now - self.start)
            log.info("%s: %s of %s, %.3g a second", self.what, f"{self.done:,}", f"{self.total:,}", rate)
            self.said = now
