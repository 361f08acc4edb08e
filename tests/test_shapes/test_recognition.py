"""Which shape a row has, and what is said of a row that has none."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.data.records import PreferenceRecord, Records
from orpo_lightning.data.shapes import recognise
from orpo_lightning.errors import DataError
from tests.shape_samples import assistant, gpt, human, user
from tests.test_shapes.checks import NO, REPLIES, TEXTS, YES, fails, shape_of


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (TEXTS | {"prompt": "p"}, "explicit text"),
        (REPLIES | {"prompt": "p"}, "explicit messages"),
        (REPLIES | {"prompt": [user("p")]}, "explicit messages"),
        (TEXTS | {"prompt": [user("p")]}, "explicit messages"),
        # A system column is of chats only.
        (TEXTS | {"prompt": "p", "system": ""}, "orca"),
        (REPLIES | {"prompt": "p", "system": ""}, "explicit messages"),
        # Whole conversations need no other column.
        (
            {"chosen": [user("p"), *YES], "rejected": [user("p"), *NO], "messages": [user("p"), *YES]},
            "implicit messages",
        ),
        ({"chosen": [user("p"), *YES], "rejected": [user("p"), *NO], "question": "p"}, "implicit messages"),
        (
            {"chosen": [human("p"), gpt("a")], "rejected": [human("p"), gpt("b")], "input": "p"},
            "implicit messages",
        ),
        (REPLIES | {"messages": [user("p")]}, "conversation"),
        (TEXTS | {"messages": [user("p")]}, "conversation"),
        (REPLIES | {"question": "p"}, "orca"),
        (REPLIES, "implicit messages"),
        (TEXTS, "implicit text"),
        (TEXTS | {"question": "p"}, "orca"),
        (TEXTS | {"input": "p"}, "orca"),
        (TEXTS | {"system": "s", "input": "p"}, "orca"),
        (TEXTS | {"instruction": "p", "input": "i"}, "instruction"),
        (TEXTS | {"instruction": "p", "system": "s"}, "instruction"),
        (TEXTS | {"prompt": "p", "instruction": "q"}, "explicit text"),
        ({"instruction": "p", "output": ["a", "b"]}, "instruction"),
        ({"prompt": "p", "chosen_response": "a", "rejected_response": "b"}, "argilla"),
        ({"input": "p", "chosen_response": "a", "rejected_response": "b"}, "argilla"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}, "ranked"),
        (TEXTS | {"prompt": "p", "completions": [{"text": "a", "score": 1}]}, "explicit text"),
        ({"prompt": "p", "completion": "a", "label": True}, "unpaired text"),
        ({"prompt": [user("p")], "completion": "a", "label": True}, "unpaired messages"),
        ({"prompt": "p", "completion": YES, "label": True}, "unpaired messages"),
        ({"messages": [user("p"), *YES], "label": True}, "unpaired messages"),
        ({"messages": [user("p"), *YES], "rejected_response": "no"}, "swift"),
        ({"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "Human: p\n\nAssistant: b"}, "hh"),
        (
            {"prompt": "p", "chosen": "Human: p\n\nAssistant: a", "rejected": "Human: p\n\nAssistant: b"},
            "explicit text",
        ),
        ({"chosen": "Human: p", "rejected": "Human: q"}, "implicit text"),
        ({"chosen": "He said: Human: p\n\nAssistant: a", "rejected": "He said: no"}, "implicit text"),
    ],
)
def test_columns_and_their_types_tell_the_shape(row: dict[str, Any], shape: str) -> None:
    assert shape_of(row) == shape


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "i", "win": "a", "lose": "b"},
            "x:3: key 'chosen' is missing; the row's keys are 'instruction', 'win', 'lose'; "
            "set data.columns: {chosen: win, rejected: lose} to read it as instruction",
        ),
        (
            {"question": "q", "better_answer": "a", "worse_answer": "b", "better_score": 3},
            "set data.columns: {chosen: better_answer, rejected: worse_answer} to read it as orca",
        ),
        (
            {"query": "q", "accepted": "a", "denied": "b"},
            "set data.columns: {prompt: query, chosen: accepted, rejected: denied} to read it as explicit",
        ),
        (
            {"query": "q", **TEXTS},
            "x:3: no shape is known of a row with these columns; "
            "the row's keys are 'query', 'chosen', 'rejected'; "
            "set data.columns: {prompt: query} to read it as explicit text",
        ),
        (
            {"prompt": "q", "preferred": YES, "non_preferred": NO},
            "set data.columns: {chosen: preferred, rejected: non_preferred} to read it as explicit messages",
        ),
        (
            {"prompt": "q", "chosen": "a", "Rejected answer": "b"},
            "x:3: key 'rejected' is missing; the row's keys are 'prompt', 'chosen', 'Rejected answer'; "
            'set data.columns: {rejected: "Rejected answer"} to read it as explicit text',
        ),
        (
            {"prompt": "q", "choosen": "a", "rejcted": "b"},
            "set data.columns: {chosen: choosen, rejected: rejcted} to read it as explicit text",
        ),
        (
            {"nr": "q", "winnerText": "a", "loserText": "b"},
            "set data.columns: {chosen: winnerText, rejected: loserText} to read it as implicit text",
        ),
        (
            {"text": "a"},
            "x:3: key 'chosen' is missing; the row's keys are 'text'; "
            "say what they hold, as in data.columns: {prompt: NAME, chosen: NAME, rejected: NAME}",
        ),
        (
            {"prompt": "p", "completion": "a"},
            "key 'chosen' is missing; the row's keys are 'prompt', 'completion'",
        ),
        ({}, "x:3: key 'chosen' is missing; the row's keys are none; say what"),
        ("text", "x:3: expected an object with chosen and rejected, found text"),
        (None, "x:3: expected an object with chosen and rejected, found null"),
    ],
)
def test_a_row_of_no_shape_is_told_its_columns_and_what_they_may_be(row: Any, message: str) -> None:
    fails(row, message)


def test_a_proposed_column_map_does_what_it_says() -> None:
    row = {"instruction": "i", "win": "a", "lose": "b"}
    (found,) = Records([row], "x", columns={"chosen": "win", "rejected": "lose"})
    assert found == PreferenceRecord([user("i")], [assistant("a")], [assistant("b")], "x row 1")


def test_the_message_about_a_row_of_no_shape_stays_short() -> None:
    for row in ({f"column {i}": "a" for i in range(10_000)}, {"k" * 10**6: "a"}, {"p": "x" * 10**6}):
        with pytest.raises(DataError) as caught:
            recognise(row, "x:1")
        assert len(str(caught.value)) < 700
