"""Room on a disk: asked for before it is needed, and its lack in one line with the numbers."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orpo_lightning.errors import SurroundingsError

RUN_ELSEWHERE = "set --run_dir to another disk"
WRITE_ELSEWHERE = "name another disk with --out"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Tell whether an error says that a disk is full, in Python's way or in that of a library of Rust."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {code})" in str(error) for code in _FULL)


def free_bytes(path: Path) -> int:
    """Return how much is free where a file or folder is, or will be made."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def free_space(path: Path) -> str:
    """Return that in words."""
    return _words(free_bytes(path))


def full_disk(path: Path, what: str, advice: str, needed: int | None = None) -> SurroundingsError:
    """Return the error of something that did not fit.

    Args:
        path: the file or folder that could not be written.
        what: it is, in words.
        advice: what to do besides making room.
        needed: its bytes, where they are known.
    """
    does_not_fit = "does not fit" if needed is None else f"needs {_words(needed)}"
    return SurroundingsError(
        f"the disk is full: {what} {path} {does_not_fit}, free are {free_space(path)}; make room, or {advice}"
    )


@contextmanager
def room_for(path: Path, what: str, advice: str) -> Iterator[None]:
    """Let the error of a disk that is full say what did not fit; the arguments are those of `full_disk`.

    Raises:
        SurroundingsError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # weights are written in Rust, which has errors of its own
        if is_full(error):
            raise full_disk(path, what, advice) from error
        raise


def check_room(folder: Path, needed: int) -> None:
    """Stop before training where the disk has no room for what the run will write.

    Args:
        folder: where, or where it will be made.
        needed: bytes.

    Raises:
        SurroundingsError: with both numbers.
    """
    free = free_bytes(folder)
    if free < needed:
        raise SurroundingsError(
            f"not enough room in {folder}: the checkpoints and the adapter need {_words(needed)}, free are "
            f"{_words(free)}; make room, or {RUN_ELSEWHERE}"
        )


def _words(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
