"""Unpaired rows: put together by prompt, every row accounted for."""

from __future__ import annotations

import random
from typing import Any

import pytest

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord, Records
from orpo_lightning.data.shapes import NO_COUNTERPART
from orpo_lightning.data.shapes.base import Opinion
from orpo_lightning.data.shapes.unpaired import Waiting
from tests.shape_samples import assistant, human, system, user
from tests.test_shapes.checks import NO, TOOL, YES, fails, last, left_out


def judged(prompt: Any, completion: Any, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_the_kth_liked_answer_is_paired_with_the_kth_disliked_one_of_its_prompt() -> None:
    rows = [
        judged("p", "good 1", True),
        judged("q", "bad 1", False),
        judged("p", "good 2", True),
        judged("p", "bad 1", False),
        judged("q", "good 1", True),
        judged("p", "bad 2", False),
        judged("p", "bad 3", False),
    ]
    *records, rest = Records(rows, "x")
    assert records == [
        PreferenceRecord("p", "good 1", "bad 1", "x row 1 and x row 4", rows=2),
        PreferenceRecord("q", "good 1", "bad 1", "x row 5 and x row 2", rows=2),
        PreferenceRecord("p", "good 2", "bad 2", "x row 3 and x row 6", rows=2),
    ]
    detail = "x row 7: no counterpart: no further liked answer to the same prompt"
    assert rest == LeftOut("x row 7", NO_COUNTERPART, detail, rows[6])


def test_unpaired_messages_have_a_system_turn_and_tools() -> None:
    rows = [
        judged([user("p")], YES, True) | {"system": "s", "tools": [TOOL]},
        judged([user("p")], NO, False) | {"system": "s", "tools": [TOOL]},
    ]
    prompt = [system("s"), user("p")]
    expected = PreferenceRecord(prompt, YES, NO, "x row 1 and x row 2", tools=[TOOL], rows=2)
    assert list(Records(rows, "x")) == [expected]


def test_unpaired_prompts_are_the_same_if_their_turns_are_however_they_are_written() -> None:
    rows = [
        judged("p", YES, True),
        judged([human("p")], "no", "False"),
        {"messages": [user("p"), *YES], "label": 1},
        judged([user("p")], [user("p"), *NO], 0),
    ]
    found = list(Records(rows, "x"))
    assert [item[:3] for item in found] == [([user("p")], YES, NO)] * 2


@pytest.mark.parametrize(
    ("shape", "row", "message"),
    [
        ("unpaired text", judged("p", "a", None), "label must be true or false, found null"),
        ("unpaired messages", judged("p", YES, "good"), "label must be true or false, found 'good'"),
        ("unpaired text", judged("p", "a", 2), "label must be true or false, found int 2"),
        ("unpaired text", judged("p", 5, True), "completion must be text, found int 5"),
        (
            "unpaired messages",
            judged("p", 5, True),
            "completion must be text or a list of messages, found int",
        ),
        ("unpaired text", judged(None, "a", True), "prompt must be text, found null"),
        (
            "unpaired messages",
            judged(None, YES, True),
            "prompt must be text or a list of messages, found null",
        ),
        ("unpaired text", judged("p\ud800", "a", True), "prompt is not valid Unicode: lone surrogate at"),
        (
            "unpaired messages",
            judged("p", [user("q")], True),
            "the last message must be from 'assistant', found",
        ),
        ("unpaired messages", {"messages": YES, "label": True}, "no turn before the answer"),
        (
            "unpaired text",
            {"prompt": "p", "label": True},
            "key 'completion' is missing; the row's keys are 'pro",
        ),
        (
            "unpaired messages",
            {"prompt": "p", "label": True},
            "key 'messages' is missing; the row's keys are",
        ),
        (
            "unpaired text",
            {"prompt": "p", "completion": "a"},
            "key 'label' is missing; the row's keys are 'pro",
        ),
        (
            "unpaired messages",
            {"prompt": "p", "completion": YES},
            "key 'label' is missing; the row's keys are",
        ),
    ],
)
def test_unpaired_rows_that_cannot_be_used_are_broken(shape: str, row: dict[str, Any], message: str) -> None:
    item = left_out(row, shape)
    assert item.is_broken
    assert item.detail.startswith("x row 1: ")
    assert message in item.detail
    assert item.detail.endswith(f" (read as {shape})")


def test_a_text_with_a_text_is_no_chat() -> None:
    first, second = Records([judged("p", YES, True), judged("p", "no", False)], "x")
    assert second.reason == NO_COUNTERPART
    assert first.detail == (
        "x row 2: expected messages in prompt or completion, found text in both (read as unpaired messages)"
    )


def test_one_unpaired_row_is_no_record() -> None:
    fails(judged("p", "a", True), "x:3: a row of shape unpaired text is half a pair")


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_every_unpaired_row_is_in_one_record_or_left_out(kind: str) -> None:
    draw = random.Random(4)
    rows = [judged(f"p{draw.randrange(20)}", f"a{i}", draw.random() < 0.4) for i in range(400)]
    for place in range(3, 400, 50):
        rows[place] = judged(None, "a", True)
    if kind == "messages":
        rows = [row | {"completion": [assistant(row["completion"])]} for row in rows]
    found = list(Records(rows, "x"))
    assert sum(item.rows for item in found) == 400
    places = [place for item in found for place in item.where.split(" and ")]
    assert sorted(places) == sorted(f"x row {i}" for i in range(1, 401))
    good = [row for row in rows if row["prompt"] is not None]
    for prompt in {row["prompt"] for row in good}:
        likes, dislikes = (
            [row for row in good if row["prompt"] == prompt and row["label"] is x] for x in (True, False)
        )
        pairs = [
            (last(item.chosen), last(item.rejected))
            for item in found
            if isinstance(item, PreferenceRecord) and last(item.prompt) == prompt
        ]
        expected = [
            (last(a["completion"]), last(b["completion"])) for a, b in zip(likes, dislikes, strict=False)
        ]
        assert sorted(pairs) == sorted(expected)


def test_unpaired_rows_wait_only_as_long_as_they_lack_a_counterpart() -> None:
    waiting = Waiting()
    for i in range(1000):
        opinion = Opinion(f"p{i // 2}", "a", i % 2 == 0, f"x:{i}", None, {})
        assert (waiting.pair(opinion) is None) == (i % 2 == 0)
        assert len(waiting) == (i + 1) % 2
    assert list(waiting.rest()) == []
