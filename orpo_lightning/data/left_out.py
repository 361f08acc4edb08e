"""A row that is not trained on: where it stands, why, and whether it is broken or only of no use.

Readers, shapes and token rules pass it on in the row's place, so that reading goes on behind it and every row
that came in is accounted for at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BROKEN = "broken row"


class LeftOut(NamedTuple):
    """One row, or the rows of one pair, that will not be trained on."""

    where: str
    """Its place, for messages: `pairs.jsonl:12`."""
    reason: str
    """A few words, the same for all rows left out for this reason: they are counted under it."""
    detail: str = ""
    """The whole sentence, beginning with the place: what was expected, what was found, what to do."""
    row: Any = None
    """What is known of its content: the row, or the text that could not be read as one."""
    rows: int = 1
    """How many rows of the source it stands for."""

    @property
    def is_broken(self) -> bool:
        """Whether the row itself is at fault: training stops unless `data.on_error` is skip."""
        return self.reason == BROKEN


def broken(where: str, detail: str, row: Any = None) -> LeftOut:
    """Return a broken row.

    Args:
        where: its place.
        detail: the sentence for the user, beginning with the place.
        row: the row, or its text.
    """
    return LeftOut(where, BROKEN, detail, row)
