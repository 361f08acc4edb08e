"""The sample rows of docs/data.md are read as the shapes they stand for."""

from __future__ import annotations

import json
from pathlib import Path

from orpo_lightning.data.records import PreferenceRecord, Records
from orpo_lightning.data.shapes import SHAPES

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_two_lines_of_each_shape_are_read_as_that_shape() -> None:
    blocks = TEXT.partition("Two lines of each:\n```\n")[2].partition("```")[0].strip().split("\n\n")
    found = []
    for block in blocks:
        records = Records([json.loads(line) for line in block.splitlines()], "docs/data.md")
        made = [record for record in records if isinstance(record, PreferenceRecord)]
        assert sum(record.rows for record in made) == len(block.splitlines()) == 2
        found.append(records.shape)
    assert found == [
        "explicit text", "explicit messages", "implicit text", "openai", "conversation", "hh", "orca",
        "instruction", "argilla", "swift", "ranked", "unpaired text",
    ]  # fmt: skip


def test_every_shape_is_in_the_table() -> None:
    for shape in SHAPES:
        assert f"`{shape.partition(' ')[0]}`" in TEXT
