"""Short names for what the tests of shapes compare."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord, Records, to_record
from orpo_lightning.data.shapes import recognise
from orpo_lightning.errors import DataError
from tests.shape_samples import Rows, assistant

YES, NO = [assistant("yes")], [assistant("no")]
TEXTS = {"chosen": "yes", "rejected": "no"}
REPLIES = {"chosen": YES, "rejected": NO}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def record(prompt: Any, chosen: Any = YES, rejected: Any = NO, **more: Any) -> PreferenceRecord:
    return PreferenceRecord(prompt, chosen, rejected, "x:3", **more)


def shape_of(row: dict[str, Any]) -> str:
    return recognise(row, "x:3").name


def fails(row: Any, message: str, shape: str | None = None) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        to_record(row, "x:3", shape)
    assert "\n" not in str(caught.value)


def left_out(row: Any, shape: str | None = None) -> LeftOut:
    """Return what becomes of a source of this one row, of which no record can be made."""
    (item,) = Records([row], "x", shape)
    assert isinstance(item, LeftOut)
    return item


def last(part: str | Rows) -> str:
    """Return the text of a prompt's or an answer's last message."""
    return part if isinstance(part, str) else part[-1]["content"]
