"""Files of a run that grow by a JSON object at each of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orpo_lightning.full_disk import RUN_ELSEWHERE
from orpo_lightning.whole_files import append_line, json_objects, whole_file

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def append_values(path: Path, values: Mapping[str, Any], what: str) -> None:
    """Append a JSON object as a line.

    Args:
        path: the file; its folder is made.
        values: of the line; floats that JSON has no number for become texts: "NaN", "Infinity".
        what: it is, in words, for the error.

    Raises:
        SurroundingsError: the disk is full.
    """
    line = json.dumps({name: _plain(value) for name, value in values.items()}, ensure_ascii=False)
    append_line(path, line, what, RUN_ELSEWHERE)


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return next(name for name, number in _NOT_FINITE.items() if number == value or math.isnan(value))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that `append_values` wrote; "NaN" and its like are floats again.

    A line that a kill cut short is left out. Without a file there are no lines.
    """
    return [{name: _number(value) for name, value in found.items()} for found in json_objects(path)]


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def cut_lines(path: Path, first: int | None) -> None:
    """Take off the lines of later steps, which a run that goes on will write anew, and torn ones.

    Args:
        path: a file that `append_values` wrote; nothing happens where there is none.
        first: the first step whose lines go; None cuts off nothing but what is torn.
    """
    if not path.is_file():
        return
    whole = path.read_bytes()
    kept = []
    for line in whole.splitlines(keepends=True):
        with suppress(ValueError, KeyError):
            step = json.loads(line)["step"]
            if line.endswith(b"\n") and (first is None or step < first):
                kept.append(line)
    if b"".join(kept) != whole:
        with whole_file(path, "the file", RUN_ELSEWHERE) as staging:
            staging.write_bytes(b"".join(kept))
