"""JSON values out of a stream, one at a time: an array of 10 GB takes the memory of its largest row."""

from __future__ import annotations

import codecs
import json
import re
from io import BufferedReader
from typing import Any

from orpo_lightning.data.rows import LONGEST_ROW
from orpo_lightning.errors import DataError

_CHUNK = 1 << 20
# So near the end of the window, a fault may come from what stands behind it: think of -Infinity, \ud83d.
_NEAR = 16
_SPACE = re.compile(r"[ \t\n\r]*")
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]|"', re.DOTALL)
_BARE = re.compile(r"[^,\]\s]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class JsonStream:
    """A window on the text of a stream that moves from value to value.

    Args:
        name: of the file, for messages.
        stream: UTF-8, with or without a byte order mark; a byte that is not UTF-8 is kept as an escape.
        array: the values stand in an array; else only white space stands between them.
    """

    def __init__(self, name: str, stream: BufferedReader, array: bool = False) -> None:
        """Read nothing yet."""
        self._name, self._stream, self._array = name, stream, array
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._at = "", 0
        self._ended = False
        self._has_escapes = False
        self._values = 0
        # Of the text that was let go of: its lines, and the characters of the line that goes on in `_text`.
        self._lines, self._characters = 0, 0
        self._counted, self._newlines = 0, 0
        self._start = 0

    @property
    def line(self) -> int:
        """The line that the next value begins on."""
        self._newlines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return 1 + self._lines + self._newlines

    def seek_value(self) -> bool:
        """Go on to the next value; False where there is none.

        Raises:
            DataError: what stands there is no JSON.
        """
        if self._array and self._values == 0:
            self._skip_space()
            self._at += 1  # the opening bracket
        mark = self._skip_space()
        if not self._array:
            return mark != ""
        if mark == "]":
            self._at += 1
            if self._skip_space():
                raise self._fault("text behind the end of the array", self._at)
            return False
        if self._values:
            if mark != ",":
                raise self._fault("Expecting ',' delimiter", self._at)
            self._at += 1
            self._skip_space()
        return True

    def take_value(self, decoder: json.JSONDecoder) -> tuple[Any, str, Exception | None]:
        """Return the next value, its text, and why it could not be parsed where only the value is at fault.

        Raises:
            DataError: the text is no JSON, and what follows cannot be told apart.
        """
        value, fault = None, None
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                # The text of a number may go on behind the window.
                if end < len(self._text) or not self._more():
                    break
            except json.JSONDecodeError as error:
                if not (self._may_be_cut(error) and self._more()):
                    raise self._fault(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                fault, end = error, self._find_end()
                break
        self._start, self._at = self._at, end
        self._values += 1
        return value, self._text[self._start : end], fault

    def not_utf8(self, text: str) -> str | None:
        """Return where in the value taken last the first byte stands that is not UTF-8, or None.

        Args:
            text: the value's text.
        """
        found = _ESCAPED_BYTE.search(text) if self._has_escapes else None
        if found is None:
            return None
        at = self._start + found.start()
        line_start = self._text.rfind("\n", 0, at) + 1
        byte = len(self._text[line_start:at].encode("utf-8", "surrogateescape"))
        line = 1 + self._lines + self._text.count("\n", 0, at)
        return f"line {line}, byte {byte if line_start else byte + self._characters}"

    def _skip_space(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        """Let go of the text in front and take in more behind; False, and all as it was, where there is none.

        Raises:
            DataError: the value that is read now is larger than any row.
        """
        rest = len(self._text) - self._at
        if rest > LONGEST_ROW:
            raise DataError(f"{self._name}:{self.line}: one value is larger than {LONGEST_ROW >> 20} MiB")
        fresh = ""
        while not fresh and not self._ended:
            # At least as much as there is: else a large value would be parsed anew after every small piece.
            data = self._stream.read1(max(_CHUNK, rest))
            self._ended = not data
            fresh = self._decoder.decode(data, final=self._ended)
        if not fresh:
            return False
        if not fresh.isascii() and not self._has_escapes:
            self._has_escapes = _ESCAPED_BYTE.search(fresh) is not None
        newest = self._text.rfind("\n", 0, self._at)
        self._lines, self._characters = (
            self.line - 1,
            self._at - (newest + 1) + (self._characters if newest < 0 else 0),
        )
        self._text, self._at, self._counted, self._newlines = self._text[self._at :] + fresh, 0, 0, 0
        return True

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return "Unterminated" in error.msg or error.pos >= len(self._text) - _NEAR

    def _find_end(self) -> int:
        """Return the end of the next value by its brackets alone."""
        while (end := _end_of(self._text, self._at)) is None and self._more():
            pass
        if end is None:
            raise self._fault("the value has no end", len(self._text))
        return end

    def _fault(self, what: str, at: int) -> DataError:
        line = 1 + self._lines + self._text.count("\n", 0, at)
        newest = self._text.rfind("\n", 0, at)
        character = at - (newest + 1) + (self._characters if newest < 0 else 0)
        at_end = self._ended and at >= len(self._text.rstrip())
        is_cut = what.startswith("Unterminated") or (what.startswith("Expecting") and at_end)
        hint = " (cut off?)" if is_cut else ""
        return DataError(f"{self._name}:{line}: is not JSON: {what}, character {character}{hint}")


def _end_of(text: str, start: int) -> int | None:
    if text[start] not in "[{":
        match = _BARE.match(text, start)
        return match.end() if match and match.end() < len(text) else None
    depth = 0
    for match in _STRUCTURE.finditer(text, start):
        mark = match[0]
        if mark == '"':  # of a string that does not end
            return None
        depth += (mark in ("[", "{")) - (mark in ("]", "}"))
        if depth == 0:
            return match.end()
    return None
