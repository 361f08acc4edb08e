"""Tokenised pairs on disk: made once in bounded memory, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_lightning.data.cache_key import cache_key
from orpo_lightning.data.left_out import BROKEN, LeftOut
from orpo_lightning.data.records import Records
from orpo_lightning.data.sources import Rows
from orpo_lightning.data.table import (
    COLUMNS,
    DROPPED,
    INFO,
    PLACES,
    Dropped,
    StoredPairs,
    TableInfo,
    column_file,
)
from orpo_lightning.data.tokenization import Chunk, tokenize_records
from orpo_lightning.errors import DataError, SurroundingsError, first_line
from orpo_lightning.full_disk import free_space

_PLACES_KEPT = 5
_LONGEST_LINE = 20_000


class Reading(NamedTuple):
    """How the rows of one source become pairs: arguments of `Records` and of `tokenize_records`."""

    shape: str | None
    columns: Mapping[str, str] | None
    rules: dict[str, Any]


def default_cache_dir() -> Path:
    """Return the user's cache folder for this package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orpo_lightning"


def open_stored(
    rows: Rows, tokenizer: Any, reading: Reading, folder: Path, *, stop_at_broken: bool = True
) -> StoredPairs:
    """Return the tokenised pairs of a source, from the folder where they are there already.

    Args:
        rows: the source.
        tokenizer: of `transformers`.
        reading: shape, columns and rules.
        folder: holds all caches.
        stop_at_broken: whether a broken row is an error, or left out and counted.

    Raises:
        DataError: the source cannot be used, or has broken rows; the first five of them are named.
        UsageError: the tokenizer does not fit the data.
        SurroundingsError: the folder cannot be written.
    """
    entry = folder / cache_key(rows, tokenizer, reading)
    stored = _load(entry)
    if stored is None:
        _remove_dead(entry)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_prefix(entry), dir=entry.parent) as name:
                temporary = Path(name) / entry.name
                temporary.mkdir()
                _make(temporary, rows, tokenizer, reading, stop_at_broken)
                _put(temporary, entry)
        except OSError as error:
            raise SurroundingsError(
                f"{entry.parent}: cannot store the tokenised pairs: {error.strerror or error}, free are "
                f"{free_space(entry.parent)}; make room there, or set data.cache_dir to another folder"
            ) from error
        stored = _load(entry)
        assert stored is not None
    if stop_at_broken and BROKEN in stored.info.dropped:
        # One row at a time: all that was left out, with its content, may be more than the memory holds.
        items = (LeftOut(**values) for values in left_out_rows(stored.folder))
        _refuse_broken([item._replace(row=None) for item in items if item.is_broken], stored.info.rows)
    return stored


