"""What a file says, read without the package: how many rows it has, and which texts."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Texts = tuple[str, str, str]


class Said(NamedTuple):
    """The rows of a file as this module finds them."""

    rows: list[Any]
    """Each as an object, or None where it is none."""
    is_sure: bool
    """Whether these are all rows, and no more; else the rows of the readable part."""

    def holds(self, kept: Texts) -> bool:
        """Return whether a row says exactly these texts."""
        return any(_is_said(row, kept) for row in self.rows)


def read(path: Path) -> Said | None:
    """Return what a file says; None where this cannot be told."""
    content, is_whole = _unpacked(path.read_bytes())
    ending = Path(path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")).suffix
    if content[:4] == b"PAR1" or content[:6] == b"ARROW1":
        return _of_table(content)
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    is_json = re.match(r'\s*(\[\s*)?\{\s*"', text)
    if ending in (".parquet", ".arrow") and not is_json:
        return None
    if ending == ".csv" and not is_json:
        said = _of_csv(text)
    elif text.lstrip().startswith("[") and not _is_row(text.lstrip()):
        said = _of_array(text)
    elif re.match(r"\{[ \t]*\r?\n", text):
        said = _of_objects(text)
    else:
        said = _of_lines(content)
    return said and said._replace(is_sure=said.is_sure and is_whole)


def _unpacked(content: bytes) -> tuple[bytes, bool]:
    if content[:3] == b"\x1f\x8b\x08":
        return _gunzipped(content)
    if content[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        try:
            return pyarrow.CompressedInputStream(pyarrow.py_buffer(content), "zstd").read(), True
        except OSError:
            return b"", False
    if content[:3] == b"BZh":
        try:
            return bz2.decompress(content), True
        except (OSError, ValueError):
            return b"", False
    return content, True


def _gunzipped(content: bytes) -> tuple[bytes, bool]:
    try:
        return gzip.decompress(content), True
    except (OSError, EOFError, zlib.error):
        pass
    unpacker = zlib.decompressobj(wbits=31)
    whole = b""
    try:
        for byte in content:
            whole += unpacker.decompress(bytes([byte]))
    except zlib.error:
        pass
    return whole, False


def _of_lines(content: bytes) -> Said:
    """Read JSON lines: every line that is not blank is a row."""
    rows: list[Any] = []
    for line in content.split(b"\n"):
        text = line.decode("utf-8", "surrogateescape").lstrip("\ufeff")
        if text.strip():
            rows.append(_parsed(text))
    return Said(rows, True)


def _parsed(text: str) -> Any:
    with _deep():
        try:
            return json.loads(text, strict=False, parse_int=float)
        except (ValueError, RecursionError):
            return None


@contextmanager
def _deep() -> Iterator[None]:
    """Let rows be parsed that are nested as deep as any here."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _is_row(text: str) -> bool:
    """Return whether the first line is a list by itself, with more lines behind it: a row that is none."""
    first, _, rest = text.partition("\n")
    return bool(rest.strip()) and isinstance(_parsed(first), list)


def _of_array(text: str) -> Said | None:
    values = _parsed(text)
    return Said(values, True) if isinstance(values, list) else None


def _of_objects(text: str) -> Said | None:
    rows, at = [], 0
    try:
        while rest := text[at:].lstrip():
            at = len(text) - len(rest)
            value, at = json.JSONDecoder(strict=False, parse_int=float).raw_decode(text, at)
            rows.append(value)
    except (ValueError, RecursionError):
        return None
    return Said(rows, True)


def _of_csv(text: str) -> Said:
    """Read comma-separated text; a row on one line that is badly quoted is one that says nothing."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[list[str]] = []
    is_sure = True
    while True:
        line = reader.line_num
        try:
            found.append(next(reader))
        except StopIteration:
            break
        except csv.Error:
            found.append(["?"])
            is_sure &= reader.line_num == line + 1
    header, *rows = [row for row in found if row] or [[]]
    said = [dict(zip(header, row, strict=True)) if len(row) == len(header) else None for row in rows]
    return Said(said, is_sure)


def _of_table(content: bytes) -> Said | None:
    import pyarrow
    import pyarrow.parquet

    try:
        if content[:4] == b"PAR1":
            table = pyarrow.parquet.read_table(pyarrow.py_buffer(content))
        else:
            table = pyarrow.ipc.open_file(pyarrow.py_buffer(content)).read_all()
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError, ValueError):
        return None
    return Said(list(_rows(table)), True)


def _rows(table: Any) -> Iterator[Any]:
    for number in range(table.num_rows):
        try:
            yield table.slice(number, 1).to_pylist()[0]
        except ValueError:
            yield None


def _is_said(row: Any, kept: Texts) -> bool:
    if not isinstance(row, dict):
        return False
    prompt, chosen, rejected = kept
    said = [_text(row.get(key)) for key in ("prompt", "chosen", "rejected")]
    # Without a prompt of their own, answers share its text.
    return said in ([prompt, chosen, rejected], [None, prompt + chosen, prompt + rejected])


def _text(part: Any) -> str | None:
    if isinstance(part, list) and part and isinstance(part[-1], dict):
        part = part[-1].get("content")
    return part if isinstance(part, str) else None


def all_texts(rows: Iterable[Any]) -> set[Texts]:
    """Return the texts of good rows."""
    return {tuple(_text(row[key]) for key in ("prompt", "chosen", "rejected")) for row in rows}  # type: ignore[misc]
