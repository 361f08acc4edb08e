"""Files, folders, globs and hub ids: the same rows out of every format, and what is said of broken ones."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.sources import (
    HubName,
    Source,
    locate,
    parse_source,
    read_rows,
    source_fingerprint,
)
from orpo_lightning.errors import DataError, UsageError

ROWS = [
    {"prompt": "When?", "chosen": "2024-01-01", "rejected": 'a "b", c\nd'},
    {"prompt": "Größe?", "chosen": "1e5", "rejected": "ü"},
]


def read(path: Path | str) -> list[Any]:
    return list(read_rows(str(path)))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[dict[str, Any]], new: Any = pyarrow.ipc.new_stream) -> bytes:
    content, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with new(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()


def separated(rows: list[dict[str, Any]]) -> bytes:
    import io

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": lines,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".parquet": table,
    ".arrow": arrow,
    ".csv": separated,
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


# Formats


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_rows_however_it_is_packed(
    ending: str, packed: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{ending}{packed}"
    path.write_bytes(PACKERS[packed](FORMATS[ending](ROWS)))
    assert read(path) == ROWS


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".zst"])
def test_packed_content_is_told_by_its_first_bytes_and_not_by_its_name(packed: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(PACKERS[packed](lines(ROWS)))
    assert read(path) == ROWS


def test_arrow_is_read_as_a_stream_and_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow(ROWS, pyarrow.ipc.new_file))
    assert read(path) == ROWS


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_an_array_is_told_from_lines_whatever_the_name(name: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS, indent=indent))
    assert read(path) == ROWS
    path.write_bytes(lines(ROWS))
    assert read(path) == ROWS


def test_random_texts_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = random.Random(0)
    alphabet = 'ab \t"\\,\u00e9\u4e2d\U0001f600\u2028\x1f{}[]:'

    def text() -> str:
        return "".join(rng.choices(alphabet, k=rng.randrange(1, 40)))

    rows = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(300)]
    for ending, write in FORMATS.items():
        path = tmp_path / f"x{ending}"
        path.write_bytes(write(rows))
        assert read(path) == rows, ending


def test_json_lines_keep_places_and_texts_through_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    one, two = (json.dumps(row, ensure_ascii=False) for row in ROWS)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{one}\r\n\r\n{two}".encode())
    rows = read(path)
    assert rows == ROWS
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:3"]


def test_a_csv_file_gives_text_only_and_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    long = {"prompt": "0123", "chosen": "y" * 200_000, "rejected": ""}
    path.write_bytes(separated([*ROWS, long]))
    rows = read(path)
    assert rows == [*ROWS, long]
    # The first row's quoted line break takes a line of its own.
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:4", f"{path}:5"]


def test_a_parquet_file_gives_message_lists_and_counts_its_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "x.parquet"
    path.write_bytes(table([{"chosen": turns, "rejected": turns, "id": "7"}]))
    (row,) = read(path)
    assert row == {"chosen": turns, "rejected": turns, "id": "7"}
    assert row.where == f"{path} row 1"


# Broken rows and files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "x.jsonl:2: is not JSON: Expecting value, character 6 (cut off?)"),
        (b'{"a": "b', "x.jsonl:1: is not JSON: Unterminated string starting at, character 6 (cut off?)"),
        (b'{"a": 1}\n{"a" 1, "b": 2}', "x.jsonl:2: is not JSON: Expecting ':' delimiter, character 5"),
        (b'{"a": 1}\n{"a": "\xe9"}', "x.jsonl:2: is not UTF-8 text (byte 7)"),
        (b'{"a": 1, "a": 2}', "x.jsonl:1: is not usable JSON: key 'a' stands twice in one object"),
        (b"[1, 2]\n{}", "x.jsonl:1: expected an object with chosen and rejected, found"),
        (b'{"a": ' + b"[" * 100_000, "x.jsonl:1: is not usable JSON"),
    ],
)  # fmt: skip
def test_broken_lines_take_the_place_of_their_row_and_reading_goes_on(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content + b"\n" + lines(ROWS))
    found = read(path)
    assert found[-2:] == ROWS
    (broken,) = [item for item in found if isinstance(item, LeftOut)]
    assert broken.is_broken
    assert message in broken.detail
    assert len(found) == content.count(b"\n") + 3


def test_a_csv_row_of_too_few_values_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"prompt,chosen,rejected\na,b,c\na,b\nd,e,f\n")
    first, broken, last = read(path)
    assert (first["prompt"], last["prompt"]) == ("a", "d")
    assert "x.csv:3: expected 3 values" in broken.detail


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl is empty: expected at least one preference pair"),
        ("x.jsonl", b"\n\n", "x.jsonl is empty"),
        ("x.parquet", b"PAR1 no", "x.parquet: is not a readable Parquet file"),
        ("x.txt", b"", "x.txt: expected a name ending in .jsonl, .json, .parquet, .csv, .arrow"),
        ("x.jsonl.gz", gzip.compress(lines(ROWS * 5000))[:-2000], "x.jsonl.gz: "),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_an_error_that_names_it(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path)
    assert "\n" not in str(caught.value)


# Names


def test_a_glob_and_a_folder_take_their_files_in_order_of_name(tmp_path: Path) -> None:
    for name, row in zip(("b.jsonl", "a.jsonl.gz"), ROWS, strict=True):
        content = lines([row])
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / ".hidden.jsonl").write_text("no")
    for name in (tmp_path, tmp_path / "*.jsonl*"):
        assert read(name) == [ROWS[1], ROWS[0]]
        assert locate(str(name)) == [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"]


@pytest.mark.parametrize(
    ("names", "found", "glob"),
    [
        (["train.jsonl", "test.jsonl"], "test (test.jsonl), train (train.jsonl)", "*train*"),
        (
            [f"train-0000{n}-of-00007.parquet" for n in range(7)] + ["test_prefs-00000-of-00001.parquet"],
            "test (test_prefs-00000-of-00001.parquet), train (train-00000-of-00007.parquet, train-00001-of-"
            "00007.parquet, train-00002-of-00007.parquet, train-00003-of-00007.parquet, train-00004-of-"
            "00007.parquet, 2 more)",
            "*train*",
        ),
        (
            ["pairs.Dev.json", "no-test-leak_train.jsonl", "pairs_test.csv.gz"],
            "train (no-test-leak_train.jsonl), validation (pairs.Dev.json), test (pairs_test.csv.gz)",
            "*train*",
        ),
    ],
)
def test_a_folder_whose_files_are_of_several_splits_is_refused_with_the_way_to_name_one(
    names: list[str], found: str, glob: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(lines(ROWS))
    with pytest.raises(DataError, match=re.escape(f"one split, found files of {found}")) as caught:
        locate(str(tmp_path))
    wanted = f"; name those of one, such as '{tmp_path}/{glob}', or all of them, '{tmp_path}/*'"
    assert str(caught.value).endswith(wanted)
    assert locate(f"{tmp_path}/{glob}")
    assert len(locate(f"{tmp_path}/*")) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["train-0.jsonl", "train-1.jsonl"],
        ["val.jsonl", "dev.jsonl"],
        ["latest.jsonl", "trainer.jsonl"],
        ["dev-ops.jsonl", "unit-test-writing.jsonl"],
    ],
)
def test_a_folder_of_one_split_or_of_names_that_only_resemble_one_is_read(
    names: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(lines(ROWS))
    assert len(read(tmp_path)) == 4


def test_one_split_of_a_folder_is_named_by_a_glob(tmp_path: Path) -> None:
    for name, row in zip(("train.jsonl", "test.jsonl"), ROWS, strict=True):
        (tmp_path / name).write_bytes(lines([row]))
    assert read(tmp_path / "*train*") == ROWS[:1]


def test_a_folder_without_a_file_names_those_of_its_folders_that_have_some(tmp_path: Path) -> None:
    for name in ("data", "images", ".git"):
        (tmp_path / name).mkdir()
    for name in ("data", ".git"):
        (tmp_path / name / "x.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(DataError, match=r"the folder holds no file .*not looked into: data: name one$"):
        locate(str(tmp_path))


def test_a_folder_that_datasets_saved_is_a_source(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ROWS


@pytest.mark.parametrize("name", ["none/*.jsonl", "empty"])
def test_a_glob_or_folder_without_a_usable_file_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        read(tmp_path / name)


def test_a_missing_file_brings_up_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file \(did you mean .*train.jsonl\?\)"):
        locate(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"no folder .*nowhere\)"):
        locate(str(tmp_path / "nowhere" / "x.jsonl"))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("owner/name", Source("owner/name")),
        ("owner/name:test_prefs", Source("owner/name", split="test_prefs")),
        ("owner/name/main:train[:100]@v1.0", Source("owner/name", "main", "train[:100]", "v1.0")),
        ("pairs.jsonl", Source("pairs.jsonl")),
    ],
)
def test_a_text_is_a_file_or_a_hub_id_with_config_split_and_revision(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert source.name == text


def test_a_name_is_a_hub_id_unless_such_a_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("owner/name") == HubName("owner/name", "train")
    with pytest.raises(DataError, match="no such file"):
        locate("owner/pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/pairs.jsonl").write_text("{}")
    assert locate("owner/pairs.jsonl") == [Path("owner/pairs.jsonl")]


def test_a_mapping_names_every_part_and_a_wrong_key_is_answered_with_the_right_one() -> None:
    source = parse_source({"path": "a.jsonl", "weight": 2, "columns": {"chosen": "win"}})
    assert source == Source("a.jsonl", weight=2.0, columns={"chosen": "win"})
    with pytest.raises(UsageError, match=r"data\.train.*'wieght'.*weight"):
        parse_source({"path": "a.jsonl", "wieght": 2})


def test_a_files_fingerprint_is_that_of_its_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / f"{name}.jsonl" for name in ("one", "same", "other"))
    for path, text in ((one, "{}"), (same, "{}"), (other, "{} ")):
        path.write_text(text)
    assert source_fingerprint(str(one)) == source_fingerprint(str(same)) != source_fingerprint(str(other))
