"""The values of a row: which texts can be used, and what the others are called in a message to the user."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import isfinite
from numbers import Real
from typing import Any

from orpo_lightning.errors import DataError

_KINDS = {type(None): "null", list: "a list", tuple: "a list", str: "text", bool: "true or false"}
_KEYS_SHOWN = 20
_LONGEST_NUMBER = 40


def is_list(value: Any) -> bool:
    """Return whether a value is a list, as files and Python code write one."""
    return isinstance(value, (list, tuple))


def kind(value: Any) -> str:
    """Name a value's type in the words of a data file; of a number, its value too."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return "an integer of more than 30 digits"  # Python refuses to write those above some thousands
    return _KINDS.get(type(value)) or f"{type(value).__name__} {value!r}"[:60]


def quote(value: Any) -> str:
    """Return a text in quotes, on one line and not at length; of any other value, its kind."""
    return f"{value!r}" if isinstance(value, str) and len(value) <= _LONGEST_NUMBER else kind(value)


def names(keys: Iterable[Any]) -> str:
    """List keys, the first of them where there are many."""
    shown = [repr(key)[:60] for key in keys]
    more = [f"{len(shown) - _KEYS_SHOWN} more"] if len(shown) > _KEYS_SHOWN else []
    return ", ".join(shown[:_KEYS_SHOWN] + more) or "none"


def need(row: Mapping[str, Any], key: str, where: str) -> Any:
    """Return the value under a key.

    Raises:
        DataError: the row has no such key.
    """
    if key not in row:
        raise DataError(f"{where}: key {key!r} is missing; the row's keys are {names(row)}")
    return row[key]


def first_key(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    """Return which of several columns a row uses: the first that is not null.

    Raises:
        DataError: it has none of them.
    """
    there = [key for key in keys if key in row]
    if not there:
        expected = ", ".join(keys[:-1]) + f" or {keys[-1]}"
        raise DataError(f"{where}: expected a key {expected}; the row's keys are {names(row)}")
    return next((key for key in there if row[key] is not None), there[0])


def check_text(value: Any, place: str) -> str:
    """Return a text that a tokenizer can read.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, found {kind(value)}")
    if not value.isascii():  # a look at a flag, where encoding would copy the text
        try:
            value.encode()
        except UnicodeEncodeError as error:
            at = f"lone surrogate at character {error.start}"
            raise DataError(f"{place} is not valid Unicode: {at}") from None
    return value


def check_json(value: Any, place: str) -> Any:
    """Return lists, objects and texts that a template can write as JSON and a tokenizer can read.

    Raises:
        DataError: they are not.
    """
    try:
        check_text(json.dumps(value, ensure_ascii=False), place)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place} cannot be written as JSON: {error}") from None
    return value


def number(value: Any) -> float | None:
    """Return a finite number, given itself or its text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if len(value) > _LONGEST_NUMBER:
            return None
    elif not isinstance(value, (int, float, Real, Decimal)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if isfinite(found) else None
