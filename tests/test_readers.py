"""Every format gives back what was written, each row with its place."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import places, read

from orpo_lightning.data.rows import Row

# What every format can hold alike: text values and no other.
TEXT = st.text(st.characters(codec="utf-8"), min_size=0, max_size=30)
TEXT_ROWS = st.lists(st.fixed_dictionaries({"chosen": TEXT, "rejected": TEXT}), min_size=1, max_size=8)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
JSON_ROWS = st.lists(st.dictionaries(TEXT, JSON_VALUE, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=JSON_ROWS)
def test_json_gives_back_what_python_wrote_in_every_layout(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    for ascii_only in (True, False):
        layouts = [
            "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows),
            json.dumps(rows, ensure_ascii=ascii_only),
            json.dumps(rows, indent=2, ensure_ascii=ascii_only),
            "\n".join(json.dumps(row, indent=2, ensure_ascii=ascii_only) for row in rows),
        ]
        for layout in layouts:
            for mark in ("", "\ufeff"):
                assert read(path, (mark + layout).encode()) == rows


@settings(max_examples=60, deadline=None)
@given(rows=TEXT_ROWS)
def test_tables_give_back_the_texts_that_were_written(
    rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["chosen", "rejected"])
    writer.writeheader()
    writer.writerows(rows)
    assert read(folder / "x.csv", text.getvalue().encode()) == rows
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "x.parquet", row_group_size=3)
    assert read(folder / "x.parquet") == rows
    for new in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
        with new(folder / "x.arrow", table.schema) as sink:
            sink.write_table(table, max_chunksize=3)
        assert read(folder / "x.arrow") == rows


def test_values_of_all_types_are_left_to_the_shapes_to_judge(tmp_path: Path) -> None:
    content = b'{"a": NaN, "b": 1e30, "c": -Infinity, "d": "\\ud800", "e": "a\\u0000b", "f": true, "g": null}'
    (row,) = read(tmp_path / "x.jsonl", content)
    assert isinstance(row, Row)
    assert row["a"] != row["a"]
    assert list(row.values())[1:] == [1e30, float("-inf"), "\ud800", "a\0b", True, None]


def test_raw_control_characters_within_a_string_are_kept(tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl", b'{"a": "x\0y\tz"}') == [{"a": "x\0y\tz"}]


def test_columns_stay_in_their_order_and_unicode_keys_what_they_are(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "x.jsonl", '{"größe": 1, "rejected": "b", "chosen": "a"}'.encode())
    assert list(row) == ["größe", "rejected", "chosen"]


def test_json_that_datasets_keeps_in_a_column_is_undone(tmp_path: Path) -> None:
    rows = [{"chosen": [{"content": "a"}]}, {"chosen": [{"content": [{"type": "text"}]}]}, {"chosen": None}]
    data = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(data.features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "x.parquet")
    assert [dict(row) for row in read(next((tmp_path / "saved").glob("*.arrow")))] == rows
    assert [dict(row) for row in read(tmp_path / "x.parquet")] == rows


def test_a_row_of_an_array_stands_where_its_object_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert places(read(path, b'[\n{"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]'), path) == [":2", ":4", ":5"]
    assert places(read(path, b'{\n "a": 1\n}\n{\n "a": 2\n}'), path) == [":1", ":4"]


def test_rows_of_an_array_on_one_line_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert places(read(path, b'[{"a": 1}, {"a": 2}]\n'), path) == [" row 1", " row 2"]


def test_places_stay_right_over_many_pieces_of_the_stream(tmp_path: Path) -> None:
    # Rows longer and shorter than what is read at once, with breaks between and within them.
    rng = random.Random(0)
    rows, expected, line, text = [], [], 2, "[\n"
    for number in range(60):
        row = {"a": number, "b": "ü" * rng.choice([10, 1000, 300_000])}
        printed = json.dumps(row, ensure_ascii=False, indent=rng.choice([None, 1]))
        rows.append(row)
        expected.append(f":{line}")
        gap = "\n" * rng.randrange(3)
        text += printed + ("," if number < 59 else "") + gap
        line += printed.count("\n") + len(gap)
    path = tmp_path / "x.json"
    found = read(path, (text + "]").encode())
    assert found == rows
    assert places(found, path) == expected


def test_a_file_that_was_put_together_of_several_may_have_their_marks_in_it(tmp_path: Path) -> None:
    part = b'\xef\xbb\xbf{"a": 1}\r\n'
    assert read(tmp_path / "x.jsonl", part + part) == [{"a": 1}, {"a": 1}]


def test_a_csv_row_stands_where_it_begins_through_breaks_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    content = b'chosen,rejected\n\n"a\nb",c\n\n\nd,e\n'
    assert places(read(path, content), path) == [":3", ":7"]
    assert read(path, content.replace(b"\n", b"\r\n"))[1] == {"chosen": "d", "rejected": "e"}
    assert places(read(path, b"chosen,rejected\ra,b\rc,d"), path) == [":2", ":3"]
