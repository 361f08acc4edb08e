"""A disk that is full, in one line with the numbers."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from orpo_lightning.errors import SurroundingsError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Tell whether an error says that a disk is full, in Python's way or in that of a library of Rust."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {code})" in str(error) for code in _FULL)


def free_space(path: Path) -> str:
    """Return in words how much is free where a file or folder is, or will be made."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB"


def full_disk(path: Path, what: str, advice: str) -> SurroundingsError:
    """Return the error of something that did not fit.

    Args:
        path: the file or folder that could not be written.
        what: it is, in words.
        advice: what to do besides making room.
    """
    return SurroundingsError(
        f"the disk is full: {what} {path} does not fit, free are {free_space(path)}; make room, or {advice}"
    )
