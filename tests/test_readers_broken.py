"""What is said of rows and files that cannot be read, and what is lost with them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from reading import details, read

from orpo_lightning.data.json_reader import DEEPEST
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import read_file
from orpo_lightning.data.rows import NOT_UTF8, Row
from orpo_lightning.errors import DataError

TOO_DEEP = "is not usable JSON: lists and objects stand more than 100 deep in each other"
TOO_LONG = "is not usable JSON: a number has too many digits"
EXPECTED = "expected an object with chosen and rejected, found"
QUOTE = "; is a quote missing, or not doubled within quotes?"
COMMAS = "save the file with commas"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is not usable JSON: key 'c' stands twice in one object"),
        (b'{"a": "caf\xe9"}', f"is not UTF-8 text (byte 10); {NOT_UTF8}"),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", TOO_DEEP),
        (b'{"a": ' + b"9" * 5000 + b"}", TOO_LONG),
        (b"[1, 2]", f"{EXPECTED} a list"),
        (b'"text"', f"{EXPECTED} text"),
        (b"null", f"{EXPECTED} null"),
        (b"5", f"{EXPECTED} int 5"),
        (b'{"a": 1}{"a": 2}', "is not JSON: Extra data, character 8"),
        (b"{'a': 1}", "is not JSON: Expecting property name enclosed in double quotes, character 1"),
        (b'{"a": undefined}', "is not JSON: Expecting value, character 6"),
        (b'{"a": "b"', "is not JSON: Expecting ',' delimiter, character 9 (cut off?)"),
    ],
)  # fmt: skip
def test_a_broken_line_is_told_with_its_place_and_its_text_is_kept(
    row: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    before, broken, after = read(path, b'{"a": 0}\n' + row + b'\n{"a": 3}')
    assert (before, after) == ({"a": 0}, {"a": 3})
    assert details([broken], path) == [f"x.jsonl:2: {said}"]
    assert isinstance(broken, LeftOut)
    assert broken.row == (json.loads(row) if "found" in said else row.decode(errors="replace"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"a": 1, "a": 2}', "is not usable JSON: key 'a' stands twice in one object"),
        (b'{"a": "\xc3\xbc\xe9"}', f"is not UTF-8 text (line 2, byte 9); {NOT_UTF8}"),
        (b'{"a":\n"\xe9"}', f"is not UTF-8 text (line 3, byte 1); {NOT_UTF8}"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", TOO_DEEP),
        (b'{"a": "]}", "b": ' + b"9" * 5000 + b"}", TOO_LONG),
        (b"9" * 5000, TOO_LONG),
        (b'"text"', f"{EXPECTED} text"),
        (b"12", f"{EXPECTED} int 12"),
    ],
)  # fmt: skip
def test_an_array_goes_on_behind_a_row_that_is_json_and_yet_no_row(
    row: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    before, broken, after = read(path, b'[{"a": 0},\n' + row + b',\n{"a": 3}]')
    assert (before, after) == ({"a": 0}, {"a": 3})
    assert details([broken], path) == [f"x.json:2: {said}"]


@pytest.mark.parametrize("depth", [DEEPEST - 1, DEEPEST])
def test_how_deep_a_row_may_be_is_a_number_and_not_the_state_of_the_stack(depth: int, tmp_path: Path) -> None:
    content = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
    (row,) = read(tmp_path / "x.jsonl", content)
    assert isinstance(row, Row) == (depth < DEEPEST)
    # Brackets within a text are no depth.
    assert isinstance(read(tmp_path / "x.jsonl", json.dumps({"a": "[{" * 500}).encode())[0], Row)


def test_lists_one_a_line_are_broken_rows_and_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    found = read(path, b'[{"a": 1}]\n[{"a": 2}]')
    assert details(found, path) == [f"x.json:1: {EXPECTED} a list", f"x.json:2: {EXPECTED} a list"]


@pytest.mark.parametrize(
    ("content", "rows", "said"),
    [
        (b"[", 0, "1: is not JSON: Expecting value, character 1 (cut off?)"),
        (b'[{"a": 1},\n{"a": 2}', 2, "2: is not JSON: Expecting ',' delimiter, character 8 (cut off?)"),
        (b'[{"a": 1},\n{"a": "b', 1, "2: is not JSON: Unterminated string starting at, character 6 (cut off?)"),  # noqa: E501
        (b'[{"a": 1},\n{"a" 2},\n{"a": 3}]', 1, "2: is not JSON: Expecting ':' delimiter, character 5"),
        (b'[{"a": 1}\n{"a": 2}]', 1, "2: is not JSON: Expecting ',' delimiter, character 0"),
        (b'[{"a": 1},\n]', 1, "2: is not JSON: Expecting value, character 0"),
        (b'[{"a":\n1}]\n[', 1, "3: is not JSON: text behind the end of the array, character 0"),
    ],
)  # fmt: skip
def test_a_fault_behind_which_an_array_cannot_be_read_stops_after_the_rows_before_it(
    content: bytes, rows: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    found: list[Row | LeftOut] = []
    with pytest.raises(DataError) as caught:
        found.extend(read_file(path))
    assert str(caught.value) == f"{path}:{said}"
    assert len(found) == rows


@pytest.mark.parametrize(
    ("content", "rows", "said"),
    [
        (b"a,b\n1,2\n3\n4,5,6\n7,8\n", 2, ["3: expected 2 values, one for each column of the header, found 1",
            "4: expected 2 values, one for each column of the header, found 3"]),
        (b'a,b\n"x"y,2\n7,8\n', 1, ["2: is not comma-separated text: ',' expected after '\"'"]),
        (b'a,b\n"x\ny",\xfc\n7,"\n\xe9"\n7,8', 1, [
            f"2: is not UTF-8 text (line 3, byte 3); {NOT_UTF8}",
            f"4: is not UTF-8 text (line 5, byte 0); {NOT_UTF8}"]),
    ],
)  # fmt: skip
def test_a_broken_csv_row_is_one_row(content: bytes, rows: int, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    found = read(path, content)
    assert details(found, path) == [f"x.csv:{one}" for one in said]
    assert len(found) == rows + len(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'a,b\n1,2\n3,"4\n5,6\n', "3: is not comma-separated text: unexpected end of data" + QUOTE),
        # Where the quote that opened in line 2 closes, rows may have been swallowed: nobody can count them.
        (b'a,b\n1,"2\n3,4\n5,"6"\n', "2: is not comma-separated text: ',' expected after '\"'" + QUOTE),
        (b"a;b\n1;2\n", "1: expected names separated by commas, found ';' between them; " + COMMAS),
        (b"a\tb\n1\t2\n", "1: expected names separated by commas, found '\\t' between them; " + COMMAS),
        (b"a,a\n1,2\n", "1: column 'a' stands twice in the header"),
        (b"a,\xe9\n1,2\n", "1: the header is not UTF-8 text; " + NOT_UTF8),
    ],
)  # fmt: skip
def test_a_csv_file_whose_rows_cannot_be_told_apart_is_an_error(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(DataError) as caught:
        read(path, content)
    assert str(caught.value) == f"{path}:{said}"


def test_a_cell_that_cannot_become_a_value_breaks_its_row_only(tmp_path: Path) -> None:
    good, bad = b"good", b"b\xe9d"
    texts = pyarrow.array([good, bad, good]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"chosen": texts}), tmp_path / "x.parquet")
    first, broken, last = read(tmp_path / "x.parquet")
    assert first == last == {"chosen": "good"}
    assert (
        "x.parquet row 2: a value cannot be read: 'utf-8' codec"
        in details([broken], tmp_path / "x.parquet")[0]
    )