def left_out_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield where, reason, detail, row and number of rows of everything a stored source left out."""
    with (folder / DROPPED).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _make(folder: Path, rows: Rows, tokenizer: Any, reading: Reading, stop_at_broken: bool) -> None:
    """Tokenise a source into files of a folder."""
    from tqdm import tqdm

    found = Records(_readable(rows), rows.source, shape=reading.shape, columns=reading.columns)
    items = iter(tqdm(found, desc=f"tokenising {rows.source}", unit=" rows", disable=None))
    notes: list[str] = []
    with ExitStack() as stack:
        writer = _Writer(folder, stack)
        for chunk in tokenize_records(items, tokenizer, **reading.rules, notes=notes):
            writer.write(chunk)
            broken = [item for item in chunk.left_out if item.is_broken]
            if broken and stop_at_broken:
                broken += [item for item in items if isinstance(item, LeftOut) and item.is_broken]
                _refuse_broken(broken, None)
    if found.unused:
        notes.append(f"columns not used: {', '.join(map(repr, found.unused))}")
    info = writer.info(rows.source, found.shape or "", notes)
    (folder / INFO).write_text(json.dumps(asdict(info)), encoding="utf-8")


def _readable(rows: Rows) -> Iterator[Any]:
    try:
        yield from rows.read()
    except OSError as error:  # of a `load_rows` of the user's: it has nothing to do with the cache
        raise DataError(f"{rows.source}: cannot be read: {first_line(error)}") from error


def _refuse_broken(broken: list[LeftOut], rows: int | None) -> None:
    if not broken:
        return
    first = "; ".join(item.detail for item in broken[:_PLACES_KEPT])
    if len(broken) == 1:
        raise DataError(f"{first} (--data.on_error skip leaves such rows out)")
    of = f" of {rows:,}" if rows else ""
    raise DataError(
        f"{len(broken):,} rows{of} are broken, --data.on_error skip leaves them out; the first: {first}"
    )


class _Writer:
    """Appends chunks to the files of a folder, and adds up what is known of the whole."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.columns = {name: stack.enter_context(column_file(folder, name).open("wb")) for name in COLUMNS}
        self.places = stack.enter_context((folder / PLACES).open("w", encoding="utf-8"))
        self.dropped_file = stack.enter_context((folder / DROPPED).open("w", encoding="utf-8"))
        self.digests = {name: hashlib.sha256() for name in ("tokens", "lengths")}
        self.dropped: dict[str, Dropped] = {}
        self.stop_tokens: Counter[int] = Counter()
        self.scripts: Counter[str] = Counter()
        self.pairs = self.tokens = self.whole = self.kept_rows = self.cut_answers = 0
        self.largest_token = -1

    def write(self, chunk: Chunk) -> None:
        for name, file in self.columns.items():
            content = getattr(chunk, name).tobytes()
            file.write(content)
            if name in self.digests:
                self.digests[name].update(content)
        self.places.writelines(_one_line(place) + "\n" for place in chunk.places)
        for item in chunk.left_out:
            self.dropped_file.write(_dropped_line(item) + "\n")
            rows, first = self.dropped.get(item.reason, Dropped(0, []))
            self.dropped[item.reason] = Dropped(rows + item.rows, [*first, item.where][:_PLACES_KEPT])
        self.stop_tokens += chunk.stop_tokens
        self.scripts += chunk.scripts
        self.pairs += len(chunk.places)
        self.tokens += len(chunk.tokens)
        self.largest_token = max(self.largest_token, int(np.frombuffer(chunk.tokens, "i").max(initial=-1)))
        self.whole += len(chunk.whole_lengths) // 3
        self.kept_rows += chunk.kept_rows
        self.cut_answers += chunk.cut_answers

    def info(self, source: str, shape: str, notes: list[str]) -> TableInfo:
        parts = "".join(self.digests[name].hexdigest() for name in sorted(self.digests))
        return TableInfo(
            source=source,
            shape=shape,
            fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
            pairs=self.pairs,
            tokens=self.tokens,
            largest_token=self.largest_token,
            whole=self.whole,
            rows=self.kept_rows + sum(dropped.rows for dropped in self.dropped.values()),
            dropped=self.dropped,
            stop_tokens=dict(self.stop_tokens),
            cut_answers=self.cut_answers,
            scripts=dict(self.scripts),
            notes=notes,
        )


def _dropped_line(item: LeftOut) -> str:
    line = json.dumps(item._asdict(), default=str, skipkeys=True)
    if len(line) <= _LONGEST_LINE:
        return line
    beginning = json.dumps(item.row, default=str, skipkeys=True)[:_LONGEST_LINE]
    return json.dumps(item._replace(row=beginning)._asdict())


def _one_line(place: str) -> str:
    return " ".join(place.splitlines())


def _put(temporary: Path, entry: Path) -> None:
    """Move a finished folder to its final place, so that a kill leaves all or nothing."""
    for file in temporary.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if entry.exists() and _load(entry) is None:
        shutil.rmtree(entry)  # damaged
    try:
        os.replace(temporary, entry)
    except OSError:
        if _load(entry) is None:  # else another process was faster, with the same tokens
            raise


def _load(entry: Path) -> StoredPairs | None:
    """Return what is stored, or None where it is missing or incomplete."""
    try:
        return StoredPairs(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prefix(entry: Path) -> str:
    return f".{entry.name}-{socket.gethostname()}-{os.getpid()}-"


def _remove_dead(entry: Path) -> None:
    """Remove what processes of this machine left when they were killed while making the same cache."""
    start = f".{entry.name}-{socket.gethostname()}-"
    for folder in entry.parent.glob(f"{start}*"):
        pid = folder.name.removeprefix(start).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
