"""From the rows of a source to one form of record, whatever shape the rows have."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from orpo_lightning.data.columns import rename, unused_columns
from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.shapes import Shape, named_shapes, recognise
from orpo_lightning.data.shapes.base import Opinion, PreferenceRecord
from orpo_lightning.data.shapes.plain import split_shared_prefix
from orpo_lightning.data.shapes.unpaired import Waiting
from orpo_lightning.data.values import kind
from orpo_lightning.errors import DataError

__all__ = ["PreferenceRecord", "Records", "split_shared_prefix", "to_record"]

_ROWS_TRIED = 100
"""So many first rows may be broken before a source counts as of no known shape."""


class Records:
    """The records of a source, one after the other, and its rows of which none could be made.

    The first row that has a known shape decides, and every row is read under it: one that does not fit is
    broken, however well it would fit another shape.

    Args:
        rows: mappings, of which one with an attribute `where` names its own place; rows left out before are
            passed on.
        origin: names the place of the others, with their number.
        shape: the shape's name, in place of what the first row says.
        columns: our names of columns, each with the source's own.

    Raises:
        UsageError: there is no such shape.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        origin: str,
        shape: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Read nothing yet."""
        self.shape: str | None = None
        """The shape's name, once the first row was read."""
        self.unused: list[str] = []
        """Columns of that row that say nothing under this shape."""
        self._rows, self._origin, self._columns = rows, origin, columns
        self._asked = None if shape is None else named_shapes(shape)

    def __iter__(self) -> Iterator[PreferenceRecord | LeftOut]:
        """Yield records, and what was left out.

        Raises:
            DataError: the first rows have no known shape.
        """
        rows = self._placed()
        before: list[LeftOut | tuple[Any, str]] = []
        shape = yield from self._find_shape(rows, before)
        if shape is None:
            return
        self.shape = shape.name
        # A shape that was asked for is read whatever else a row holds.
        without = frozenset() if self._asked else shape.without
        self.unused = self._unused(shape, *before[-1])
        waiting = Waiting()
        for item in chain(before, rows):
            if isinstance(item, LeftOut):
                yield item
                continue
            read = self._read(shape, without, *item)
            if isinstance(read, Opinion):
                pair = waiting.pair(read)
                if pair is not None:
                    yield pair
            else:
                yield read
        yield from waiting.rest()

    def _placed(self) -> Iterator[LeftOut | tuple[Any, str]]:
        """Yield each row with its place."""
        for number, row in enumerate(self._rows, start=1):
            if isinstance(row, LeftOut):
                yield row
            else:
                yield row, getattr(row, "where", None) or f"{self._origin} row {number}"

    def _find_shape(
        self, rows: Iterator[LeftOut | tuple[Any, str]], before: list[LeftOut | tuple[Any, str]]
    ) -> Generator[LeftOut, None, Shape | None]:
        """Return the shape of the first row that has one; that row and those before it go to `before`.

        Only where none of them has one is it an error: else the others are broken rows like any later one.
        """
        error: DataError | None = None
        for item in rows:
            if isinstance(item, LeftOut) and not before:
                yield item
                continue
            before.append(item)
            if not isinstance(item, LeftOut):
                try:
                    return _shape_of(rename(item[0], self._columns, item[1]), item[1], self._asked)
                except DataError as reason:
                    error = error or reason
            if len(before) == _ROWS_TRIED:
                break
        if error is not None:
            raise error
        return None

    def _unused(self, shape: Shape, row: Any, where: str) -> list[str]:
        values = rename(row, self._columns, where)
        return unused_columns(values, lambda some: shape.read(some, where))

    def _read(
        self, shape: Shape, without: frozenset[str], row: Any, where: str
    ) -> PreferenceRecord | LeftOut | Opinion:
        try:
            values = rename(row, self._columns, where) if self._columns else row
            if not isinstance(values, Mapping):
                raise DataError(f"{where}: expected an object with chosen and rejected, found {kind(row)}")
            if not without.isdisjoint(values):
                _refuse_other_shape(values, without, where)
            return shape.read(values, where)
        except DataError as error:
            return broken(where, f"{error} (read as {shape.name})", row)


def to_record(row: Any, where: str, shape: str | None = None) -> PreferenceRecord:
    """Recognise the shape of one row, and read it.

    Raises:
        DataError: no record can be made of it.
        UsageError: there is no shape of that name.
    """
    found = _shape_of(row, where, None if shape is None else named_shapes(shape))
    read = found.read(row, where)
    if isinstance(read, LeftOut):
        raise DataError(read.detail)
    if isinstance(read, Opinion):
        raise DataError(f"{where}: a row of shape {found.name} is half a pair; its other half is another row")
    return read


def _shape_of(row: Any, where: str, asked: list[Shape] | None) -> Shape:
    return (
        asked[0] if asked and len(asked) == 1 and isinstance(row, Mapping) else recognise(row, where, asked)
    )


def _refuse_other_shape(row: Mapping[str, Any], without: frozenset[str], where: str) -> None:
    found = next((key for key in row if key in without and row[key]), None)
    if found is not None:
        raise DataError(
            f"{where}: found {found!r}, which the first row had not; "
            "if that one is at fault, mend it or set the shape"
        )
