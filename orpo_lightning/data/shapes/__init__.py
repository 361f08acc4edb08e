"""The shapes that a row of a preference data set may have, one small file for each family.

To add one: a function that tells its rows from others, a function that reads one, and a `Shape` of both in
`SHAPES`, where it comes before every shape whose rows it might be taken for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orpo_lightning.data.shapes.base import NO_PREFERENCE, PreferenceRecord, Row, Shape
from orpo_lightning.data.shapes.chat import CONVERSATION, EXPLICIT_MESSAGES, IMPLICIT_MESSAGES, OPENAI, SWIFT
from orpo_lightning.data.shapes.plain import EXPLICIT_TEXT, IMPLICIT_TEXT
from orpo_lightning.data.shapes.questions import ARGILLA, INSTRUCTION, ORCA
from orpo_lightning.data.shapes.ranked import RANKED
from orpo_lightning.data.shapes.transcripts import HH
from orpo_lightning.data.shapes.unknown import explain
from orpo_lightning.data.shapes.unpaired import NO_COUNTERPART, UNPAIRED_MESSAGES, UNPAIRED_TEXT
from orpo_lightning.errors import UsageError

__all__ = [
    "NO_COUNTERPART",
    "NO_PREFERENCE",
    "SHAPES",
    "PreferenceRecord",
    "Row",
    "Shape",
    "named_shapes",
    "recognise",
]

SHAPES = {
    shape.name: shape
    for shape in (
        EXPLICIT_TEXT,
        EXPLICIT_MESSAGES,
        IMPLICIT_MESSAGES,
        OPENAI,
        CONVERSATION,
        HH,
        ORCA,
        INSTRUCTION,
        ARGILLA,
        SWIFT,
        RANKED,
        UNPAIRED_TEXT,
        UNPAIRED_MESSAGES,
        IMPLICIT_TEXT,
    )
}
"""By name, in order of precedence: a row that fits several has the first of them."""


def named_shapes(name: str) -> list[Shape]:
    """Return the shapes of a name: one, or those of which it is the first word, as in `explicit`.

    Raises:
        UsageError: there is none.
    """
    found = [shape for shape in SHAPES.values() if name in (shape.name, shape.name.partition(" ")[0])]
    if not found:
        close = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UsageError(f"shape must be one of {', '.join(SHAPES)}; found {name!r}{hint}")
    return found


def recognise(row: Any, where: str, among: Sequence[Shape] | None = None) -> Shape:
    """Return the shape of a row, told by its columns and their types.

    Args:
        row: the row.
        where: its place.
        among: the shapes that come into question; all of them where left out.

    Raises:
        DataError: it has none of them; the message says what is missing and proposes a column map.
    """
    shape = _shape_of(row, SHAPES.values() if among is None else among)
    if shape is None and among and isinstance(row, Mapping):
        among[0].read(row, where)  # raises, and says what the shape that was asked for lacks
        return among[0]
    if shape is None:
        raise explain(row, where, lambda other: getattr(_shape_of(other, SHAPES.values()), "name", None))
    return shape


def _shape_of(row: Any, shapes: Iterable[Shape]) -> Shape | None:
    fitting = (shape for shape in shapes if shape.matches(row))
    return next(fitting, None) if isinstance(row, Mapping) else None
