"""Pages on the disk."""

from __future__ import annotations

import os
from pathlib import Path


def write_page(path: Path, page: str) -> None:
    """Write a page: the whole of it takes the place of an older one, or the old one stays.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(page, encoding="utf-8")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
