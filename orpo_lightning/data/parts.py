"""The sources of a split: what their rows are, how they are read, and with which weight they are mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from orpo_lightning.data.cache import Reading
from orpo_lightning.data.sources import Rows, Source, parse_source, read_rows, source_fingerprint
from orpo_lightning.errors import DataError, UsageError


class Part(NamedTuple):
    """One source of a split."""

    rows: Rows
    reading: Reading
    weight: float | None = None
    """None where no source is mixed by weight."""


def parse_sources(named: Any, key: str) -> list[Source]:
    """Return the sources that an argument names: one, a list of them, or none.

    Args:
        named: a text or mapping, a list of these, or None.
        key: the argument, for messages.

    Raises:
        UsageError: one of them cannot be understood.
    """
    if named is None:
        return []
    if not isinstance(named, (list, tuple)):
        return [parse_source(named, key)]
    if not named:
        raise UsageError(f"{key}: expected at least one source, found an empty list")
    return [parse_source(one, f"{key}[{number}]") for number, one in enumerate(named)]


def parts_of(sources: Iterable[Source], reading: Reading, key: str, mix: str | None) -> list[Part]:
    """Return the parts of a split.

    Args:
        sources: as named by the user.
        reading: how rows are read where a source does not say otherwise.
        key: the argument, for messages.
        mix: "proportional" or "equal"; None where sources are not mixed at all, as in validation.

    Raises:
        UsageError: a weight stands where nothing is mixed.
    """
    sources = list(sources)
    has_weights = any(source.weight is not None for source in sources)
    if mix is None and has_weights:
        raise UsageError(f"{key}: only training sources are mixed by weight; leave the weight out")
    parts = []
    for source in sources:
        own = reading._replace(shape=source.shape or reading.shape, columns=source.columns or reading.columns)
        rows = Rows(source.name, source_fingerprint(source), partial(read_rows, source))
        weight = 1.0 if source.weight is None else source.weight
        parts.append(Part(rows, own, weight if has_weights or mix == "equal" else None))
    return parts


def rows_of_code(name: str, load: Callable[[], Iterable[Mapping[str, Any]]]) -> Rows | None:
    """Return the rows that a function gives, hashed in a first call of it; None where it gives none.

    Args:
        name: what messages call the source.
        load: called again whenever the rows are read; it must give the same ones.
    """
    hashed = _Hashed(load())
    for _ in hashed:
        pass
    return (
        Rows(name, hashed.digest(), partial(_read_again, name, load, hashed.digest()))
        if hashed.count
        else None
    )


def _read_again(
    name: str, load: Callable[[], Iterable[Mapping[str, Any]]], expected: str
) -> Iterator[Mapping[str, Any]]:
    hashed = _Hashed(load())
    yield from hashed
    if hashed.digest() != expected:
        raise DataError(f"{name}: it gave other rows the second time; it must give the same at every call")


class _Hashed:
    """Rows that are hashed as they go by: every value and the rows' order counts, that of keys does not."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows, self._digest, self.count = rows, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self._rows:
            self._digest.update(_canonical(row).encode() + b"\n")
            self.count += 1
            yield row

    def digest(self) -> str:
        return self._digest.hexdigest()


def _canonical(row: Any) -> str:
    try:
        return json.dumps(row, sort_keys=True, default=str)
    except TypeError:  # keys of several types, which have no order
        return repr(row)
