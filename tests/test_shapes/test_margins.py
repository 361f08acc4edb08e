"""The margin of a pair, and how many judges agreed on it: from which columns, and from which values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from orpo_lightning.data.records import to_record
from tests.shape_samples import SAMPLES
from tests.test_shapes.checks import TEXTS, record


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("chosen_score", "rejected_score"),
        ("score_chosen", "score_rejected"),
        ("chosen_rating", "rejected_rating"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_avg_rating", "rejected_avg_rating"),
        ("rating_chosen", "rating_rejected"),
    ],
)
@pytest.mark.parametrize("shape", ["explicit text", "explicit messages", "implicit text", "orca", "argilla"])
def test_the_margin_is_the_difference_of_the_two_scores(shape: str, chosen: str, rejected: str) -> None:
    row = {key: value for key, value in SAMPLES[shape][0].items() if "rating" not in key}
    assert to_record(row | {chosen: 4.5, rejected: 3}, "x").margin == 1.5
    assert to_record(row | {chosen: 4.5}, "x").margin is None
    assert to_record(row, "x").margin is None


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin"),
    [
        ("4.5", "-1", 5.5),
        (" 4 ", "1e0", 3.0),
        (Decimal("4.5"), 4, 0.5),
        (2, 3, -1.0),
        (0, 0, 0.0),
        (None, 3, None),
        ("good", "bad", None),
        (True, False, None),
        ("", "1", None),
        (float("nan"), 1, None),
        ("nan", 1, None),
        (float("inf"), 1, None),
        (10**400, 1, None),
        ("9" * 10**6, 1, None),
        ([4], [3], None),
    ],
)
def test_scores_are_numbers_or_their_texts_and_anything_else_is_none(
    chosen: Any, rejected: Any, margin: float | None
) -> None:
    row = TEXTS | {"prompt": "p", "chosen_score": chosen, "rejected_score": rejected}
    assert to_record(row, "x:3") == record("p", "yes", "no", margin=margin)


def test_scores_that_are_no_numbers_leave_room_for_others() -> None:
    row = TEXTS | {
        "prompt": "p",
        "chosen_score": "a",
        "rejected_score": "b",
        "chosen_rating": 3,
        "rejected_rating": 1,
    }
    assert to_record(row, "x:3").margin == 2.0


@pytest.mark.parametrize("shape", ["explicit text", "explicit messages", "implicit text", "orca", "argilla"])
def test_how_many_judges_agreed_is_kept_where_the_row_has_a_number(shape: str) -> None:
    row = SAMPLES[shape][0]
    assert to_record(row | {"agreement": 3}, "x").agreement == 3.0
    assert to_record(row | {"agreement": "0.75"}, "x").agreement == 0.75
    assert to_record(row | {"agreement": "most"}, "x").agreement is None
    assert to_record(row, "x").agreement is None
