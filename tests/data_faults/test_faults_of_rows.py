"""Rows that cannot be read stop the run with their line: rows D09 to D15, D37 to D39 of the fault table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from faults import Prepare, amid, chats, left_out, refusal, said, spoken, suspicious, texts, turn, write

SKIP = " (--data.on_error skip leaves such rows out)"


def stops_and_skips(prepare: Prepare, path: str, good: list[dict[str, Any]]) -> str:
    """Return why line 21 stops the run, having checked that it can be skipped and all others are trained."""
    message = refusal(prepare, path)
    assert message.startswith(f"{path}:21: ")
    assert message.endswith(SKIP)
    data = prepare(path, on_error="skip")
    assert left_out(data) == [(f"{path}:21", "broken row")]
    assert spoken(data) == said(good)
    return message.removeprefix(f"{path}:21: ").removesuffix(SKIP)


# D09: no object


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('["a", "b"]', "a list"),
        ('"a, b"', "text"),
        ("7", "int 7"),
        ("1.5", "float 1.5"),
        ("null", "null"),
        ("true", "true or false"),
        ("[]", "a list"),
    ],
)
@pytest.mark.parametrize("at", [1, 21])
def test_d09_a_line_that_is_no_object_is_named_with_what_it_is(
    line: str, found: str, at: int, prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", amid(line, at=at))
    assert refusal(prepare, path) == (
        f"{path}:{at}: expected an object with chosen and rejected, found {found}{SKIP}"
    )
    assert spoken(prepare(path, on_error="skip")) == said(texts())


def test_d09_of_a_file_of_lists_the_first_is_named(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ['["a", "b", "c"]'] * 9)
    message = refusal(prepare, path)
    assert message.startswith("9 rows are broken, --data.on_error skip leaves them out; the first: ")
    assert f"{path}:1: expected an object with chosen and rejected, found a list" in message


# D10, D11: missing columns


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_d10_a_row_without_one_of_its_keys_is_named_with_the_keys_it_has(
    key: str, prepare: Prepare, tmp_path: Path
) -> None:
    row = texts(1)[0]
    del row[key]
    found = stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(row)), texts())
    keys = ", ".join(map(repr, row))
    assert found == f"key {key!r} is missing; the row's keys are {keys} (read as explicit text)"


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("instruction", "win", "lose"), {"chosen": "win", "rejected": "lose"}),
        (("q", "better answer", "worse answer"), None),
        (("query", "accepted", "rejected"), {"chosen": "accepted"}),
        (("prompt", "preferred", "dispreferred"), {"chosen": "preferred", "rejected": "dispreferred"}),
    ],
)
def test_d11_other_names_are_listed_and_the_proposed_column_map_works(
    names: tuple[str, str, str], columns: dict[str, str] | None, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [dict(zip(names, row.values(), strict=True)) for row in texts()]
    path = write(tmp_path / "x.jsonl", rows)
    message = refusal(prepare, path)
    assert message.startswith(f"{path}:1: key ")
    assert f"the row's keys are {', '.join(map(repr, names))}; " in message
    proposed = re.search(r"data\.columns: (\{.*\})", message)
    assert proposed is not None, message
    mapping = yaml.safe_load(proposed[1])
    if columns is None:
        assert "NAME" in proposed[1] or mapping["chosen"] == "better answer"
        mapping = {"prompt": "q", "chosen": "better answer", "rejected": "worse answer"}
    else:
        assert columns.items() <= mapping.items()
    found = spoken(prepare(path, columns=mapping))
    assert [answers[1:] for answers in found] == [answers[1:] for answers in said(texts())]


@pytest.mark.parametrize("missing", ["chosen", "rejected"])
def test_d11_a_column_that_no_row_has_is_named_with_the_columns_there_are(
    missing: str, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in texts()]
    there = ", ".join(map(repr, rows[0]))
    message = refusal(prepare, write(tmp_path / "x.jsonl", rows))
    assert f"x.jsonl:1: key {missing!r} is missing; the row's keys are {there}; say what they hold" in message


# D12, D13: answers that are no text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("null", "null"),
        ("5", "int 5"),
        ("5.5", "float 5.5"),
        ("true", "true or false"),
        ("NaN", "float nan"),
        ("Infinity", "float inf"),
    ],
)
@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_d12_d13_null_a_number_or_a_truth_value_as_a_text_is_named_with_its_type(
    key: str, value: str, found: str, prepare: Prepare, tmp_path: Path
) -> None:
    line = json.dumps(texts(1)[0] | {key: "HERE"}).replace('"HERE"', value)
    message = stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(line)), texts())
    assert message == f"{key} must be text, found {found} (read as explicit text)"


@pytest.mark.parametrize("value", [None, 5, True])
def test_d12_d13_so_it_is_where_answers_are_messages(value: Any, prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", amid(chats(1)[0] | {"chosen": value}, chats()))
    kind = {None: "null", 5: "int 5", True: "true or false"}[value]
    assert f"chosen must be text or a list of messages, found {kind}" in stops_and_skips(
        prepare, path, chats()
    )


def test_d12_d13_so_it_is_in_columns_of_a_table(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = texts()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(amid(texts(1)[0] | {"chosen": None})), path)
    assert f"{path} row 21: chosen must be text, found null" in refusal(prepare, str(path))
    numbers = pyarrow.Table.from_pylist([row | {"chosen": i} for i, row in enumerate(rows)])
    pyarrow.parquet.write_table(numbers, path)
    assert f"{path} row 1: chosen must be text or a list of messages, found int 0" in refusal(
        prepare, str(path)
    )


# D14: texts that look like something else

LOOKS = [
    "2024-01-01",
    "2024-01-01T10:00:00Z",
    "12:30",
    "1.0",
    "007",
    "1e5",
    "true",
    "null",
    "NaN",
    "[1, 2]",
    "{}",
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_d14_answers_that_look_like_dates_or_numbers_are_trained_on_letter_by_letter(
    ending: str, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"prompt": look, "chosen": look, "rejected": f"{look}?"} for look in LOOKS]
    path = tmp_path / f"x.{ending}"
    if ending == "jsonl":
        write(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        cells = ['"' + '","'.join(row.values()) + '"' for row in rows]
        path.write_text("\n".join(["prompt,chosen,rejected", *cells]))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert spoken(prepare(str(path))) == said(rows)


# D15: a key twice


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "chosen"),
        ('{"prompt": "a", "chosen": "b", "rejected": "d", "meta": {"id": 1, "id": 2}}', "id"),
    ],
)
def test_d15_a_key_that_stands_twice_in_an_object_is_named(
    line: str, key: str, prepare: Prepare, tmp_path: Path
) -> None:
    message = stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(line)), texts())
    assert message == f"is not usable JSON: key {key!r} stands twice in one object"


# D37: characters that are none


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_d37_half_of_a_surrogate_pair_is_named_with_its_place(
    key: str, prepare: Prepare, tmp_path: Path
) -> None:
    line = json.dumps(texts(1)[0] | {key: "ab\ud800c"})
    message = stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(line)), texts())
    assert message.startswith(f"{key} is not valid Unicode: lone surrogate at character 2")


def test_d37_a_whole_surrogate_pair_is_a_character(prepare: Prepare, tmp_path: Path) -> None:
    row = texts(1)[0] | {"chosen": "\U0001f600"}
    assert "\\ud83d\\ude00" in json.dumps(row)
    assert spoken(prepare(write(tmp_path / "x.jsonl", [row]))) == said([row])


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f"])
@pytest.mark.parametrize("is_escaped", [True, False])
def test_d37_control_characters_are_kept_and_warned_of(
    character: str, is_escaped: bool, prepare: Prepare, tmp_path: Path
) -> None:
    row = texts(1, first=900)[0] | {"chosen": f"a{character}b"}
    line = json.dumps(row)
    if not is_escaped:
        line = line.replace(json.dumps(character)[1:-1], character)
    path = write(tmp_path / "x.jsonl", amid(line))
    data = prepare(path)
    assert spoken(data) == said(amid(row))
    assert list(suspicious(data)) == [("control characters", 1, [f"{path}:21"])]


# D38: too deep, too long

DEEP = {"lists": ("[" * 2000, "]" * 2000), "objects": ('{"a":' * 2000, "}" * 2000)}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("key", ["chosen", "meta"])
def test_d38_lists_and_objects_2000_deep_are_named(
    kind: str, key: str, prepare: Prepare, tmp_path: Path
) -> None:
    start, end = DEEP[kind]
    line = json.dumps(texts(1)[0] | {key: "HERE"}).replace('"HERE"', f"{start}1{end}")
    message = stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(line)), texts())
    assert message == "is not usable JSON: lists and objects stand more than 100 deep in each other"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (str(10**30), "chosen must be text, found an integer of more than 30 digits"),
        ("1e30", "chosen must be text, found float 1e+30"),
        ("1" * 5000, "is not usable JSON: a number has too many digits"),
    ],
)
def test_d38_a_huge_number_as_an_answer_is_named(
    number: str, words: str, prepare: Prepare, tmp_path: Path
) -> None:
    line = json.dumps(texts(1)[0] | {"chosen": "HERE"}).replace('"HERE"', number)
    assert stops_and_skips(prepare, write(tmp_path / "x.jsonl", amid(line)), texts()).startswith(words)


# D39: more than is needed

MORE = [{"id": 10**30, "source": None, "größe": 1.5, "日本": ["x"]}, {"meta": {"chosen": 1}, "score": "a"}]


def test_d39_other_columns_and_another_order_of_keys_change_nothing(prepare: Prepare, tmp_path: Path) -> None:
    rows = [dict(reversed((row | MORE[i % 2]).items())) for i, row in enumerate(texts())]
    data = prepare(write(tmp_path / "x.jsonl", rows))
    plain = prepare(write(tmp_path / "plain.jsonl", texts()))
    assert spoken(data) == said(texts())
    assert data.train_dataset.fingerprint() == plain.train_dataset.fingerprint()
    assert left_out(data) == []
    # Said once, in the line that the header prints; "source" holds nothing in this row.
    assert str(data.report()["train"]).count("columns not used: '日本', 'größe', 'id'") == 1


def test_d39_keys_of_any_script_may_be_named_in_the_column_map(prepare: Prepare, tmp_path: Path) -> None:
    rows = [dict(zip(("вопрос", "善", "schlechte Antwort"), row.values(), strict=True)) for row in texts()]
    columns = {"prompt": "вопрос", "chosen": "善", "rejected": "schlechte Antwort"}
    assert spoken(prepare(write(tmp_path / "x.jsonl", rows), columns=columns)) == said(texts())


def test_d39_further_keys_of_messages_change_nothing(prepare: Prepare, tmp_path: Path) -> None:
    rows = [row | {"chosen": [row["chosen"][0] | {"name": None, "weight": 1}]} for row in chats()]
    assert spoken(prepare(write(tmp_path / "x.jsonl", rows))) == said(chats())
    odd = [turn("user", "Hi") | {"id": 3}]
    assert len(spoken(prepare(write(tmp_path / "y.jsonl", [chats(1)[0] | {"prompt": odd}])))) == 1
