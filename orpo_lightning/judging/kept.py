"""Results of long work, a JSON line each: found again by their keys when a killed evaluation goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


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
        self._found: dict[str, dict[str, Any]] = {}
        text = file.read_bytes() if file.is_file() else b""
        for line in text.splitlines():
            try:
                values = json.loads(line)
                self._found[values["key"]] = values
            except (ValueError, KeyError, TypeError):
                continue
        self._is_torn = bool(text) and not text.endswith(b"\n")

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of a key, or None."""
        return self._found.get(key)

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        """Write a result down, and return it."""
        self._found[key] = found = {"key": key, **values}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if self._is_torn else "") + json.dumps(found, ensure_ascii=True) + "\n")
        self._is_torn = False
        return found
