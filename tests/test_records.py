"""Row shapes and files: what each becomes, and what is said of those that cannot be used."""

from __future__ import annotations

import contextlib
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from orpo_lightning.data.left_out import LeftOut, broken
from orpo_lightning.data.records import PreferenceRecord, Records, to_record
from orpo_lightning.data.sources import (
    Row,
)
from orpo_lightning.errors import DataError
from tests.shape_samples import SAMPLES, assistant, user

EXPLICIT = {"prompt": "p", "chosen": "a", "rejected": "b"}
WHOLE = {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]}


def faults(found: Records) -> dict[str, str]:
    """Return the sentences about broken rows, by place."""
    return {item.where: item.detail for item in found if isinstance(item, LeftOut) and item.is_broken}


def test_records_of_unplaced_rows_are_numbered_from_one() -> None:
    rows = [EXPLICIT, Row(EXPLICIT, "f:9"), broken("f:10", "f:10: x"), EXPLICIT]
    assert [item.where for item in Records(rows, "mine")] == ["mine row 1", "f:9", "f:10", "mine row 4"]


def test_the_shape_is_known_from_the_first_row_on_and_no_row_is_read_ahead() -> None:
    taken = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal taken
        while taken < 3:
            taken += 1
            yield EXPLICIT

    found = Records(rows(), "x")
    assert found.shape is None
    for number, _ in enumerate(found, start=1):
        assert found.shape == "explicit text"
        assert taken == number
    assert taken == 3


def test_rows_left_out_before_are_passed_on_where_they_stood() -> None:
    gone = [LeftOut(f"x:{i}", "some reason", rows=i) for i in range(3)]
    found = Records([gone[0], EXPLICIT, gone[1], EXPLICIT, gone[2]], "x")
    first, _, second, _, third = found
    assert [first, second, third] == gone
    found = Records(gone, "x")
    assert list(found) == gone
    assert found.shape is None
    assert list(Records([], "x")) == []


def test_a_row_unlike_the_first_is_broken_however_well_it_fits_another_shape() -> None:
    without = {"chosen": "same start a", "rejected": "same start b"}
    rows = [EXPLICIT, without, WHOLE | {"prompt": "p"}, EXPLICIT | {"rejected": None}, EXPLICIT]
    found = Records(rows, "x")
    assert faults(found) == {
        "x row 2": "x row 2: key 'prompt' is missing; the row's keys are 'chosen', 'rejected' "
        "(read as explicit text)",
        "x row 3": "x row 3: chosen must be text, found a list (read as explicit text)",
        "x row 4": "x row 4: rejected must be text, found null (read as explicit text)",
    }
    assert [item.row for item in found if isinstance(item, LeftOut)] == rows[1:4]
    assert sum(isinstance(item, PreferenceRecord) for item in found) == 2


@pytest.mark.parametrize(
    ("first", "other", "detail"),
    [
        (
            {"chosen": "do a", "rejected": "do b"},
            EXPLICIT,
            "x row 2: found 'prompt', which the first row had not; "
            "if that one is at fault, mend it or set the shape (read as implicit text)",
        ),
        ({"chosen": "do a", "rejected": "do b"}, EXPLICIT | {"question": "q"}, "found 'prompt'"),
        (EXPLICIT, EXPLICIT | {"system": "s"}, "x row 2: found 'system', which the first row had not"),
        (
            WHOLE | {"prompt": "p"},
            WHOLE,
            "x row 2: key 'prompt' is missing; the row's keys are 'chosen', 'rejected' "
            "(read as explicit messages)",
        ),
        (
            WHOLE | {"prompt": "p"},
            EXPLICIT,
            "x row 2: expected messages in prompt, or in chosen and rejected; found text in all",
        ),
        (
            WHOLE,
            EXPLICIT,
            "x row 2: chosen must be a list of messages, found text (read as implicit messages)",
        ),
        (
            WHOLE | {"prompt": "p"},
            WHOLE | {"prompt": 5},
            "prompt must be text or a list of messages, found int 5",
        ),
        (
            EXPLICIT,
            [1],
            "x row 2: expected an object with chosen and rejected, found a list (read as explicit text)",
        ),
        (EXPLICIT, "text", "x row 2: expected an object with chosen and rejected, found text"),
        (EXPLICIT, 3.5, "x row 2: expected an object with chosen and rejected, found float 3.5"),
    ],
)
def test_a_row_that_would_mean_something_else_under_the_first_rows_shape_is_broken(
    first: Any, other: Any, detail: str
) -> None:
    found = faults(Records([first, other], "x"))
    assert list(found) == ["x row 2"]
    assert detail in found["x row 2"]


