"""Where rows come from: a local file or a data set of the hub, read row by row with their places."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.errors import DataError, SurroundingsError, first_line

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[^:/]+))?")


class HubName(NamedTuple):
    """A data set of the hub and one of its splits."""

    name: str
    split: str = "train"


class Row(dict[str, Any]):
    """A row that knows its place."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Copy the values."""
        super().__init__(values)
        self.where = where


class Rows(NamedTuple):
    """Rows that are read when they are needed, and a hash that tells whether they are still the same."""

    source: str
    """What a user calls them."""
    fingerprint: str
    read: Callable[[], Iterable[Mapping[str, Any]]]


def locate(source: str) -> Path | HubName:
    """Tell a file from a hub id; an existing file wins.

    Raises:
        DataError: it is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{source}: expected a name ending in {_SUFFIXES}, found {path.suffix!r}")
        return path
    if path.is_dir():
        raise DataError(f"{source} is a folder; name one file in it ({_SUFFIXES})")
    hub = _HUB_NAME.fullmatch(source)
    if hub is None or path.suffix.lower() in READERS:
        raise DataError(f"{source}: no such file{_nearest(path)}; expected a file or a hub id (owner/name)")
    return HubName(hub["name"], hub["split"] or "train")


def read_rows(source: str) -> Iterator[Row]:
    """Yield the rows of a file or of a hub data set `owner/name` or `owner/name:split`.

    Raises:
        DataError: the source cannot be read, or holds no row.
    """
    place = locate(source)
    rows = _read_hub(place) if isinstance(place, HubName) else READERS[place.suffix.lower()](place)
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise DataError(f"{source} is empty: expected at least one preference pair")


def source_fingerprint(source: str) -> str:
    """Return a hash of what the source holds: of the file's bytes, or the hub's own for a data set."""
    place = locate(source)
    if isinstance(place, HubName):
        return f"{place.name}:{place.split}:{_load_hub(place)._fingerprint}"
    try:
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a hash of rows that come from anywhere."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _read_hub(place: HubName) -> Iterator[Row]:
    for number, values in enumerate(_load_hub(place), start=1):
        yield Row(values, f"{place.name}:{place.split} row {number}")


def _load_hub(place: HubName) -> Any:
    import datasets

    try:
        return datasets.load_dataset(place.name, split=place.split)
    except ConnectionError as error:
        raise SurroundingsError(f"{place.name}: the hub cannot be reached: {first_line(error)}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{place.name}:{place.split}: cannot be loaded: {first_line(error)}") from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{path}:{number}")
            if text.strip():
                where = f"{path}:{number}"
                yield _row(_parse_json(text, where), where)


def _read_json(path: Path) -> Iterator[Row]:
    """Read an array of objects, or JSON lines under the name .json."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_json_lines(path)
        return
    values = _parse_json(_decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path)), str(path))
    for number, value in enumerate(values, start=1):
        yield _row(value, f"{path} row {number}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path} row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file: {first_line(error)}") from error


def _read_csv(path: Path) -> Iterator[Row]:
    """Read comma-separated values with a header line; every value stays the text it is."""
    csv.field_size_limit(2**31 - 1)  # the default stops at 128 KB, less than a long answer
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            line = 2
            for values in reader:
                where = f"{path}:{line}"
                if None in values or None in values.values():
                    columns = len(reader.fieldnames or ())
                    raise DataError(f"{where}: expected {columns} values, one for each column of the header")
                yield Row(values, where)
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: is not comma-separated text: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
_SUFFIXES = ", ".join(READERS)


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with chosen and rejected, found {type(value).__name__}")
    return Row(value, where)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text (byte {error.start}); convert the file first") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        hint = " (cut off?)" if error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg else ""
        raise DataError(f"{where}: is not JSON: {error.msg}, character {error.pos}{hint}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: is not usable JSON: {first_line(error)}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return values


def _nearest(path: Path) -> str:
    """Return a suggestion: the file name of the same folder most like the one that is missing."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.is_file()]
    except OSError:
        return f" (and no folder {path.parent})"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""
