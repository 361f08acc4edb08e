"""Rows to measure with: a file's pairs again and again, each time with a number of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "chosen", "rejected")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Return the pairs of a JSON lines file with an explicit prompt, text or messages.

    Raises:
        SystemExit: a line is something else.
    """
    pairs = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            missing = [column for column in COLUMNS if not row.get(column)]
            if missing:
                raise SystemExit(f"{path}:{number}: expected {', '.join(COLUMNS)}; {missing[0]} is missing")
            pairs.append({column: row[column] for column in COLUMNS})
    return pairs


def numbered(
    pairs: list[dict[str, Any]], *, max_rows: int | None = None, max_bytes: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the pairs in turn, no two prompts alike, until there are so many rows or bytes of JSON."""
    sizes = [len(json_line(pair)) for pair in pairs]
    total = 0
    for number in count():
        index = number % len(pairs)
        mark = " " + " ".join(str(number))  # to a tokenizer of whole words, too, each number is another
        total += sizes[index] + len(mark)
        if number == max_rows or (max_bytes is not None and total > max_bytes):
            return
        yield {**pairs[index], "prompt": _marked(pairs[index]["prompt"], mark)}


def json_line(row: dict[str, Any]) -> bytes:
    """Return a row as a line of UTF-8 JSON."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Write rows to a JSON lines file; return how many, and their bytes."""
    number = size = 0
    with path.open("wb") as file:
        for number, row in enumerate(rows, start=1):  # noqa: B007
            size += file.write(json_line(row))
    return number, size


def _marked(prompt: Any, mark: str) -> Any:
    if isinstance(prompt, str):
        return prompt + mark
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + mark}]