def test_columns_that_hold_nothing_mean_nothing() -> None:
    rows = [{"chosen": "do a", "rejected": "do b"}, {"prompt": None, "chosen": "do a", "rejected": "do b"}]
    assert len({item[:3] for item in Records(rows, "x")}) == 1
    assert faults(Records([EXPLICIT, EXPLICIT | {"system": ""}], "x")) == {}


def test_first_rows_of_no_shape_are_broken_rows_if_another_one_has_a_shape() -> None:
    rows = [{"prompt": "p", "chosen": "a"}, broken("f:2", "f:2: x"), EXPLICIT | {"chosen": 3}, [], EXPLICIT]
    found = Records(rows, "x")
    assert faults(found) == {
        "x row 1": "x row 1: key 'rejected' is missing; the row's keys are 'prompt', 'chosen' "
        "(read as explicit text)",
        "f:2": "f:2: x",
        "x row 3": "x row 3: chosen must be text, found int 3 (read as explicit text)",
        "x row 4": "x row 4: expected an object with chosen and rejected, found a list "
        "(read as explicit text)",
    }
    assert [item.where for item in found] == ["x row 1", "f:2", "x row 3", "x row 4", "x row 5"]


def test_a_source_of_no_shape_is_an_error_about_its_first_row_found_before_long() -> None:
    taken = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"instruction": f"i {taken}", "win": "a", "lose": "b"}

    message = (
        "x row 1: key 'chosen' is missing; the row's keys are 'instruction', 'win', 'lose'; "
        "set data.columns: {chosen: win, rejected: lose} to read it as instruction"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        list(Records(rows(), "x"))
    assert taken == 100


def test_a_shape_that_is_asked_for_is_read_whatever_else_a_row_holds() -> None:
    row = {"prompt": "do", "chosen": "do a", "rejected": "do b"}
    assert list(Records([row], "x", shape="implicit text")) == [PreferenceRecord("do", " a", " b", "x row 1")]
    (left,) = Records([{"prompt": "p", "chosen": "a"}], "x", shape="implicit text")
    assert isinstance(left, LeftOut)
    assert left.detail == (
        "x row 1: key 'rejected' is missing; the row's keys are 'prompt', 'chosen' (read as implicit text)"
    )


def test_a_family_that_is_asked_for_and_fits_no_row_is_an_error_of_its_own() -> None:
    with pytest.raises(
        DataError, match=r"x row 1: key 'prompt' is missing; the row's keys are 'chosen', 'rejec"
    ):
        list(Records([WHOLE, WHOLE], "x", shape="explicit"))
    found = Records([EXPLICIT | {"system": "s"}], "x", shape="explicit")
    assert list(found) == [PreferenceRecord("p", "a", "b", "x row 1")]


def test_mapped_columns_stand_under_our_names_in_place_of_what_stood_there() -> None:
    row = {"prompt": "old", "question": "p", "better": "a", "worse": "b", "s1": 3, "s2": 1}
    columns = {
        "prompt": "question",
        "chosen": "better",
        "rejected": "worse",
        "chosen_score": "s1",
        "rejected_score": "s2",
    }
    found = Records([Row(row, "f:1")], "x", columns=columns)
    assert list(found) == [PreferenceRecord("p", "a", "b", "f:1", margin=2.0)]
    assert found.shape == "explicit text"
    swapped = Records([EXPLICIT], "x", columns={"chosen": "rejected", "rejected": "chosen"})
    assert list(swapped) == [PreferenceRecord("p", "b", "a", "x row 1")]


def test_columns_without_which_the_first_row_reads_the_same_are_named() -> None:
    row = {"id": 7, "prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 2, "rejected_score": 1}
    found = Records([row | {"source": None, "größe": [1]}, row | {"late": 1}], "x")
    assert len(list(found)) == 2
    # Scores make the margin; a column without a value may have one in the next row.
    assert found.unused == ["id", "größe"]


def test_columns_of_messages_that_are_copied_on_the_way_are_not_called_unused() -> None:
    turns = [{"role": "user", "content": "q"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = Records([{"prompt": turns, **answers, "tools": tools, "prompt_id": "x"}], "x")
    assert not faults(found)
    assert found.unused == ["prompt_id"]


def test_a_mapped_column_that_is_not_there_is_named_beside_those_that_are() -> None:
    columns = {"chosen": "beter"}
    row = {"prompt": "p", "better": "a", "rejected": "b"}
    message = (
        "x row 1: data.columns maps 'chosen' to 'beter', and there is no such column "
        "(did you mean 'better'?); the columns are 'prompt', 'better', 'rejected'"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        list(Records([row, row], "x", columns=columns))
    found = Records([row | {"beter": "c"}, row], "x", columns=columns)
    assert faults(found) == {"x row 2": message.replace("row 1", "row 2") + " (read as explicit text)"}
    # What was left out is shown as it stands in the file.
    assert [item.row for item in found if isinstance(item, LeftOut)] == [row]


ODD = [
    None,
    True,
    0,
    -1.5,
    float("nan"),
    10**40,
    "",
    " ",
    "\ud800",
    "text",
    [],
    {},
    [None],
    ["a"],
    [[]],
    b"x",
]


def _mutated(value: Any, draw: random.Random) -> Any:
    """Return a value with one thing in it replaced, left out or doubled."""
    if draw.random() < 0.4 or not isinstance(value, (dict, list)) or not value:
        return draw.choice(ODD)
    if isinstance(value, list):
        place = draw.randrange(len(value))
        kept = [value[:place] + value[place + 1 :], [*value, value[place]]]
        return draw.choice([*kept, [*value[:place], _mutated(value[place], draw), *value[place + 1 :]]])
    key = draw.choice(list(value))
    without = {name: item for name, item in value.items() if name != key}
    return draw.choice([without, without | {"other": value[key]}, value | {key: _mutated(value[key], draw)}])


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_is_done_to_rows_each_is_accounted_for_and_nothing_else_is_raised(name: str) -> None:
    draw = random.Random(name)
    rows = [_mutated(draw.choice(SAMPLES[name]), draw) for _ in range(300)]
    rows = [row if row is not None else {} for row in rows]
    for shape in (name, None):
        found = list(Records([SAMPLES[name][0], *rows], "x", shape=shape))
        assert sum(item.rows for item in found) == 301
        places = [place for item in found for place in item.where.split(" and ")]
        assert sorted(places) == sorted(f"x row {i}" for i in range(1, 302))
        for item in found:
            if isinstance(item, LeftOut):
                assert item.detail.startswith(f"{item.where}: ")
                assert "\n" not in item.detail
                assert len(item.detail) < 1000
            else:
                _check_record(item)
    for number, row in enumerate(rows):
        with contextlib.suppress(DataError):
            _check_record(to_record(row, f"x:{number}"))


def _check_record(record: PreferenceRecord) -> None:
    """Make sure that a record is what tokenising relies on."""
    parts = (record.prompt, record.chosen, record.rejected)
    if isinstance(record.prompt, str):
        assert all(isinstance(part, str) for part in parts)
        texts = list(parts)
    else:
        assert all(isinstance(part, list) for part in parts)
        assert [message["role"] for message in (*record.chosen, *record.rejected)] == ["assistant"] * 2  # type: ignore[index]
        messages = [message for part in parts for message in part]
        assert all(message["role"] in ("system", "user", "assistant", "tool") for message in messages)  # type: ignore[index]
        texts = [message["content"] for message in messages]  # type: ignore[index]
    assert all(isinstance(text, str) and text.encode() is not None for text in texts)  # type: ignore[union-attr]
    assert record.margin is None or math.isfinite(record.margin)
