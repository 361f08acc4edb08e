"""Pages and their numbers on the disk."""

from __future__ import annotations

from pathlib import Path

from orpo_lightning.full_disk import WRITE_ELSEWHERE
from orpo_lightning.whole_files import whole_file


def write_text(path: Path, text: str) -> None:
    """Write a page or its numbers: the whole of it takes the place of an older one, or the old one stays.

    Raises:
        SurroundingsError: the disk is full.
        OSError: the folder cannot be written to.
    """
    with whole_file(path, "the file", WRITE_ELSEWHERE) as staging:
        staging.write_text(text, encoding="utf-8")
