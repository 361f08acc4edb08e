"""Row shapes and files: what each becomes, and what is said of those that cannot be used."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from orpo_lightning.data.records import split_shared_prefix, to_record, to_records
from orpo_lightning.data.sources import (
    HubName,
    Row,
    locate,
    read_rows,
    rows_fingerprint,
    source_fingerprint,
)
from orpo_lightning.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def fails(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        to_record(row, "x.jsonl:3")


def test_explicit_text_stays_as_it_is() -> None:
    row = {"prompt": "Q: ", "chosen": " yes\n", "rejected": "2024-01-01", "score": 3}
    assert to_record(row, "x.jsonl:3") == ("Q: ", " yes\n", "2024-01-01", "x.jsonl:3")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: red? A: yes", "Q: red? A: no", "Q: red? A:"),
        ("say the cat", "say the car", "say the"),
        ("count: 1", "count: 12", "count:"),
        ("Human: hi\n\nAssistant:Yes", "Human: hi\n\nAssistant:No", "Human: hi\n\nAssistant:"),
        ("A:\nyes", "A:\nno", "A:\n"),
        ("it is. So", "it is! So", "it is"),
        ("more", "more of it", "more"),
    ],
)
def test_implicit_text_parts_before_the_first_differing_word_and_its_space(
    chosen: str, rejected: str, prompt: str
) -> None:
    record = to_record({"chosen": chosen, "rejected": rejected}, "x")
    assert record.prompt == prompt
    assert (record.chosen, record.rejected) == (chosen[len(prompt) :], rejected[len(prompt) :])


def test_identical_implicit_text_is_left_to_be_counted_and_not_an_error() -> None:
    assert split_shared_prefix("a b", "a b", "x") == ("", "a b", "a b")


@pytest.mark.parametrize(("chosen", "rejected"), [("yes", "no"), ("cat", "car"), (" yes", " no")])
def test_implicit_text_that_shares_no_beginning_is_an_error(chosen: str, rejected: str) -> None:
    fails({"chosen": chosen, "rejected": rejected}, "x.jsonl:3: there is no key 'prompt', and chosen and")


def test_explicit_messages_may_hold_the_reply_only_or_repeat_the_prompt() -> None:
    turns = [system("Be brief."), user("Hi"), assistant("Hello"), user("2 + 2?")]
    expected = (turns, [assistant("4")], [assistant("5")], "x")
    replies = {"prompt": turns, "chosen": [assistant("4")], "rejected": [assistant("5")]}
    whole = {"prompt": turns, "chosen": [*turns, assistant("4")], "rejected": [*turns, assistant("5")]}
    mixed = {"prompt": turns, "chosen": [assistant("4")], "rejected": [*turns, assistant("5")]}
    strings = {"prompt": turns, "chosen": "4", "rejected": "5"}
    for row in (replies, whole, mixed, strings):
        assert to_record(row, "x") == expected


def test_implicit_messages_are_answered_by_the_last_turn_only() -> None:
    turns = [user("Hi"), assistant("Hello"), user("2 + 2?")]
    row = {"chosen": [*turns, assistant("4")], "rejected": [*turns, assistant("5")]}
    assert to_record(row, "x") == (turns, [assistant("4")], [assistant("5")], "x")


def test_messages_win_over_the_plain_prompt_beside_them() -> None:
    row = {
        "prompt": "2 + 2?",
        "prompt_id": "f00",
        "chosen": [user("2 + 2?"), assistant("4")],
        "rejected": [user("2 + 2?"), assistant("5")],
        "messages": [user("2 + 2?"), assistant("4")],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }
    assert to_record(row, "x") == ([user("2 + 2?")], [assistant("4")], [assistant("5")], "x")


def test_a_plain_prompt_before_single_replies_is_the_user_turn() -> None:
    row = {"prompt": "2 + 2?", "chosen": [assistant("4")], "rejected": [assistant("5")]}
    assert to_record(row, "x").prompt == [user("2 + 2?")]


def test_a_system_column_comes_in_front_of_messages_without_a_system_turn() -> None:
    row = {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert to_record(row | {"system": "Be brief."}, "x").prompt == [system("Be brief."), user("Hi")]
    assert to_record(row | {"system": ""}, "x").prompt == [user("Hi")]
    own = row | {"prompt": [system("Mine."), user("Hi")], "system": "Be brief."}
    assert to_record(own, "x").prompt == [system("Mine."), user("Hi")]


def test_messages_keep_role_and_content_only() -> None:
    chosen = [assistant("a") | {"score": 1, "tool_calls": None}]
    row = {"prompt": [user("Hi")], "chosen": chosen, "rejected": [assistant("b")]}
    assert to_record(row, "x").chosen == [assistant("a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "x.jsonl:3: expected an object with chosen and rejected, found a list"),
        (
            {"prompt": "p", "win": "a", "chosen": "b"},
            "x.jsonl:3: key 'rejected' is missing; the row's keys are 'prompt', 'win', 'chosen'",
        ),
        (
            {"prompt": "p", "chosen": None, "rejected": "b"},
            "chosen must be text or a list of messages, found null",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": 5},
            "rejected must be text or a list of messages, found int 5",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": True}, "found true or false"),
        ({"prompt": "p", "chosen": "a", "rejected": float("nan")}, "found float nan"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "x.jsonl:3: prompt must be text, found null"),
        (
            {"prompt": "p", "chosen": "a", "rejected": [assistant("b")]},
            "found: chosen is text, rejected a list",
        ),
        (
            {"prompt": "p", "chosen": "a\ud800", "rejected": "b"},
            "chosen is not valid Unicode: lone surrogate at",
        ),
    ],
)
def test_rows_of_no_known_shape_are_named_with_what_was_found(row: Any, message: str) -> None:
    fails(row, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 5}, "x.jsonl:3: prompt must be text or a list of messages, found int 5"),
        ({"chosen": []}, "chosen: the last message must be from 'assistant', found no message"),
        (
            {"chosen": [user("a")]},
            "x.jsonl:3: chosen: the last message must be from 'assistant', found 'user'",
        ),
        ({"chosen": ["a"]}, "chosen[0]: expected a message with role and content, found text"),
        (
            {"chosen": [{"role": "assistant"}]},
            "chosen[0]: expected a message with role and content, found keys",
        ),
        (
            {"chosen": [{"role": "bot", "content": "a"}]},
            "role must be one of system, user, assistant, tool, found",
        ),
        ({"chosen": [{"role": "assistant", "content": None}]}, "chosen[0].content must be text, found null"),
        (
            {"prompt": [user("Hi"), {"role": "user", "content": [{"type": "image"}]}]},
            "x.jsonl:3: prompt[1].content must be text, found a list",
        ),
        ({"chosen": [user("Ho"), assistant("a")]}, "chosen begins with a user turn but does not repeat"),
        (
            {
                "prompt": None,
                "chosen": [user("Hi"), assistant("a")],
                "rejected": [user("Ho"), assistant("b")],
            },
            "x.jsonl:3: chosen and rejected answer different prompts: turn 0 differs",
        ),
        (
            {"rejected": [assistant("b"), user("Really?"), assistant("c")]},
            "different prompts: turns before the answer: 1 (chosen), 3 (rejected)",
        ),
        ({"prompt": None}, "x.jsonl:3: no turn before the answer"),
    ],
)
def test_messages_that_cannot_be_used_are_named_by_place(changes: dict[str, Any], message: str) -> None:
    fails(
        {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]} | changes, message
    )


def test_records_of_unplaced_rows_are_numbered_from_one() -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        Row({"prompt": "p", "chosen": "a", "rejected": "b"}, "f:9"),
    ]
    assert [record.where for record in to_records(rows, "mine")] == ["mine row 1", "f:9"]


ROWS = [
    {"prompt": "When?", "chosen": "2024-01-01", "rejected": 'a "b", c\nd'},
    {"prompt": "Größe?", "chosen": "1e5", "rejected": "ü"},
]


def test_json_lines_keep_places_and_texts_through_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n\r\n{lines[1]}".encode())
    rows = list(read_rows(str(path)))
    assert rows == ROWS
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("text", [json.dumps(ROWS, indent=1), "\n".join(map(json.dumps, ROWS))])
def test_a_json_file_may_be_an_array_or_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert list(read_rows(str(path))) == ROWS


def test_a_csv_file_gives_text_only_and_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    long = {"prompt": "0123", "chosen": "y" * 200_000, "rejected": ""}
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0].keys())
        writer.writeheader()
        writer.writerows([*ROWS, long])
    rows = list(read_rows(str(path)))
    assert rows == [*ROWS, long]
    # The first row's quoted line break takes a line of its own.
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:4", f"{path}:5"]


def test_a_parquet_file_gives_strings_and_message_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    expected = [{"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")], "id": "7"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(expected), path)
    (row,) = read_rows(str(path))
    assert row == expected[0]
    assert row.where == f"{path} row 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jsonl is empty: expected at least one preference pair"),
        (b"\n\n", "x.jsonl is empty"),
        (b'{"a": 1}\n{"a": ', "x.jsonl:2: is not JSON: Expecting value, character 6 (cut off?)"),
        (b'{"a": "b', "x.jsonl:1: is not JSON: Unterminated string starting at, character 6 (cut off?)"),
        (
            b'{"a": 1}\n{"a" 1, "b": 2}\n{"a": 1}',
            "x.jsonl:2: is not JSON: Expecting ':' delimiter, character 5",
        ),
        (b'{"a": 1}\n{"a": "\xe9"}', "x.jsonl:2: is not UTF-8 text (byte 7)"),
        (b'{"a": 1, "a": 2}', "x.jsonl:1: is not usable JSON: key 'a' stands twice in one object"),
        (b"[1, 2]", "x.jsonl:1: expected an object with chosen and rejected, found list"),
        (b'{"a": ' + b"[" * 100_000, "x.jsonl:1: is not usable JSON"),
    ],
)
def test_broken_json_lines_are_named_with_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"[", "x.json: is not JSON"),
        ("x.parquet", b"PAR1 no", "x.parquet: is not a readable Parquet file"),
        ("x.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", "x.csv:3: expected 3 values"),
        ("x.csv", b"prompt,chosen,rejected\n\xe9,b,c\n", "x.csv: is not UTF-8 text"),
        ("x.csv", b'prompt,chosen,rejected\na,b,"c\n', "x.csv:2: is not comma-separated text"),
        ("x.txt", b"", "x.txt: expected a name ending in .jsonl, .json, .parquet, .csv, found '.txt'"),
    ],
)
def test_other_broken_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(read_rows(str(path)))


def test_a_missing_file_brings_up_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file \(did you mean .*train.jsonl\?\)"):
        locate(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"is a folder; name one file in it"):
        locate(str(tmp_path))
    with pytest.raises(DataError, match=r"no folder .*nowhere\)"):
        locate(str(tmp_path / "nowhere" / "x.jsonl"))


def test_a_name_is_a_hub_id_unless_such_a_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("owner/name") == HubName("owner/name", "train")
    assert locate("HuggingFaceH4/ultrafeedback_binarized:test_prefs") == HubName(
        "HuggingFaceH4/ultrafeedback_binarized", "test_prefs"
    )
    with pytest.raises(DataError, match="no such file"):
        locate("owner/pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/pairs.jsonl").write_text("{}")
    assert locate("owner/pairs.jsonl") == Path("owner/pairs.jsonl")


def test_a_hub_data_set_is_read_through_datasets_with_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"chosen": [user("Hi"), assistant("a")], "rejected": "b"}])
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (row,) = read_rows("owner/name:test_prefs")
    assert row == {"chosen": [user("Hi"), assistant("a")], "rejected": "b"}
    assert row.where == "owner/name:test_prefs row 1"
    assert data._fingerprint in source_fingerprint("owner/name:test_prefs")
    assert set(asked) == {("owner/name", "test_prefs")}


def test_a_files_fingerprint_is_that_of_its_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / f"{name}.jsonl" for name in ("one", "same", "other"))
    for path, text in ((one, "{}"), (same, "{}"), (other, "{} ")):
        path.write_text(text)
    assert source_fingerprint(str(one)) == source_fingerprint(str(same)) != source_fingerprint(str(other))


def test_a_fingerprint_of_rows_sees_every_value_and_the_order_of_rows_only() -> None:
    one, other = ROWS
    assert rows_fingerprint([one, other]) == rows_fingerprint([dict(reversed(one.items())), other])
    assert rows_fingerprint([one, other]) != rows_fingerprint([other, one])
    assert rows_fingerprint([one, other]) != rows_fingerprint([one, other | {"rejected": "u"}])
