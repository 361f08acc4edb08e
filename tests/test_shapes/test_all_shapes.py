"""Every shape and variant: its samples are recognised, become what they say, and can be asked for."""

from __future__ import annotations

import pytest

from orpo_lightning.data.records import Records
from orpo_lightning.data.shapes import SHAPES, named_shapes
from orpo_lightning.errors import UsageError
from tests.shape_samples import EXCHANGES, SAMPLES, VARIANTS
from tests.test_shapes.checks import last, shape_of


@pytest.mark.parametrize("name", SHAPES)
def test_the_samples_of_a_shape_are_recognised_and_become_all_their_exchanges(name: str) -> None:
    found = Records(SAMPLES[name], "x")
    records = list(found)
    assert found.shape == name
    texts = [[last(part).strip() for part in (r.prompt, r.chosen, r.rejected)] for r in records]  # type: ignore[union-attr]
    expected = [
        [answers[0] if name != "instruction" else f"Answer the question.\n\n{answers[0]}", *answers[1:]]
        for answers in EXCHANGES
    ]
    if name == "implicit text":
        expected = [[f"Q: {q}\nA:", good, bad] for q, good, bad in EXCHANGES]
    assert texts == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_are_recognised_and_become_all_their_exchanges(name: str) -> None:
    shape, rows = VARIANTS[name]
    found = Records(rows, "x")
    answers = [(last(r.chosen), last(r.rejected)) for r in found]  # type: ignore[union-attr]
    assert found.shape == shape
    assert answers == [(good, bad) for _, good, bad in EXCHANGES]


def test_every_shape_has_samples_with_like_columns() -> None:
    assert SAMPLES.keys() == SHAPES.keys()
    for rows in (*SAMPLES.values(), *(rows for _, rows in VARIANTS.values())):
        assert len(rows) >= 6
        assert len({tuple(row) for row in rows}) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_further_columns_and_another_order_of_keys_change_nothing(name: str) -> None:
    row = SAMPLES[name][0]
    more = {"größe": 3, "id": "7", "meta": {"a": [1]}, **dict(reversed(row.items())), "source": None}
    assert shape_of(more) == name
    read = SHAPES[name].read
    assert read(more, "x:3") == read(row, "x:3") or name.startswith("unpaired")
    assert read(more, "x:3")[:4] == read(row, "x:3")[:4]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_can_be_asked_for_by_its_name(name: str) -> None:
    found = Records(SAMPLES[name], "x", shape=name)
    assert list(found) == list(Records(SAMPLES[name], "x"))
    assert found.shape == name


@pytest.mark.parametrize("name", [name for name in SHAPES if " " in name])
def test_of_shapes_with_the_same_first_word_the_rows_decide(name: str) -> None:
    found = Records(SAMPLES[name], "x", shape=name.partition(" ")[0])
    assert list(found) == list(Records(SAMPLES[name], "x"))
    assert found.shape == name


def test_a_shape_of_no_such_name_brings_up_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"shape must be one of explicit text, .*; found 'rankd' \(did you mean 'ranked'"
    ):
        Records([], "x", shape="rankd")
    assert [shape.name for shape in named_shapes("unpaired")] == ["unpaired text", "unpaired messages"]
