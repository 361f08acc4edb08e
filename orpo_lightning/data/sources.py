"""Where rows come from: files or a data set of the hub, read row by row with their places."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.data.files import find_files, is_there, nearest
from orpo_lightning.data.hub import HubName, hub_fingerprint, read_hub
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import READERS, ending_of, read_file
from orpo_lightning.data.rows import Row, Rows
from orpo_lightning.data.values import kind
from orpo_lightning.errors import DataError, UsageError

__all__ = [
    "HubName",
    "Row",
    "Rows",
    "Source",
    "locate",
    "parse_source",
    "read_rows",
    "source_fingerprint",
]

_NAME = r"\w[\w.-]*/[\w.-]+"
# owner/name[/config][:split][@revision]; a split may be cut, as in train[:100].
_HUB = re.compile(
    rf"(?P<path>{_NAME})(?:/(?P<config>[^/:@]+))?"
    r"(?::(?P<split>[^:@/\[\]]+(?:\[[^\[\]@]*\])?))?(?:@(?P<revision>.+))?"
)
_SPLIT = re.compile(r"(?P<path>.+):(?P<split>[\w.-]+)")


class Source(NamedTuple):
    """One origin of rows, and how they are to be read and mixed."""

    path: str
    """A file, a folder, a glob, or the id of a data set of the hub."""
    config: str | None = None
    """Of a data set of the hub that has several."""
    split: str | None = None
    """Of a data set of the hub, or of a folder with several; train where left out."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    weight: float | None = None
    """The share of this source among several, in any unit."""
    shape: str | None = None
    """The name of the rows' shape, where it is not to be recognised."""
    columns: Mapping[str, str] | None = None
    """Our name of a column to its name in the data."""

    @property
    def name(self) -> str:
        """What a user calls it: the text that `parse_source` reads."""
        config = f"/{self.config}" if self.config else ""
        split = f":{self.split}" if self.split else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{config}{split}{revision}"


def parse_source(value: str | os.PathLike[str] | Mapping[str, Any], key: str = "data.train") -> Source:
    """Return the source that a value of the configuration describes.

    Args:
        value: a file, folder or glob, or `owner/name[/config][:split][@revision]` of the hub; or a mapping
            with the fields of `Source`, whose `path` may be any of these.
        key: where the value stands, for messages.

    Raises:
        UsageError: it is nothing of the kind.
    """
    if isinstance(value, Mapping):
        return _parse_mapping(value, key)
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise UsageError(f"{key}: expected the name of a file, a folder or a data set, found {kind(value)}")
    text = os.fspath(value)
    if is_there(Path(text).expanduser()):
        return Source(text)
    hub = _HUB.fullmatch(text)
    if hub is not None and ending_of(hub["path"]) not in READERS:
        return Source(hub["path"], hub["config"], hub["split"], hub["revision"])
    folder = _SPLIT.fullmatch(text)
    if folder is not None and Path(folder["path"]).expanduser().is_dir():
        return Source(folder["path"], split=folder["split"])
    return Source(text)


def locate(source: Source | str) -> list[Path] | HubName:
    """Tell files from a data set of the hub; what lies here wins.

    Raises:
        DataError: it is neither, or cannot be used.
        UsageError: a config, split or revision of something that has none.
    """
    source = _as_source(source)
    files = find_files(source.path, source.split)
    is_hub = re.fullmatch(_NAME, source.path) is not None and ending_of(source.path) not in READERS
    if files is None and is_hub:
        return HubName(source.path, source.split or "train", source.config, source.revision)
    if source.config is not None or source.revision is not None:
        raise UsageError(f"{source.name}: config and revision are for data sets of the hub (owner/name)")
    if files is None:
        hint = nearest(Path(source.path).expanduser())
        raise DataError(
            f"{source.name}: no such file{hint}; expected a file, a folder or a hub id (owner/name)"
        )
    return files


def read_rows(source: Source | str) -> Iterator[Row | LeftOut]:
    """Yield the rows of a source, and a `LeftOut` in the place of each that cannot be read.

    Raises:
        DataError: the source, or the rest of it, cannot be read; or it holds no row.
        SurroundingsError: the hub cannot be reached, or access was not granted.
        UsageError: the source is described wrongly.
    """
    source = _as_source(source)
    place = locate(source)
    rows = (
        read_hub(place) if isinstance(place, HubName) else (row for path in place for row in read_file(path))
    )
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.name} is empty: expected at least one preference pair")
    yield first
    yield from rows


def source_fingerprint(source: Source | str) -> str:
    """Return a hash of what the source holds: of the bytes of its files, in order.

    Raises:
        DataError: the source cannot be read.
        SurroundingsError: the hub cannot be reached, or access was not granted.
        UsageError: the source is described wrongly.
    """
    place = locate(source)
    if isinstance(place, HubName):
        return hub_fingerprint(place)
    digest = hashlib.sha256()
    for path in place:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _as_source(source: Source | str) -> Source:
    return source if isinstance(source, Source) else parse_source(source)


def _parse_mapping(value: Mapping[str, Any], key: str) -> Source:
    for name in value:
        if name not in Source._fields:
            close = difflib.get_close_matches(str(name), Source._fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{key}: unknown key {name!r}; the keys are {', '.join(Source._fields)}{hint}")
    if "path" not in value:
        raise UsageError(f"{key}: key 'path' is missing: the name of a file, a folder or a data set")
    path = parse_source(_checked_text(value["path"], f"{key}.path"), f"{key}.path")
    fields = path._asdict()
    for name in ("config", "split", "revision", "shape"):
        if value.get(name) is None:
            continue
        text = _checked_text(value[name], f"{key}.{name}")
        if fields[name] not in (None, text):
            raise UsageError(f"{key}: path says {name} {fields[name]!r}, and key {name!r} says {text!r}")
        fields[name] = text
    fields["weight"] = _checked_weight(value.get("weight"), f"{key}.weight")
    fields["columns"] = _checked_columns(value.get("columns"), f"{key}.columns")
    return Source(**fields)


def _checked_text(value: Any, key: str) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str) or not value:
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise UsageError(f"{key}: expected text, found {kind(value) if value != '' else 'none'}{hint}")
    return value


def _checked_weight(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (isfinite(value) and value > 0):
        raise UsageError(f"{key}: expected a number above 0, found {kind(value)}")
    return float(value)


def _checked_columns(value: Any, key: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UsageError(f"{key}: expected our names of columns, each with the data's, found {kind(value)}")
    return {
        _checked_text(ours, key): _checked_text(theirs, f"{key}.{ours}") for ours, theirs in value.items()
    }
