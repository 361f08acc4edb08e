"""`record.json`: the facts of a run, written when it starts, while it goes on, and however it ends."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orpo_lightning.errors import first_line
from orpo_lightning.full_disk import RUN_ELSEWHERE
from orpo_lightning.masking import mask_text
from orpo_lightning.versions import versions_of
from orpo_lightning.whole_files import whole_file

RECORD = "record.json"
MOST_WARNINGS = 200
_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")
_UNKNOWN = (
    *("package", "versions", "device", "started", "ended", "how", "steps", "seconds", "header"),
    *("parameters", "peak_memory_mb", "data", "warnings", "canary"),
)


class RunRecord:
    """The facts of one run in its folder.

    Args:
        path: of the file.
        goes_on: take over what an earlier process of the run wrote there.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        """Start the clock."""
        self.path = path
        earlier = dict(read_record(path)) if goes_on else {}
        self.facts: dict[str, Any] = dict.fromkeys(_UNKNOWN) | earlier | {"ended": None, "how": None}
        self.facts["started"] = earlier.get("started") or _now()
        self.facts["warnings"] = list(earlier.get("warnings") or [])
        self._seconds_before = float(earlier.get("seconds") or 0.0)
        self._clock = time.monotonic()

    def warn(self, line: str) -> None:
        """Keep a line of warning, once."""
        warnings = self.facts["warnings"]
        if line not in warnings and len(warnings) < MOST_WARNINGS:
            warnings.append(line)

    def end(self, how: str) -> None:
        """Note when and how the run ended."""
        self.facts |= {"ended": _now(), "how": how}

    def write(self, **facts: Any) -> None:
        """Write the file with some facts more, whole or not at all; memory is the most of all processes.

        Raises:
            SurroundingsError: the disk is full.
        """
        peaks = [self.facts.get("peak_memory_mb"), facts.get("peak_memory_mb")]
        self.facts |= facts
        self.facts["peak_memory_mb"] = max((peak for peak in peaks if peak is not None), default=None)
        self.facts["seconds"] = round(self._seconds_before + time.monotonic() - self._clock, 1)
        text = json.dumps(self.facts, indent=1, ensure_ascii=False, default=str)
        with whole_file(self.path, "the record of the run", RUN_ELSEWHERE) as staging:
            staging.write_text(text + "\n", encoding="utf-8")


class WarningsOf(logging.Handler):
    """Gives a record the warnings of the package's messages."""

    def __init__(self, record: RunRecord) -> None:
        """Take warnings and what is worse."""
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self._record.warn(mask_text(record.getMessage()))


def how_it_failed(error: BaseException) -> str:
    """Return how a run ended that raised an error: stopped by somebody, or failed and why."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return "stopped"
    return f"failed: {mask_text(first_line(error))}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    return {"python": platform.python_version()} | versions_of(_PACKAGES)


def read_record(path: Path) -> Mapping[str, Any]:
    """Return the facts of a run; nothing where there is no record, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
