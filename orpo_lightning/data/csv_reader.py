"""Comma-separated values with a header line; every value stays the text it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial

from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.rows import LONGEST_ROW, NOT_UTF8, Row
from orpo_lightning.errors import DataError


def read_csv(name: str, stream: io.BufferedReader) -> Iterator[Row | LeftOut]:
    """Yield the rows of a CSV file, each with the line it begins on.

    Raises:
        DataError: the header cannot be used, or where the next row begins cannot be told.
    """
    csv.field_size_limit(2**31 - 1)  # the default stops at 128 KB, less than a long answer
    # A byte that is not UTF-8 becomes an escape: the row that has it is broken, not the file.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _read_text(_Lines(name, text))
    finally:
        text.detach()  # it would close the stream, which is not ours


def _read_text(lines: _Lines) -> Iterator[Row | LeftOut]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        lines.begin_row()
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield _badly_quoted(lines, header, error)
            continue
        if values is None:
            return
        if not values:  # a blank line
            continue
        if header is None:
            header = _checked_header(lines, values)
        else:
            yield _row(lines, header, values)


class _Lines:
    """The lines of a file, as the csv module asks for them, and those of the row it is at."""

    def __init__(self, name: str, text: io.TextIOWrapper) -> None:
        self._name = name
        self._read = partial(text.readline, LONGEST_ROW)
        self._number, self.row, self._size = 0, list[str](), 0

    def begin_row(self) -> None:
        self.row, self._size = [], 0

    @property
    def where(self) -> str:
        """The place of the row."""
        return f"{self._name}:{self._number - len(self.row) + 1}"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self._number += 1
        self.row.append(line)
        self._size += len(line)
        if self._size >= LONGEST_ROW:
            raise DataError(
                f"{self.where}: the row is longer than {LONGEST_ROW >> 20} MiB; is a quote missing?"
            )
        return line

    def not_utf8(self) -> LeftOut | None:
        """Return the row as a broken one where a byte of it is not UTF-8."""
        for number, line in enumerate(self.row):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = len(line[: error.start].encode())
                place = (
                    f"byte {byte}"
                    if number == 0
                    else f"line {self._number - len(self.row) + 1 + number}, byte {byte}"
                )
                return broken(self.where, f"{self.where}: is not UTF-8 text ({place}); {NOT_UTF8}", self.text)
        return None

    @property
    def text(self) -> str:
        """The row as it stands in the file, for the record."""
        return "".join(self.row).encode("utf-8", "surrogateescape").decode(errors="replace").rstrip("\r\n")


def _checked_header(lines: _Lines, names: list[str]) -> list[str]:
    if lines.not_utf8() is not None:
        raise DataError(f"{lines.where}: the header is not UTF-8 text; {NOT_UTF8}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{lines.where}: column {twice!r} stands twice in the header")
    other = next((mark for mark in (";", "\t") if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise DataError(
            f"{lines.where}: expected names separated by commas, found {other!r} between them; "
            "save the file with commas"
        )
    return names


def _row(lines: _Lines, header: list[str], values: list[str]) -> Row | LeftOut:
    if len(values) != len(header):
        detail = f"expected {len(header)} values, one for each column of the header, found {len(values)}"
        return lines.not_utf8() or broken(lines.where, f"{lines.where}: {detail}", lines.text)
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return lines.not_utf8() or broken(lines.where, f"{lines.where}: is not UTF-8 text", lines.text)
    return Row(zip(header, values, strict=True), lines.where)


def _badly_quoted(lines: _Lines, header: list[str] | None, error: csv.Error) -> LeftOut:
    detail = f"{lines.where}: is not comma-separated text: {error}"
    # A fault behind a line break within quotes: rows may stand between them, and nobody knows which.
    if header is None or len(lines.row) > 1 or "unexpected end" in str(error):
        raise DataError(f"{detail}; is a quote missing, or not doubled within quotes?") from error
    return broken(lines.where, detail, lines.text)
