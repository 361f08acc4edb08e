"""Rows as they come out of a source, each with its place, before anybody has looked at their shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from typing import Any, NamedTuple

from orpo_lightning.data.left_out import LeftOut

LONGEST_ROW = 64 << 20
"""Bytes of text that one row may have; what is longer is no row but a file without line ends or quotes."""

NOT_UTF8 = "convert the file to UTF-8 first, e.g. iconv -f latin1 -t utf-8"


class Row(dict[str, Any]):
    """A row that knows its place."""

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]], where: str) -> None:
        """Copy the values."""
        super().__init__(values)
        self.where = where


Reader = Callable[[str, BufferedReader], Iterator[Row | LeftOut]]
"""Reads one file format: takes the file's name, for messages, and its content, as a stream."""


class Rows(NamedTuple):
    """Rows that are read when they are needed, and a hash that tells whether they are still the same."""

    source: str
    """What a user calls them."""
    fingerprint: str
    read: Callable[[], Iterable[Mapping[str, Any] | LeftOut]]
