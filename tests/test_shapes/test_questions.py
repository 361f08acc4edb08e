"""A question and two answers under other names: orca, instruction, argilla."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import to_record
from orpo_lightning.data.shapes import NO_PREFERENCE
from tests.shape_samples import assistant, system, user
from tests.test_shapes.checks import REPLIES, TEXTS, fails, left_out, record


def test_an_orca_row_has_a_system_turn_unless_it_is_empty() -> None:
    for question in ("question", "input", "prompt"):
        row = {"system": "s", question: "p", **TEXTS}
        assert to_record(row, "x:3") == record([system("s"), user("p")])
        assert to_record(row | {"system": ""}, "x:3") == record([user("p")])
        assert to_record(row | {"system": None}, "x:3") == record([user("p")])
    assert to_record({"question": "p", **REPLIES}, "x:3") == record([user("p")])


def test_an_instruction_takes_its_input_into_the_user_turn() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", **TEXTS}
    assert to_record(row, "x:3") == record([user("Add.\n\n1 and 2")])
    for none in ({"input": ""}, {"input": None}, {}):
        alone = {"instruction": "Add.", **TEXTS, **none}
        assert to_record(alone, "x:3") == record([user("Add.")])
    more = row | {"system": "s", "history": [["a", "b"]]}
    assert to_record(more, "x:3") == record([system("s"), user("a"), assistant("b"), user("Add.\n\n1 and 2")])


@pytest.mark.parametrize("preference", [1, "1", 1.0])
def test_the_preferred_output_is_chosen(preference: Any) -> None:
    row = {"instruction": "p", "output_1": "yes", "output_2": "no", "preference": preference}
    assert to_record(row, "x:3") == record([user("p")])
    other = row | {"output_1": "no", "output_2": "yes", "preference": type(preference)(2)}
    assert to_record(other, "x:3") == record([user("p")])


@pytest.mark.parametrize("preference", [0, "0", "tie", "Tie", 1.5])
def test_outputs_of_which_none_is_preferred_are_left_out(preference: Any) -> None:
    row = {"instruction": "p", "output_1": "a", "output_2": "b", "preference": preference}
    detail = "x row 1: no preference: preference names neither output"
    assert left_out(row) == LeftOut("x row 1", NO_PREFERENCE, detail, row)


def test_a_list_of_outputs_begins_with_the_better_one() -> None:
    assert to_record({"instruction": "p", "output": ["yes", "no"]}, "x:3") == record([user("p")])


def test_argillas_columns_are_read_under_each_name_of_the_prompt() -> None:
    for prompt in ("instruction", "prompt", "input"):
        row = {prompt: "p", "chosen_response": "yes", "rejected_response": "no"}
        assert to_record(row, "x:3") == record([user("p")])


@pytest.mark.parametrize(
    ("row", "shape", "message"),
    [
        ({"question": None, **TEXTS}, "orca", "x:3: question must be text, found null"),
        (
            TEXTS,
            "orca",
            "x:3: expected a key question, input or prompt; the row's keys are 'chosen', 'rejected'",
        ),
        (
            {"question": "p", "chosen": "a", "rejected": 5},
            "orca",
            "rejected must be text or a list of messages, found int",
        ),
        (
            {"question": "p", "chosen": "a"},
            "orca",
            "key 'rejected' is missing; the row's keys are 'question', 'chosen'",
        ),
        ({"question": "p", "system": 3, **TEXTS}, "orca", "x:3: system must be text, found int 3"),
        ({"question": "p\ud800", **TEXTS}, "orca", "x:3: question is not valid Unicode: lone surrogate at"),
        (
            {"instruction": "p"},
            "instruction",
            "x:3: expected chosen and rejected, output, or output_1 and output_2; the row's keys are 'instr",
        ),
        ({"instruction": 3, **TEXTS}, "instruction", "x:3: instruction must be text, found int 3"),
        ({"instruction": "p", "input": 3, **TEXTS}, "instruction", "x:3: input must be text, found int 3"),
        (
            {"instruction": "p", "output": ["a"]},
            "instruction",
            "x:3: output must be a list of two answers, the better one first; found 1 of them",
        ),
        ({"instruction": "p", "output": "a"}, "instruction", "the better one first; found text"),
        ({"instruction": "p", "output": ["a", None]}, "instruction", "x:3: output[1] must be text or a list"),
        (
            {"instruction": "p", "output_1": "a", "output_2": "b"},
            "instruction",
            "x:3: key 'preference' is missing",
        ),
        (
            {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 3},
            "instruction",
            "x:3: preference must be 1 or 2, or 0 or 'tie' for neither, found int 3",
        ),
        (
            {"instruction": "p", "output_1": "a", "output_2": "b", "preference": True},
            "instruction",
            "found true or",
        ),
        ({"instruction": "p", "output_1": "a", "preference": 1}, "instruction", "key 'output_2' is missing"),
        (
            {"instruction": "p", "history": ["a"], **TEXTS},
            "instruction",
            "x:3: history[0]: expected an instruction and",
        ),
        (
            {"prompt": "p", "chosen_response": None, "rejected_response": "b"},
            "argilla",
            "x:3: chosen_response must be",
        ),
    ],
)
def test_questions_that_cannot_be_used_are_named(row: dict[str, Any], shape: str, message: str) -> None:
    fails(row, message, shape)
