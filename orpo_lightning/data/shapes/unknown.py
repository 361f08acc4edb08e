"""A row of no known shape: what is wrong with it, and which of its columns may be meant under other names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from orpo_lightning.data.shapes.base import ANSWERS, Row, check_answers
from orpo_lightning.data.shapes.chat import read_explicit
from orpo_lightning.data.shapes.plain import PROMPT_COLUMNS
from orpo_lightning.data.values import check_text, kind, names
from orpo_lightning.errors import DataError

# Words within the names of columns. Rejected comes first: "non_preferred" holds a word of chosen too.
_WORDS = {
    "rejected": (
        "lose loser losing lost worse worst denied declined disliked negative neg bad wrong dispreferred "
        "unpreferred non not less refused reject discarded"
    ),
    "chosen": (
        "win winner winning won better best accepted accept approved liked positive pos good right correct "
        "preferred selected picked choice"
    ),
    "prompt": "query question instruction context user request task problem human source",
}
_LONGEST_NAME, _MOST_NAMES = 60, 200
_PLAIN_YAML = re.compile(r"[A-Za-z_][\w.-]*")


def explain(row: Any, where: str, shape_of: Callable[[Row], str | None]) -> DataError:
    """Return the error for a row of no known shape.

    Args:
        row: what stands in a row's place.
        where: its place.
        shape_of: tells what shape a row has, of which proposals are made certain.
    """
    if not isinstance(row, Mapping):
        return DataError(f"{where}: expected an object with chosen and rejected, found {kind(row)}")
    missing = [key for key in ANSWERS if key not in row]
    if missing:
        found = f"the row's keys are {names(row)}"
        return DataError(f"{where}: key {missing[0]!r} is missing; {found}; {_advice(row, shape_of)}")
    try:
        check_answers(row, where)
        if not isinstance(row["chosen"], str):
            read_explicit({"prompt": None, **row}, where)
        elif "prompt" in row:
            check_text(row["prompt"], f"{where}: prompt")
    except DataError as error:
        return error
    found = f"the row's keys are {names(row)}"
    return DataError(
        f"{where}: no shape is known of a row with these columns; {found}; {_advice(row, shape_of)}"
    )


def _advice(row: Row, shape_of: Callable[[Row], str | None]) -> str:
    mapping = _proposal(row)
    theirs = set(mapping.values())
    kept = {key: value for key, value in row.items() if key not in theirs}
    shape = shape_of(kept | {ours: row[key] for ours, key in mapping.items()})
    if not mapping or shape is None:
        return "say what they hold, as in data.columns: {prompt: NAME, chosen: NAME, rejected: NAME}"
    written = ", ".join(f"{ours}: {_yaml(key)}" for ours, key in mapping.items())
    return f"set data.columns: {{{written}}} to read it as {shape}"


def _proposal(row: Row) -> dict[str, str]:
    """Return our names, each with the column that may be meant by it."""
    mapping: dict[str, str] = {}
    for ours in ("rejected", "chosen", "prompt"):
        if ours in row or (ours == "prompt" and row.keys() & PROMPT_COLUMNS - {"query"}):
            continue
        free = [key for key, value in row.items() if _may_be_meant(key, value, mapping)][:_MOST_NAMES]
        wanted = set(_WORDS[ours].split())
        alike = [key for key in free if wanted & set(_words(key))] or difflib.get_close_matches(ours, free, 1)
        if alike:
            mapping[ours] = alike[0]
    return dict(reversed(mapping.items()))


def _may_be_meant(key: Any, value: Any, taken: dict[str, str]) -> bool:
    if not isinstance(key, str) or len(key) > _LONGEST_NAME:
        return False
    if key in taken.values() or key in ("prompt", *ANSWERS):
        return False
    return isinstance(value, (str, list, tuple, Mapping))


def _words(key: str) -> list[str]:
    return re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1_\2", key).lower())


def _yaml(key: str) -> str:
    return key if _PLAIN_YAML.fullmatch(key) else json.dumps(key)
