"""Files of rows: each is read as its first bytes say, and where these say nothing, as its name does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from orpo_lightning.data.arrow_reader import read_arrow, read_parquet
from orpo_lightning.data.compression import (
    ENDINGS,
    HEAD,
    READ_ERRORS,
    compression_of,
    is_plain,
    open_unpacked,
)
from orpo_lightning.data.csv_reader import read_csv
from orpo_lightning.data.json_reader import read_json
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.rows import Reader, Row
from orpo_lightning.errors import DataError

READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".arrow": read_arrow,
}
KNOWN_ENDINGS = f"{', '.join(READERS)}, each also with {', '.join(ENDINGS)} behind it"

_MAGIC: list[tuple[re.Pattern[bytes], Reader]] = [
    (re.compile(rb"PAR1"), read_parquet),
    (re.compile(rb"ARROW1\0\0|\xff\xff\xff\xff"), read_arrow),
    (re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"'), read_json),
]
_OTHER_THINGS = [
    (re.compile(rb"version https://git-lfs"), "is a pointer of Git LFS, not the data; run `git lfs pull`"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "is UTF-16 text; convert it first, e.g. iconv -f utf-16 -t utf-8"),
    (re.compile(rb"(?i)\s*<(!doctype|html)"), "is a page of the web, not the data; download the file itself"),
    (re.compile(rb"PK\x03\x04"), "is a zip archive; unpack it first"),
]


def ending_of(name: str) -> str:
    """Return the ending that tells a file's format: `.jsonl` of `pairs.jsonl.gz`."""
    path = Path(name)
    return Path(path.stem if path.suffix.lower() in ENDINGS else path.name).suffix.lower()


def read_file(path: Path, name: str | None = None) -> Iterator[Row | LeftOut]:
    """Yield the rows of a file, and what stands in a row's place and is none.

    Args:
        path: the file.
        name: what messages call it; its path where left out.

    Raises:
        DataError: the file, or the rest of it, cannot be read.
        SurroundingsError: there is no room to unpack it.
    """
    name = name or str(path)
    row: Row | LeftOut | None = None
    try:
        with open_unpacked(path) as stream:
            for row in _reader_of(name, stream)(name, stream):
                yield row
    except READ_ERRORS as error:
        raise DataError(_cannot_be_read(path, name, error, row)) from error


def _reader_of(name: str, stream: BufferedReader) -> Reader:
    start = stream.peek(HEAD)[:HEAD]
    for pattern, what in _OTHER_THINGS:
        if pattern.match(start):
            raise DataError(f"{name}: {what}")
    if is_plain(stream) and Path(name).suffix.lower() in ENDINGS and b"\0" in start:
        raise DataError(
            f"{name}: is not {ENDINGS[Path(name).suffix.lower()]} data; copy or download it again"
        )
    if not start:
        return _read_nothing
    for pattern, reader in _MAGIC:
        if pattern.match(start):
            return reader
    return READERS[ending_of(name)]


def _read_nothing(name: str, stream: BufferedReader) -> Iterator[Row | LeftOut]:
    return iter(())


def _cannot_be_read(path: Path, name: str, error: Exception, last: Row | LeftOut | None) -> str:
    """Tell a compressed file that is damaged or cut off from one that may not be opened."""
    behind = f"after {last.where}" if last is not None else "before its first row"
    try:
        kind = compression_of(path)
    except OSError:
        kind = None
    if kind is None:
        return f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"
    cut_off = isinstance(error, EOFError) or "Truncated" in str(error) or "ended" in str(error)
    what = "ends too early" if cut_off else f"is damaged ({error})"
    return f"{name}: its {kind} data {what}, {behind}; copy or download it again"
