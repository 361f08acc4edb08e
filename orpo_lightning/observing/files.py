"""Files of a run that are written whole, and files that grow a line at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orpo_lightning.full_disk import full_disk, is_full

_ADVICE = "set --run_dir to another disk"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_whole(path: Path, content: bytes, what: str) -> None:
    """Write a file: the whole of it appears under its name, or the old one stays.

    Args:
        path: the file; its folder is made.
        content: of the file.
        what: it is, in words, for the error.

    Raises:
        SurroundingsError: the disk is full.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as error:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
        if is_full(error):
            raise full_disk(path, what, _ADVICE) from error
        raise


def append_line(path: Path, values: Mapping[str, Any], what: str) -> None:
    """Append a JSON object as a line that is in the file, and not in this process, when this returns.

    Args:
        path: the file; its folder is made.
        values: of the line; floats that JSON has no number for become texts: "NaN", "Infinity".
        what: it is, in words, for the error.

    Raises:
        SurroundingsError: the disk is full.
    """
    line = json.dumps({name: _plain(value) for name, value in values.items()}, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = b"\n" if _is_torn(path) else b""  # a kill's half line stays a line of its own
        with path.open("ab") as stream:
            stream.write(start + line.encode() + b"\n")
    except OSError as error:
        if is_full(error):
            raise full_disk(path, what, _ADVICE) from error
        raise


def _is_torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return next(name for name, number in _NOT_FINITE.items() if number == value or math.isnan(value))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that `append_line` wrote; "NaN" and its like are floats again.

    A line that a kill cut short is left out. Without a file there are no lines.
    """
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            found.append({name: _number(value) for name, value in json.loads(line).items()})
    return found


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def cut_lines(path: Path, first: int | None) -> None:
    """Take off the lines of later steps, which a run that goes on will write anew, and a torn last one.

    Args:
        path: a file that `append_line` wrote; nothing happens where there is none.
        first: the first step whose lines go; None cuts off nothing but what is torn.
    """
    if not path.is_file():
        return
    whole = path.read_bytes()
    kept = []
    for line in whole.splitlines(keepends=True):
        with suppress(ValueError, KeyError):
            if line.endswith(b"\n") and (first is None or json.loads(line)["step"] < first):
                kept.append(line)
    if b"".join(kept) != whole:
        write_whole(path, b"".join(kept), "the file")
