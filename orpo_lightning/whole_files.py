"""Files that appear as a whole, and files that grow a line at a time: a kill cuts neither short."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orpo_lightning.full_disk import room_for


@contextmanager
def whole_file(path: Path, what: str, advice: str) -> Iterator[Path]:
    """Give a name to write to; what is written there takes the place of `path`, or the old file stays.

    Args:
        path: the file; its folder is made.
        what: it is, for a message that the disk is full.
        advice: what to do then besides making room.

    Raises:
        SurroundingsError: the disk is full.
    """
    # In the same folder: from another file system it would be copied, and a copy can be cut short.
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path, what, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield staging
            sync(staging)
            staging.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def append_line(path: Path, line: str, what: str, advice: str) -> None:
    """Append a line that is in the file, and not in this process, when this returns.

    Behind a line that a kill cut short it begins one of its own.

    Args:
        path: the file; its folder is made.
        line: without its end.
        what: the file is, for a message that the disk is full.
        advice: what to do then besides making room.

    Raises:
        SurroundingsError: the disk is full.
    """
    with room_for(path, what, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        start = "\n" if _is_torn(path) else ""
        with path.open("ab") as stream:
            stream.write(f"{start}{line}\n".encode())


def json_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file's lines; what a kill cut short is left out."""
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _is_torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def sync(path: Path) -> None:
    """See a file or a folder onto the disk, so that it outlives a power cut; where the file system can."""
    with suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
