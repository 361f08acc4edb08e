"""The columns of a row: called by our names, and which of them its shape takes no notice of."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sized
from typing import Any

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.values import names
from orpo_lightning.errors import DataError


def rename(row: Any, columns: Mapping[str, str] | None, where: str) -> Any:
    """Return a row whose mapped columns stand under our names, in place of what stood there.

    Raises:
        DataError: a mapped column is not there.
    """
    if not columns or not isinstance(row, Mapping):
        return row
    for ours, theirs in columns.items():
        if theirs not in row:
            close = difflib.get_close_matches(theirs, [key for key in row if isinstance(key, str)], n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(
                f"{where}: data.columns maps {ours!r} to {theirs!r}, and there is no such column{hint}; "
                f"the columns are {names(row)}"
            )
    gone = set(columns.values())
    kept = {key: value for key, value in row.items() if key not in gone}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}


def unused_columns(row: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    """Return the columns of a row without which the same is read from it.

    Columns without a value are not named: another row may have one.

    Args:
        row: a row that has a shape.
        read: reads a row of that shape.
    """

    def read_without(column: str) -> Any:
        try:
            return read({key: value for key, value in row.items() if key != column})
        except DataError:
            return None

    try:
        whole = read(row)
    except DataError:
        return []
    if isinstance(whole, LeftOut):
        return []
    return [
        key for key in row if isinstance(key, str) and _has_value(row[key]) and read_without(key) == whole
    ]


def _has_value(value: Any) -> bool:
    return value is not None and not (isinstance(value, Sized) and len(value) == 0)
