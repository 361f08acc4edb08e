"""JSON files: one object a line, an array of objects, or objects one behind the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedReader
from typing import Any

from orpo_lightning.data.compression import HEAD
from orpo_lightning.data.json_stream import JsonStream
from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.rows import LONGEST_ROW, NOT_UTF8, Row
from orpo_lightning.data.values import kind

DEEPEST = 100
"""Levels of lists and objects in one row. Python's own limit moves with the caller's stack: no rule."""

_BOM = "\ufeff"
# Printed over several lines: the bracket alone on the first, then a key or the end.
_PRINTED_OBJECT = re.compile(rb'\{[ \t]*\r?\n\s*["}]')


def read_json(name: str, stream: BufferedReader) -> Iterator[Row | LeftOut]:
    """Yield the rows of a JSON file, whatever its layout.

    Raises:
        DataError: an array, or objects over several lines, with a fault behind which nothing can be read.
    """
    start = stream.peek(HEAD)[:HEAD].removeprefix(_BOM.encode()).strip()
    if _PRINTED_OBJECT.match(start):
        yield from _read_values(name, JsonStream(name, stream))
    elif _is_array(start):
        yield from _read_values(name, JsonStream(name, stream, array=True), numbered=b"\n" not in start)
    else:
        yield from _read_lines(name, stream)


def _is_array(start: bytes) -> bool:
    """Tell an array of rows from rows, one a line, the first of which is a list by mistake."""
    if not start.startswith(b"["):
        return False
    line, _, rest = start.partition(b"\n")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # it goes on behind this line
        return True
    return not rest and (not values or any(isinstance(value, dict) for value in values))


def _read_lines(name: str, stream: BufferedReader) -> Iterator[Row | LeftOut]:
    parser = _Parser()
    read = partial(stream.readline, LONGEST_ROW)
    for number, line in enumerate(iter(read, b""), start=1):
        where = f"{name}:{number}"
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = read()
            yield broken(
                where, f"{where}: the line is longer than {LONGEST_ROW >> 20} MiB; is this JSON lines?"
            )
            continue
        try:
            row = parser.parse_line(line.decode(), where)
        except UnicodeDecodeError as error:
            detail = f"{where}: is not UTF-8 text (byte {error.start}); {NOT_UTF8}"
            row = broken(where, detail, line.decode(errors="replace").strip())
        if row is not None:
            yield row


def _read_values(name: str, stream: JsonStream, numbered: bool = False) -> Iterator[Row | LeftOut]:
    """Yield one row after the other; `numbered` where a line number would be the same for all."""
    parser = _Parser()
    number = 0
    while stream.seek_value():
        number += 1
        where = f"{name} row {number}" if numbered else f"{name}:{stream.line}"
        value, text, fault = stream.take_value(parser.decoder)
        row = parser.check(value, text, where, fault)
        place = stream.not_utf8(text)
        if place is not None:
            clean = text.encode("utf-8", "surrogateescape").decode(errors="replace")
            row = broken(where, f"{where}: is not UTF-8 text ({place}); {NOT_UTF8}", clean)
        yield row


class _Parser:
    """Makes rows of the text of one; remembers a key that stood twice, without losing its place for it."""

    def __init__(self) -> None:
        self._twice: str | None = None
        # Control characters within strings mean what they are; the flags of the pairs tell of them later.
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, strict=False)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice = next(key for key in keys if keys.count(key) > 1)
        return values

    def parse_line(self, text: str, where: str) -> Row | LeftOut | None:
        """Return the row of a line, or None where it is blank."""
        try:
            value = self.decoder.decode(text)
        except (ValueError, RecursionError) as error:
            self._twice = None
            if text.startswith(_BOM):  # of files put one behind the other, too
                return self.parse_line(text[1:], where)
            if not text.strip():
                return None
            return broken(where, f"{where}: {_fault(error, text)}", text.strip())
        return self.check(value, text, where)

    def check(self, value: Any, text: str, where: str, fault: Exception | None = None) -> Row | LeftOut:
        """Make a row of a parsed value.

        Args:
            value: what was parsed.
            text: what it was parsed from.
            where: its place.
            fault: why it could not be parsed.
        """
        twice, self._twice = self._twice, None
        if (
            fault is None
            and isinstance(value, (dict, list))
            and text.count("[") + text.count("{") > DEEPEST
            and _is_deep(value)
        ):
            fault = RecursionError()
        if fault is not None:
            return broken(where, f"{where}: is not usable JSON: {_unusable(fault)}", text.strip())
        if twice is not None:
            detail = f"{where}: is not usable JSON: key {twice!r} stands twice in one object"
            return broken(where, detail, text.strip())
        if not isinstance(value, dict):
            detail = f"{where}: expected an object with chosen and rejected, found {kind(value)}"
            return broken(where, detail, value)
        return Row(value, where)


def _fault(error: Exception, text: str) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"is not usable JSON: {_unusable(error)}"
    character = min(error.pos, len(text.rstrip("\r\n")))
    hint = " (cut off?)" if character >= len(text.rstrip()) - 1 or "Unterminated" in error.msg else ""
    if character == 0 and "," in text and text.strip()[0] not in "{[":
        hint = " (comma-separated text? its file's name must end in .csv)"
    return f"is not JSON: {error.msg}, character {character}{hint}"


def _unusable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"lists and objects stand more than {DEEPEST} deep in each other"
    return "a number has too many digits"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
        level = [part for part in inner if isinstance(part, (dict, list))]
    return bool(level)
