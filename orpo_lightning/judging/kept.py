"""Results of long work, a JSON line each: found again by their keys when a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orpo_lightning.full_disk import WRITE_ELSEWHERE
from orpo_lightning.whole_files import append_line, json_objects


def key_of(*parts: Any) -> str:
    """Return a short hash of what decides a result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


class Kept:
    """A file of results; each is written as it comes, and none is lost with a later one.

    Args:
        file: read where it is there; a last line that a kill cut short is left alone and done again.
    """

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self.file = file
        self._found = {values["key"]: values for values in json_objects(file) if "key" in values}

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of a key, or None."""
        return self._found.get(key)

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        """Write a result down, and return it."""
        self._found[key] = found = {"key": key, **values}
        append_line(self.file, json.dumps(found), "the results so far", WRITE_ELSEWHERE)
        return found
